package scheduling

import (
	schedulingv1 "k8s.io/api/scheduling/v1"

	"github.com/skiff-project/skiff/api"
)

func priorityClassResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "priorityclasses", Singular: "priorityclass", Kind: "PriorityClass",
		ShortNames:    []string{"pc"},
		Versions:      []api.Version{api.Versioned[schedulingv1.PriorityClass, schedulingv1.PriorityClassList]("v1", nil)},
		StoragePrefix: "priorityclasses",
	}
}
