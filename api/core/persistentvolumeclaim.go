package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func persistentVolumeClaimResource() *api.Resource {
	return &api.Resource{
		Name: "persistentvolumeclaims", Singular: "persistentvolumeclaim", Kind: "PersistentVolumeClaim",
		ShortNames:    []string{"pvc"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList]("v1", nil)},
		StoragePrefix: "persistentvolumeclaims",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
