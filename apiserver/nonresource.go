package apiserver

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/apiserver/profiles"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/object/codec"
)

// writeTagged sends a document with an ETag, or 304 when the client has it.
func (s *Server) writeTagged(c *call, contentType string, data []byte) {
	sum := sha512.Sum512(data)
	tag := `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`
	h := c.w.Header()
	h.Set("ETag", tag)
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "public")
	if match := c.req.Header.Get("If-None-Match"); match != "" && strings.Contains(match, tag) {
		c.w.WriteHeader(http.StatusNotModified)
		return
	}
	s.write(c, contentType, http.StatusOK, data)
}

// serveNonResource answers everything that is not an API resource.
func (s *Server) serveNonResource(c *call) {
	if s.serveDiscovery(c) {
		return
	}
	path := strings.TrimSuffix(c.info.Path, "/")
	if s.cfg.Profiling && profiles.Serve(c.w, c.req) {
		return
	}
	if c.req.Method != http.MethodGet && c.req.Method != http.MethodHead {
		s.notFoundPath(c)
		return
	}
	switch {
	case path == "":
		s.index(c)
	case path == "/version":
		s.serveVersion(c)
	case path == "/metrics":
		s.metrics.ServeHTTP(c.w, c.req)
	case isHealthPath(path):
		s.serveHealth(c, path)
	case path == "/openapi/v2" || path == "/openapi/v3" || strings.HasPrefix(path, "/openapi/v3/"):
		s.serveOpenAPI(c, path)
	case path == serviceaccount.OpenIDConfigPath || path == serviceaccount.JWKSPath:
		s.serveOpenID(c, path)
	default:
		s.notFoundPath(c)
	}
}

func (s *Server) index(c *call) {
	paths := []string{
		"/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/healthz/etcd", "/healthz/ping", "/livez", "/livez/etcd", "/livez/ping",
		"/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/readyz/etcd", "/readyz/ping", "/version",
	}
	for _, g := range s.groups() {
		if g.Name == "" {
			continue
		}
		paths = append(paths, "/apis/"+g.Name)
		for _, v := range g.Versions {
			paths = append(paths, "/apis/"+g.Name+"/"+v.Name)
		}
	}
	slices.Sort(paths)
	data, _ := json.MarshalIndent(metav1.RootPaths{Paths: paths}, "", "  ")
	s.write(c, codec.JSON, http.StatusOK, data)
}

func (s *Server) serveVersion(c *call) {
	data, _ := json.MarshalIndent(s.cfg.Version, "", "  ")
	s.write(c, codec.JSON, http.StatusOK, data)
}

func (s *Server) serveOpenID(c *call, path string) {
	t := s.cfg.ServiceAccounts
	if t == nil {
		s.notFoundPath(c)
		return
	}
	doc, typ := t.JWKS, serviceaccount.JWKSType
	if path == serviceaccount.OpenIDConfigPath {
		doc, typ = func() ([]byte, error) { return t.OpenIDConfig("", s.externalAddress()) }, serviceaccount.OpenIDConfigType
	}
	data, err := doc()
	if err != nil {
		s.fail(c, apierrors.NewInternalError(err))
		return
	}
	c.w.Header().Set("Cache-Control", serviceaccount.DiscoveryCacheAge)
	s.write(c, typ, http.StatusOK, data)
}

func (s *Server) endpointAddress() string {
	return fmt.Sprintf("%s:%d", s.cfg.AdvertiseAddress, s.cfg.AdvertisePort)
}

func (s *Server) externalAddress() string {
	if s.cfg.AdvertiseAddress.IsValid() {
		return s.endpointAddress()
	}
	return ""
}

// healthCheck is one named check of /healthz, /livez and /readyz.
type healthCheck struct {
	name string
	ok   func() error
}

func isHealthPath(path string) bool {
	for _, p := range []string{"/healthz", "/livez", "/readyz"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

func (s *Server) healthChecks(endpoint string) []healthCheck {
	checks := []healthCheck{
		{"ping", func() error { return nil }},
		{"log", func() error { return nil }},
		{"etcd", func() error { return s.checkStore(s.background()) }},
		{"poststarthook/bootstrap", func() error {
			if !s.poststart.Load() {
				return fmt.Errorf("not finished")
			}
			return nil
		}},
	}
	if s.aggregator != nil {
		checks = append(checks, healthCheck{"autoregister-completion", s.aggregator.Registered})
	}
	if s.cfg.Encryption.UsesKMS() {
		checks = append(checks, healthCheck{"kms-providers", s.cfg.Encryption.Health})
	}
	if endpoint == "/readyz" {
		checks = append(checks, healthCheck{"shutdown", func() error {
			select {
			case <-s.stopping:
				return fmt.Errorf("process is shutting down")
			default:
				return nil
			}
		}})
	}
	return checks
}

func (s *Server) serveHealth(c *call, path string) {
	_, rest, _ := strings.Cut(path[1:], "/")
	endpoint := "/" + strings.SplitN(path[1:], "/", 2)[0]
	exclude := c.query["exclude"]
	var text strings.Builder
	failed, found := false, rest == ""
	for _, check := range s.healthChecks(endpoint) {
		if rest != "" && check.name != rest {
			continue
		}
		found = true
		switch err := check.ok(); {
		case slices.Contains(exclude, check.name):
			fmt.Fprintf(&text, "[+]%s excluded: ok\n", check.name)
		case err != nil:
			failed = true
			fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", check.name)
		default:
			fmt.Fprintf(&text, "[+]%s ok\n", check.name)
		}
	}
	if !found {
		s.notFoundPath(c)
		return
	}
	name := endpoint[1:]
	c.w.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case failed:
		s.write(c, "text/plain; charset=utf-8", http.StatusInternalServerError, fmt.Appendf(nil, "%s%s check failed\n", text.String(), name))
	case c.query.Has("verbose"):
		s.write(c, "text/plain; charset=utf-8", http.StatusOK, fmt.Appendf(nil, "%s%s check passed\n", text.String(), name))
	default:
		s.write(c, "text/plain; charset=utf-8", http.StatusOK, []byte("ok"))
	}
}

func (s *Server) checkStore(ctx context.Context) error {
	_, err := s.cfg.Store.Snapshot(ctx, 0)
	return err
}
