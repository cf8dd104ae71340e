package networking

import (
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/skiff-project/skiff/api"
)

func serviceCIDRResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "servicecidrs", Singular: "servicecidr", Kind: "ServiceCIDR",
		Versions:      []api.Version{api.Versioned[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList]("v1", nil)},
		StoragePrefix: "servicecidrs",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
