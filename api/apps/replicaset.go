package apps

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/skiff-project/skiff/api"
)

func replicaSetResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "replicasets", Singular: "replicaset", Kind: "ReplicaSet",
		ShortNames:    []string{"rs"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[appsv1.ReplicaSet, appsv1.ReplicaSetList]("v1", nil)},
		StoragePrefix: "replicasets",
		Subresources: []api.Subresource{
			{Name: "scale", Kind: "Scale", Group: "autoscaling", Version: "v1", Scale: &api.Scale{}},
			{Name: "status", View: &api.View{}},
		},
	}
}
