package events

import (
	eventsv1 "k8s.io/api/events/v1"

	"github.com/skiff-project/skiff/api"
)

func eventResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "events", Singular: "event", Kind: "Event",
		ShortNames:    []string{"ev"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[eventsv1.Event, eventsv1.EventList]("v1", nil)},
		StoragePrefix: "events",
	}
}
