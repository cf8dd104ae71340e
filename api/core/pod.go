package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func podResource() *api.Resource {
	return &api.Resource{
		Name: "pods", Singular: "pod", Kind: "Pod",
		ShortNames:    []string{"po"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.Pod, corev1.PodList]("v1", nil)},
		StoragePrefix: "pods",
		Subresources: []api.Subresource{
			{Name: "attach", Verbs: []string{"create", "get"}, Kind: "PodAttachOptions"},
			{Name: "binding", Verbs: []string{"create"}, Kind: "Binding"},
			{Name: "ephemeralcontainers", View: &api.View{}},
			{Name: "eviction", Verbs: []string{"create"}, Kind: "Eviction", Group: "policy", Version: "v1"},
			{Name: "exec", Verbs: []string{"create", "get"}, Kind: "PodExecOptions"},
			{Name: "log", Verbs: []string{"get"}},
			{Name: "portforward", Verbs: []string{"create", "get"}, Kind: "PodPortForwardOptions"},
			{Name: "proxy", Verbs: proxyVerbs, Kind: "PodProxyOptions"},
			{Name: "resize", View: &api.View{}},
			{Name: "status", View: &api.View{}},
		},
	}
}
