package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func serviceResource() *api.Resource {
	return &api.Resource{
		Name: "services", Singular: "service", Kind: "Service",
		ShortNames:    []string{"svc"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.Service, corev1.ServiceList]("v1", nil)},
		StoragePrefix: "services/specs",
		Subresources: []api.Subresource{
			{Name: "proxy", Verbs: proxyVerbs, Kind: "ServiceProxyOptions"},
			{Name: "status", View: &api.View{}},
		},
	}
}
