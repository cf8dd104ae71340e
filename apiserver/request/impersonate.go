package request

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/auth"
)

// Impersonation reads the headers: the user wanted and what must be allowed for it.
func Impersonation(h http.Header) (auth.User, []auth.Attributes, error) {
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
