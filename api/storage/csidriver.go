package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"github.com/skiff-project/skiff/api"
)

func csiDriverResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "csidrivers", Singular: "csidriver", Kind: "CSIDriver",
		Versions:      []api.Version{api.Versioned[storagev1.CSIDriver, storagev1.CSIDriverList]("v1", nil)},
		StoragePrefix: "csidrivers",
	}
}
