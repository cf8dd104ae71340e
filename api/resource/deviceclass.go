package resource

import (
	resourcev1 "k8s.io/api/resource/v1"

	"github.com/skiff-project/skiff/api"
)

func deviceClassResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "deviceclasses", Singular: "deviceclass", Kind: "DeviceClass",
		Versions:      []api.Version{api.Versioned[resourcev1.DeviceClass, resourcev1.DeviceClassList]("v1", nil)},
		StoragePrefix: "deviceclasses",
	}
}
