package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func componentStatusResource() *api.Resource {
	return &api.Resource{
		Name: "componentstatuses", Singular: "componentstatus", Kind: "ComponentStatus",
		ShortNames: []string{"cs"},
		Versions:   []api.Version{api.Versioned[corev1.ComponentStatus, corev1.ComponentStatusList]("v1", nil)},
		Virtual:    true,
		Verbs:      []string{"get", "list"},
	}
}
