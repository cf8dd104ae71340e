package apiserver

import (
	"context"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/auth/rbac"
)

// policySource shows the stored policy to the escalation guard.
type policySource struct{ r *Reader }

func policyObject[T any](obj api.Object, err error) (T, error) {
	var zero T
	if err != nil {
		return zero, err
	}
	typed, ok := obj.(T)
	if !ok {
		return zero, fmt.Errorf("policy object %s is stored as %T", obj.GetName(), obj)
	}
	return typed, nil
}

func policyObjects[T any](objs []api.Object, err error) ([]T, error) {
	out := make([]T, 0, len(objs))
	for _, o := range objs {
		typed, terr := policyObject[T](o, err)
		if terr != nil {
			return nil, terr
		}
		out = append(out, typed)
	}
	return out, err
}

// Role implements rbac.Source.
func (p policySource) Role(namespace, name string) (*rbacv1.Role, error) {
	return policyObject[*rbacv1.Role](p.r.Get(rbacv1.GroupName, "roles", namespace, name))
}

// ClusterRole implements rbac.Source.
func (p policySource) ClusterRole(name string) (*rbacv1.ClusterRole, error) {
	return policyObject[*rbacv1.ClusterRole](p.r.Get(rbacv1.GroupName, "clusterroles", "", name))
}

// RoleBindings implements rbac.Source.
func (p policySource) RoleBindings(namespace string) ([]*rbacv1.RoleBinding, error) {
	return policyObjects[*rbacv1.RoleBinding](p.r.List(rbacv1.GroupName, "rolebindings", namespace))
}

// ClusterRoleBindings implements rbac.Source.
func (p policySource) ClusterRoleBindings() ([]*rbacv1.ClusterRoleBinding, error) {
	return policyObjects[*rbacv1.ClusterRoleBinding](p.r.List(rbacv1.GroupName, "clusterrolebindings", ""))
}

// guard keeps users from granting more than they have by a write of policy.
// Deletes grant nothing.
func (s *Server) guard(ctx context.Context, c *call, obj, old api.Object) error {
	if c.info.Group != rbacv1.GroupName || obj == nil {
		return nil
	}
	a := c.info.Attributes(c.user.User)
	g := rbac.Guard{Source: policySource{s.reader}, Authorizer: s.cfg.Authorizer}
	if old == nil {
		return g.Check(ctx, a, obj, nil)
	}
	return g.Check(ctx, a, obj, old)
}
