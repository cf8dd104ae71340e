// Package networking describes the resources of the networking.k8s.io group.
package networking

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "networking.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		ingressClassResource(),
		ingressResource(),
		ipAddressResource(),
		networkPolicyResource(),
		serviceCIDRResource(),
	}
}
