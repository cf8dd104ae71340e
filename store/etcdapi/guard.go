package etcdapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// secureConn is the key of a connection's *tls.Conn in its context.
type secureConn struct{}

// withTLS notes the TLS of a connection that the listener has ended already.
func withTLS(ctx context.Context, conn net.Conn) context.Context {
	if r, ok := conn.(*replayed); ok {
		if secure, ok := r.Conn.(*tls.Conn); ok {
			return context.WithValue(ctx, secureConn{}, secure)
		}
	}
	return ctx
}

// guard is what every HTTP request of a client meets first, as in etcd: the
// host it asks for, and the origins that browsers may ask from.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rest, ok := strings.CutPrefix(r.URL.Path, "/v3beta/"); ok {
			r.URL.Path = "/v3/" + rest
		}
		secure, _ := r.Context().Value(secureConn{}).(*tls.Conn)
		switch {
		case secure == nil:
			host, _, err := net.SplitHostPort(r.Host)
			if err != nil {
				host = r.Host
			}
			if !allows(s.cfg.Hosts, host) {
				http.Error(w, fmt.Sprintf(unknownHost, host), http.StatusMisdirectedRequest)
				return
			}
		case s.access.on.Load() && strings.HasPrefix(r.URL.Path, "/v3/"):
			if chains := secure.ConnectionState().VerifiedChains; len(chains) > 0 && chains[0][0].Subject.CommonName != "" {
				http.Error(w, "CommonName of client sending a request against gateway will be ignored and not used as expected", http.StatusBadRequest)
				return
			}
		}
		origin := r.Header.Get("Origin")
		if allows(s.cfg.Origins, "*") {
			origin = "*"
		}
		if origin == "*" || allows(s.cfg.Origins, origin) {
			h := w.Header()
			h.Set("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Headers", "accept, content-type, authorization")
		}
		if r.Method == http.MethodOptions {
			return
		}
		next.ServeHTTP(w, r)
	})
}

// allows reports whether a list that may be empty, for all, has a name.
func allows(list []string, name string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, name)
}

const unknownHost = `
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist %q

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
`
