package networking

import (
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/skiff-project/skiff/api"
)

func ingressResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "ingresses", Singular: "ingress", Kind: "Ingress",
		ShortNames:    []string{"ing"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[networkingv1.Ingress, networkingv1.IngressList]("v1", nil)},
		StoragePrefix: "ingress",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
