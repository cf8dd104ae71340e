package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func limitRangeResource() *api.Resource {
	return &api.Resource{
		Name: "limitranges", Singular: "limitrange", Kind: "LimitRange",
		ShortNames:    []string{"limits"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.LimitRange, corev1.LimitRangeList]("v1", nil)},
		StoragePrefix: "limitranges",
	}
}
