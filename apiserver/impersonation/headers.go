// Package impersonation decides whether a request may be done as somebody else:
// in one of upstream's constrained modes (KEP-5284), where both the user and what
// is done as that user must be allowed, or by the plain verb impersonate.
package impersonation

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/auth"
)

// Wanted takes the headers of impersonation out of h and returns whom they name;
// nil where there are none. What is left of h does not tell that there were any.
func Wanted(h http.Header) (*auth.User, error) {
	if !named(h) {
		return nil, nil
	}
	u := &auth.User{Name: h.Get(authenticationv1.ImpersonateUserHeader), UID: h.Get(authenticationv1.ImpersonateUIDHeader)}
	u.Groups = slices.Clone(h.Values(authenticationv1.ImpersonateGroupHeader))
	extra := false
	for name, values := range h {
		key, ok := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		if extra = true; len(values) == 0 {
			continue
		}
		key = strings.ToLower(key)
		if decoded, err := url.PathUnescape(key); err == nil {
			key = decoded
		}
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[key] = append(u.Extra[key], values...)
	}
	if u.Name == "" {
		if u.UID == "" && len(u.Groups) == 0 && !extra {
			return nil, nil
		}
		return nil, apierrors.NewBadRequest(fmt.Sprintf( // upstream prints its Go type
			"requested &user.DefaultInfo{Name:%#v, UID:%#v, Groups:%#v, Extra:%#v} without impersonating a user name", u.Name, u.UID, u.Groups, u.Extra))
	}
	for name := range h {
		switch name {
		case authenticationv1.ImpersonateUserHeader, authenticationv1.ImpersonateUIDHeader, authenticationv1.ImpersonateGroupHeader:
			h.Del(name)
		default:
			if strings.HasPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix) {
				h.Del(name)
			}
		}
	}
	return u, nil
}

// named tells at no cost what holds for almost every request: nobody is impersonated.
func named(h http.Header) bool {
	for name := range h {
		if strings.HasPrefix(name, "Impersonate-") {
			return true
		}
	}
	return false
}
