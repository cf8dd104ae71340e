package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func replicationControllerResource() *api.Resource {
	return &api.Resource{
		Name: "replicationcontrollers", Singular: "replicationcontroller", Kind: "ReplicationController",
		ShortNames:    []string{"rc"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.ReplicationController, corev1.ReplicationControllerList]("v1", nil)},
		StoragePrefix: "controllers",
		Subresources: []api.Subresource{
			{Name: "scale", Kind: "Scale", Group: "autoscaling", Version: "v1", Scale: &api.Scale{}},
			{Name: "status", View: &api.View{}},
		},
	}
}
