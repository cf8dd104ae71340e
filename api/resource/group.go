// Package resource describes the resources of the resource.k8s.io group (dynamic resource allocation).
package resource

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "resource.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		deviceClassResource(),
		deviceTaintRuleResource(),
		resourceClaimResource(),
		resourceClaimTemplateResource(),
		resourceSliceResource(),
	}
}
