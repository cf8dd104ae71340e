package resource

import (
	resourcev1 "k8s.io/api/resource/v1"

	"github.com/skiff-project/skiff/api"
)

func resourceClaimTemplateResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "resourceclaimtemplates", Singular: "resourceclaimtemplate", Kind: "ResourceClaimTemplate",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList]("v1", nil)},
		StoragePrefix: "resourceclaimtemplates",
	}
}
