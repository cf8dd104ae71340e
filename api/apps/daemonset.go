package apps

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/skiff-project/skiff/api"
)

func daemonSetResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "daemonsets", Singular: "daemonset", Kind: "DaemonSet",
		ShortNames:    []string{"ds"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[appsv1.DaemonSet, appsv1.DaemonSetList]("v1", nil)},
		StoragePrefix: "daemonsets",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
