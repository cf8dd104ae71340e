package apiserver

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/apiserver/health"
	"github.com/skiff-project/skiff/apiserver/profiles"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/store"
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
	if s.pages.Serves(c.req.URL.Path) {
		s.pages.ServeHTTP(c.w, c.req)
		return
	}
	if c.req.Method != http.MethodGet && c.req.Method != http.MethodHead {
		s.notFoundPath(c)
		return
	}
	switch {
	case path == "":
		s.index(c)
	case s.gate.Dump(c.w, c.req.URL.Path, c.query):
	case path == "/version":
		s.serveVersion(c)
	case path == "/metrics":
		s.metrics.ServeHTTP(c.w, c.req)
	case s.health.Serve(c.w, c.req, c.query):
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
		"/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/flagz", "/healthz", "/healthz/etcd", "/healthz/ping", "/livez", "/livez/etcd", "/livez/ping",
		"/metrics", "/metrics/slis", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/readyz/etcd", "/readyz/ping", "/statusz", "/version",
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
		doc, typ = func() ([]byte, error) { return t.OpenIDConfig(s.externalAddress()) }, serviceaccount.OpenIDConfigType
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
	host := s.cfg.ExternalHost
	_, err := netip.ParseAddr(host)
	switch {
	case err != nil && strings.Contains(host, ":"):
		return host // with its port
	case host != "":
		return net.JoinHostPort(host, strconv.Itoa(int(s.advertisedPort())))
	case s.cfg.AdvertiseAddress.IsValid():
		return s.endpointAddress()
	}
	return ""
}

// healthChecks are under upstream's names, as far as what they are about is here.
func (s *Server) healthChecks() *health.Health {
	etcd := func() error { return s.checkStore(s.background()) }
	checks := []health.Check{{Name: "ping", OK: health.Fine}, {Name: "log", OK: health.Fine}, {Name: "etcd", OK: etcd}}
	for _, hook := range []string{"start-system-namespaces-controller", "start-cluster-authentication-info-controller", "rbac/bootstrap-roles",
		"scheduling/bootstrap-system-priority-classes", "priority-and-fairness-config-producer", "bootstrap-controller"} {
		checks = append(checks, health.Check{Name: "poststarthook/" + hook, OK: health.Once(s.poststart.Load)})
	}
	if s.aggregator != nil {
		checks = append(checks, health.Check{Name: "autoregister-completion", OK: s.aggregator.Registered})
	}
	if s.cfg.Encryption.UsesKMS() {
		checks = append(checks, health.Check{Name: "kms-providers", OK: s.cfg.Encryption.Health})
	}
	began := s.cfg.Clock.Now()
	ready := []health.Check{{Name: "etcd-readiness", OK: etcd}}
	for i, st := range registry.Stores(s.cfg.Store)[1:] {
		other := func() error { return reachable(s.background(), st) }
		checks = append(checks, health.Check{Name: fmt.Sprintf("etcd-override-%d", i), OK: other})
		ready = append(ready, health.Check{Name: fmt.Sprintf("etcd-override-readiness-%d", i), OK: other})
	}
	starting := func() bool { return s.cfg.Clock.Since(began) < s.cfg.LivezGrace }
	return health.New(checks, append(ready, health.Check{Name: "informer-sync", OK: health.Fine}, health.Check{Name: "shutdown", OK: func() error {
		if s.shutdown.Begun() {
			return errors.New("process is shutting down")
		}
		return nil
	}}), starting)
}

func (s *Server) checkStore(ctx context.Context) error { return reachable(ctx, s.cfg.Store) }

func reachable(ctx context.Context, st store.Store) error {
	_, err := st.Snapshot(ctx, 0)
	return err
}
