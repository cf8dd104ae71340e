package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func nodeResource() *api.Resource {
	return &api.Resource{
		Name: "nodes", Singular: "node", Kind: "Node",
		ShortNames:    []string{"no"},
		Versions:      []api.Version{api.Versioned[corev1.Node, corev1.NodeList]("v1", nil)},
		StoragePrefix: "minions",
		Subresources: []api.Subresource{
			{Name: "proxy", Verbs: proxyVerbs, Kind: "NodeProxyOptions"},
			{Name: "status", View: &api.View{}},
		},
	}
}
