// Package node describes the resources of the node.k8s.io group.
package node

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "node.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		runtimeClassResource(),
	}
}
