// Package events describes the resources of the events.k8s.io group, which share the storage of core events.
package events

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "events.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		eventResource(),
	}
}
