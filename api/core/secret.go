package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func secretResource() *api.Resource {
	return &api.Resource{
		Name: "secrets", Singular: "secret", Kind: "Secret",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.Secret, corev1.SecretList]("v1", nil)},
		StoragePrefix: "secrets",
	}
}
