package apiserver

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/auth"
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
	want, checks, err := impersonation(c.req.Header)
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
	return true
}

// impersonation reads the headers: the user wanted and what must be allowed for it.
func impersonation(h http.Header) (auth.User, []auth.Attributes, error) {
	u := auth.User{
		Name: h.Get(authenticationv1.ImpersonateUserHeader), UID: h.Get(authenticationv1.ImpersonateUIDHeader),
		Groups: slices.Clone(h.Values(authenticationv1.ImpersonateGroupHeader)),
	}
	if u.Name == "" {
		return u, nil, apierrors.NewBadRequest("requested impersonation without impersonating a user")
	}
	checks := []auth.Attributes{{Resource: "users", Name: u.Name, APIVersion: "v1"}}
	if rest, ok := strings.CutPrefix(u.Name, auth.ServiceAccountPrefix); ok {
		if ns, name, ok := strings.Cut(rest, ":"); ok {
			checks[0] = auth.Attributes{Resource: "serviceaccounts", Namespace: ns, Name: name, APIVersion: "v1"}
			if len(u.Groups) == 0 {
				u.Groups = []string{auth.GroupServiceAccounts, auth.GroupServiceAccounts + ":" + ns}
			}
		}
	}
	for _, g := range h.Values(authenticationv1.ImpersonateGroupHeader) {
		checks = append(checks, auth.Attributes{Resource: "groups", Name: g, APIVersion: "v1"})
	}
	if u.UID != "" {
		checks = append(checks, auth.Attributes{APIGroup: authenticationv1.GroupName, APIVersion: "v1", Resource: "uids", Name: u.UID})
	}
	for k, values := range h {
		key, ok := strings.CutPrefix(k, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		if decoded, err := url.PathUnescape(key); err == nil {
			key = decoded
		}
		key = strings.ToLower(key)
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		for _, v := range values {
			u.Extra[key] = append(u.Extra[key], v)
			checks = append(checks, auth.Attributes{APIGroup: authenticationv1.GroupName, APIVersion: "v1", Resource: "userextras", Subresource: key, Name: v})
		}
	}
	switch {
	case u.Name == auth.UserAnonymous:
		if !slices.Contains(u.Groups, auth.GroupUnauthenticated) {
			u.Groups = append(u.Groups, auth.GroupUnauthenticated)
		}
	case !slices.Contains(u.Groups, auth.GroupAuthenticated):
		u.Groups = append(u.Groups, auth.GroupAuthenticated)
	}
	return u, checks, nil
}
