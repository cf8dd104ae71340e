package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/skiff-project/skiff/api"
)

func roleResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "roles", Singular: "role", Kind: "Role",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[rbacv1.Role, rbacv1.RoleList]("v1", nil)},
		StoragePrefix: "roles",
	}
}
