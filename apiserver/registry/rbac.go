package registry

import (
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/skiff-project/skiff/api"
)

// RBAC shows stored roles and bindings to those who decide by them. It implements rbac.Source.
type RBAC struct{ *Reader }

// As is what was read as a T.
func As[T any](obj api.Object, err error) (T, error) {
	var zero T
	if err != nil {
		return zero, err
	}
	typed, ok := obj.(T)
	if !ok {
		return zero, fmt.Errorf("%s is stored as %T", obj.GetName(), obj)
	}
	return typed, nil
}

// AllAs is a list that was read as one of Ts.
func AllAs[T any](objs []api.Object, err error) ([]T, error) {
	out := make([]T, 0, len(objs))
	for _, o := range objs {
		typed, terr := As[T](o, err)
		if terr != nil {
			return nil, terr
		}
		out = append(out, typed)
	}
	return out, err
}

// Role implements rbac.Source.
func (r RBAC) Role(namespace, name string) (*rbacv1.Role, error) {
	return As[*rbacv1.Role](r.Get(rbacv1.GroupName, "roles", namespace, name))
}

// ClusterRole implements rbac.Source.
func (r RBAC) ClusterRole(name string) (*rbacv1.ClusterRole, error) {
	return As[*rbacv1.ClusterRole](r.Get(rbacv1.GroupName, "clusterroles", "", name))
}

// RoleBindings implements rbac.Source.
func (r RBAC) RoleBindings(namespace string) ([]*rbacv1.RoleBinding, error) {
	return AllAs[*rbacv1.RoleBinding](r.List(rbacv1.GroupName, "rolebindings", namespace))
}

// ClusterRoleBindings implements rbac.Source.
func (r RBAC) ClusterRoleBindings() ([]*rbacv1.ClusterRoleBinding, error) {
	return AllAs[*rbacv1.ClusterRoleBinding](r.List(rbacv1.GroupName, "clusterrolebindings", ""))
}
