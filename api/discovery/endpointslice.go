package discovery

import (
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/skiff-project/skiff/api"
)

func endpointSliceResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "endpointslices", Singular: "endpointslice", Kind: "EndpointSlice",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList]("v1", nil)},
		StoragePrefix: "endpointslices",
	}
}
