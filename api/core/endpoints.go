package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func endpointsResource() *api.Resource {
	return &api.Resource{
		Name: "endpoints", Singular: "endpoints", Kind: "Endpoints",
		ShortNames:    []string{"ep"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.Endpoints, corev1.EndpointsList]("v1", nil)},
		StoragePrefix: "services/endpoints",
	}
}
