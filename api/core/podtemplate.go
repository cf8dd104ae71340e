package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func podTemplateResource() *api.Resource {
	return &api.Resource{
		Name: "podtemplates", Singular: "podtemplate", Kind: "PodTemplate",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.PodTemplate, corev1.PodTemplateList]("v1", nil)},
		StoragePrefix: "podtemplates",
	}
}
