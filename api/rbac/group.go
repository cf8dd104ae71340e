// Package rbac describes the resources of the rbac.authorization.k8s.io group.
package rbac

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "rbac.authorization.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		clusterRoleBindingResource(),
		clusterRoleResource(),
		roleBindingResource(),
		roleResource(),
	}
}
