package apps

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/skiff-project/skiff/api"
)

func statefulSetResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "statefulsets", Singular: "statefulset", Kind: "StatefulSet",
		ShortNames:    []string{"sts"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[appsv1.StatefulSet, appsv1.StatefulSetList]("v1", nil)},
		StoragePrefix: "statefulsets",
		Subresources: []api.Subresource{
			{Name: "scale", Kind: "Scale", Group: "autoscaling", Version: "v1", Scale: &api.Scale{}},
			{Name: "status", View: &api.View{}},
		},
	}
}
