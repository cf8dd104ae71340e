package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/skiff-project/skiff/api"
)

func clusterRoleBindingResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "clusterrolebindings", Singular: "clusterrolebinding", Kind: "ClusterRoleBinding",
		Versions:      []api.Version{api.Versioned[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList]("v1", nil)},
		StoragePrefix: "clusterrolebindings",
	}
}
