package resource

import (
	resourcev1 "k8s.io/api/resource/v1"

	"github.com/skiff-project/skiff/api"
)

func resourceClaimResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "resourceclaims", Singular: "resourceclaim", Kind: "ResourceClaim",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[resourcev1.ResourceClaim, resourcev1.ResourceClaimList]("v1", nil)},
		StoragePrefix: "resourceclaims",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
