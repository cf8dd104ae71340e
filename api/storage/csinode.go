package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"github.com/skiff-project/skiff/api"
)

func csiNodeResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "csinodes", Singular: "csinode", Kind: "CSINode",
		Versions:      []api.Version{api.Versioned[storagev1.CSINode, storagev1.CSINodeList]("v1", nil)},
		StoragePrefix: "csinodes",
	}
}
