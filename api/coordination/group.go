// Package coordination describes the resources of the coordination.k8s.io group.
package coordination

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "coordination.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		leaseResource(),
	}
}
