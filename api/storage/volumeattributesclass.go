package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"github.com/skiff-project/skiff/api"
)

func volumeAttributesClassResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "volumeattributesclasses", Singular: "volumeattributesclass", Kind: "VolumeAttributesClass",
		ShortNames:    []string{"vac"},
		Versions:      []api.Version{api.Versioned[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList]("v1", nil)},
		StoragePrefix: "volumeattributesclasses",
	}
}
