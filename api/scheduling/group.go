// Package scheduling describes the resources of the scheduling.k8s.io group.
package scheduling

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "scheduling.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		priorityClassResource(),
	}
}
