// Package requestheader authenticates requests passed on by a trusted proxy
// (the aggregation layer): the proxy shows its own client certificate, and
// headers name the user.
package requestheader

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/x509"
)

// Config says which proxies to trust and which headers they send.
type Config struct {
	Pool          x509.Pool          // the front-proxy CA; required
	AllowedNames  []string           // common names a proxy may have; empty: any the CA signed
	UserHeaders   []string           // default X-Remote-User
	UIDHeaders    []string           // default X-Remote-Uid
	GroupHeaders  []string           // default X-Remote-Group
	ExtraPrefixes []string           // default X-Remote-Extra-
	Clock         clock.PassiveClock // default the real one
}

// Authenticator implements auth.Authenticator.
type Authenticator struct{ Config }

// New returns an authenticator for cfg.
func New(cfg Config) (*Authenticator, error) {
	if cfg.Pool == nil {
		return nil, fmt.Errorf("request-header authentication needs a certificate authority")
	}
	for _, d := range []struct {
		list  *[]string
		value string
	}{{&cfg.UserHeaders, "X-Remote-User"}, {&cfg.UIDHeaders, "X-Remote-Uid"}, {&cfg.GroupHeaders, "X-Remote-Group"}, {&cfg.ExtraPrefixes, "X-Remote-Extra-"}} {
		if len(*d.list) == 0 {
			*d.list = []string{d.value}
		}
		for _, h := range *d.list {
			if strings.TrimSpace(h) == "" {
				return nil, fmt.Errorf("empty header %q", h)
			}
		}
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	return &Authenticator{cfg}, nil
}

// Authenticate implements auth.Authenticator. The headers are removed from the
// request once used.
func (z *Authenticator) Authenticate(req *http.Request) (auth.Identity, bool, error) {
	name := first(req.Header, z.UserHeaders)
	if name == "" { // most requests: nothing is verified for them
		return auth.Identity{}, false, nil
	}
	leaf, err := x509.VerifyClient(req, z.Pool, z.Clock.Now())
	if leaf == nil || err != nil {
		return auth.Identity{}, false, err
	}
	if len(z.AllowedNames) > 0 && !slices.Contains(z.AllowedNames, leaf.Subject.CommonName) {
		return auth.Identity{}, false, fmt.Errorf("x509: subject with cn=%s is not in the allowed list", leaf.Subject.CommonName)
	}
	u := auth.User{Name: name, UID: first(req.Header, z.UIDHeaders), Extra: z.extra(req.Header)}
	for _, h := range z.GroupHeaders {
		for _, v := range req.Header.Values(h) {
			if v != "" {
				u.Groups = append(u.Groups, v)
			}
		}
	}
	z.clear(req.Header)
	return auth.Identity{User: u}, true, nil
}

func first(h http.Header, names []string) string {
	for _, n := range names {
		if v := h.Get(n); v != "" {
			return v
		}
	}
	return ""
}

func (z *Authenticator) extra(h http.Header) map[string][]string {
	out := map[string][]string{}
	for _, prefix := range z.ExtraPrefixes {
		for name, values := range h {
			if !hasPrefixFold(name, prefix) {
				continue
			}
			key := strings.ToLower(name[len(prefix):])
			if plain, err := url.PathUnescape(key); err == nil {
				key = plain
			}
			out[key] = append(out[key], values...)
		}
	}
	return out
}

func (z *Authenticator) clear(h http.Header) {
	for _, list := range [][]string{z.UserHeaders, z.UIDHeaders, z.GroupHeaders} {
		for _, n := range list {
			h.Del(n)
		}
	}
	for _, prefix := range z.ExtraPrefixes {
		for name := range h {
			if hasPrefixFold(name, prefix) {
				delete(h, name)
			}
		}
	}
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
