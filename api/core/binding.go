package core

import (
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func bindingResource() *api.Resource {
	return &api.Resource{
		Name: "bindings", Singular: "binding", Kind: "Binding",
		Namespaced: true,
		Versions:   []api.Version{api.Review[corev1.Binding]("v1", nil)},
		Virtual:    true,
		Verbs:      []string{"create"},
		Strategy:   api.Strategy{Validate: api.Check(ValidateBinding)},
	}
}

// ValidateBinding checks a binding of a pod to a node.
func ValidateBinding(b *corev1.Binding) field.ErrorList {
	l, at := &check.List{}, field.NewPath("target")
	isNode := b.Target.Kind == "" || b.Target.Kind == "Node"
	if !isNode {
		l.Errors = append(l.Errors, field.NotSupported(at.Child("kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	switch {
	case b.Target.Name == "":
		l.Required(at.Child("name"), "")
	case isNode:
		l.Messages(at.Child("name"), b.Target.Name, apivalidation.NameIsDNSSubdomain(b.Target.Name, false))
	}
	return l.Errors
}
