package apiserver

import (
	"github.com/skiff-project/skiff/apiserver/impersonation"
	"github.com/skiff-project/skiff/auth"
)

// impersonate replaces the user by the one the Impersonate headers name, if there are
// any and the user may do that, or answers the request.
func (s *Server) impersonate(c *call) bool {
	want, err := impersonation.Wanted(c.req.Header)
	if want == nil && err == nil {
		return true
	}
	var u auth.User
	var constraint string
	if err == nil {
		u, constraint, err = s.impersonation.As(c.ctx(), want, c.info.Attributes(c.user.User))
	}
	if err != nil {
		s.fail(c, err)
		return false
	}
	c.user.User = u
	c.audit.Impersonated(u, constraint)
	return true
}
