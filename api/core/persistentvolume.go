package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func persistentVolumeResource() *api.Resource {
	return &api.Resource{
		Name: "persistentvolumes", Singular: "persistentvolume", Kind: "PersistentVolume",
		ShortNames:    []string{"pv"},
		Versions:      []api.Version{api.Versioned[corev1.PersistentVolume, corev1.PersistentVolumeList]("v1", nil)},
		StoragePrefix: "persistentvolumes",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
