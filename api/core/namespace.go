package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func namespaceResource() *api.Resource {
	return &api.Resource{
		Name: "namespaces", Singular: "namespace", Kind: "Namespace",
		ShortNames:    []string{"ns"},
		Versions:      []api.Version{api.Versioned[corev1.Namespace, corev1.NamespaceList]("v1", nil)},
		StoragePrefix: "namespaces",
		Verbs:         []string{"create", "delete", "get", "list", "patch", "update", "watch"},
		Subresources: []api.Subresource{
			{Name: "finalize", Verbs: []string{"update"}, View: &api.View{}},
			{Name: "status", View: &api.View{}},
		},
	}
}
