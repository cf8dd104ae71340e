// Package batch describes the resources of the batch group.
package batch

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "batch"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		cronJobResource(),
		jobResource(),
	}
}
