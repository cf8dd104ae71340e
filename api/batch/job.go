package batch

import (
	batchv1 "k8s.io/api/batch/v1"

	"github.com/skiff-project/skiff/api"
)

func jobResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "jobs", Singular: "job", Kind: "Job",
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[batchv1.Job, batchv1.JobList]("v1", nil)},
		StoragePrefix: "jobs",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
