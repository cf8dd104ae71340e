package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func bindingResource() *api.Resource {
	return &api.Resource{
		Name: "bindings", Singular: "binding", Kind: "Binding",
		Namespaced: true,
		Versions:   []api.Version{api.Review[corev1.Binding]("v1", nil)},
		Virtual:    true,
		Verbs:      []string{"create"},
	}
}
