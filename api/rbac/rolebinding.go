package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/skiff-project/skiff/api"
)

func roleBindingResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "rolebindings", Singular: "rolebinding", Kind: "RoleBinding",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[rbacv1.RoleBinding, rbacv1.RoleBindingList]("v1", nil)},
		StoragePrefix: "rolebindings",
	}
}
