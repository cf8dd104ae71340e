package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"github.com/skiff-project/skiff/api"
)

func storageClassResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "storageclasses", Singular: "storageclass", Kind: "StorageClass",
		ShortNames:    []string{"sc"},
		Versions:      []api.Version{api.Versioned[storagev1.StorageClass, storagev1.StorageClassList]("v1", nil)},
		StoragePrefix: "storageclasses",
	}
}
