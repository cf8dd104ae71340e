package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/skiff-project/skiff/api"
)

func clusterRoleResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "clusterroles", Singular: "clusterrole", Kind: "ClusterRole",
		Versions:      []api.Version{api.Versioned[rbacv1.ClusterRole, rbacv1.ClusterRoleList]("v1", nil)},
		StoragePrefix: "clusterroles",
	}
}
