package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func resourceQuotaResource() *api.Resource {
	return &api.Resource{
		Name: "resourcequotas", Singular: "resourcequota", Kind: "ResourceQuota",
		ShortNames:    []string{"quota"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.ResourceQuota, corev1.ResourceQuotaList]("v1", nil)},
		StoragePrefix: "resourcequotas",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
