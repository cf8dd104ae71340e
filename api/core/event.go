package core

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
)

func eventResource() *api.Resource {
	return &api.Resource{
		Name: "events", Singular: "event", Kind: "Event",
		ShortNames:    []string{"ev"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.Event, corev1.EventList]("v1", nil)},
		StoragePrefix: "events",
	}
}
