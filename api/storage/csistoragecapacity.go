package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"github.com/skiff-project/skiff/api"
)

func csiStorageCapacityResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "csistoragecapacities", Singular: "csistoragecapacity", Kind: "CSIStorageCapacity",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList]("v1", nil)},
		StoragePrefix: "csistoragecapacities",
	}
}
