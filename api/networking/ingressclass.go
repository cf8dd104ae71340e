package networking

import (
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/skiff-project/skiff/api"
)

func ingressClassResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "ingressclasses", Singular: "ingressclass", Kind: "IngressClass",
		Versions:      []api.Version{api.Versioned[networkingv1.IngressClass, networkingv1.IngressClassList]("v1", nil)},
		StoragePrefix: "ingressclasses",
	}
}
