package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func configMapResource() *api.Resource {
	return &api.Resource{
		Name: "configmaps", Singular: "configmap", Kind: "ConfigMap",
		ShortNames:    []string{"cm"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.ConfigMap, corev1.ConfigMapList]("v1", nil)},
		StoragePrefix: "configmaps",
	}
}
