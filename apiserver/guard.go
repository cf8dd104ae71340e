package apiserver

import (
	"context"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth/rbac"
)

// guard keeps users from granting more than they have by a write of policy.
// Deletes grant nothing.
func (s *Server) guard(ctx context.Context, c *call, obj, old api.Object) error {
	if c.info.Group != rbacv1.GroupName || obj == nil {
		return nil
	}
	a := c.info.Attributes(c.user.User)
	g := rbac.Guard{Source: registry.RBAC{Reader: s.reader}, Authorizer: s.cfg.Authorizer}
	return g.Check(ctx, a, obj, old)
}
