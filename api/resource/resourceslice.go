package resource

import (
	resourcev1 "k8s.io/api/resource/v1"

	"github.com/skiff-project/skiff/api"
)

func resourceSliceResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "resourceslices", Singular: "resourceslice", Kind: "ResourceSlice",
		Versions:      []api.Version{api.Versioned[resourcev1.ResourceSlice, resourcev1.ResourceSliceList]("v1", nil)},
		StoragePrefix: "resourceslices",
	}
}
