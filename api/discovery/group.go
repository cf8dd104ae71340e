// Package discovery describes the resources of the discovery.k8s.io group.
package discovery

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "discovery.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		endpointSliceResource(),
	}
}
