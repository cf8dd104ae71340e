package apiserver

import (
	"net/http"
	"strings"

	"github.com/skiff-project/skiff/apiserver/request"
)

func hasImpersonation(h http.Header) bool {
	for k := range h {
		if strings.HasPrefix(k, "Impersonate-") {
			return true
		}
	}
	return false
}

// impersonate replaces the user by the one the Impersonate headers name, if
// the user may do that, or answers the request.
func (s *Server) impersonate(c *call) bool {
	want, checks, err := request.Impersonation(c.req.Header)
	if err != nil {
		s.fail(c, err)
		return false
	}
	for _, a := range checks {
		a.User, a.Verb, a.ResourceRequest = c.user.User, "impersonate", true
		if err := s.allowed(c.req.Context(), a); err != nil {
			s.fail(c, err)
			return false
		}
	}
	for k := range c.req.Header {
		if strings.HasPrefix(k, "Impersonate-") {
			c.req.Header.Del(k)
		}
	}
	c.user.User = want
	c.audit.Impersonated(want)
	return true
}
