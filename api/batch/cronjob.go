package batch

import (
	batchv1 "k8s.io/api/batch/v1"

	"github.com/skiff-project/skiff/api"
)

func cronJobResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "cronjobs", Singular: "cronjob", Kind: "CronJob",
		ShortNames:    []string{"cj"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[batchv1.CronJob, batchv1.CronJobList]("v1", nil)},
		StoragePrefix: "cronjobs",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
