// Package policy describes the resources of the policy group.
package policy

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "policy"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		podDisruptionBudgetResource(),
	}
}
