package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"

	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/requestheader"
	certauth "github.com/skiff-project/skiff/auth/x509"
	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/internal/zpages"
)

// Serving is how a component that runs by itself serves its health and its
// metrics, over TLS: health to everybody, the rest to whom the API server
// says may have it.
type Serving struct {
	Address string // host:port; "": nothing is served
	// CertFile and KeyFile are what it shows clients, read at each handshake.
	// Default: made anew.
	CertFile, KeyFile string
	MinTLS            uint16   // default TLS 1.2
	CipherSuites      []uint16 // default Go's
	// ClientCAFile signs client certificates. Default: what the API server
	// publishes in kube-system/extension-apiserver-authentication, unless
	// SkipLookup is set.
	ClientCAFile string
	SkipLookup   bool
	// RequestHeaderCAFile, if set, signs front proxies, which RequestHeader
	// says the headers of.
	RequestHeaderCAFile string
	RequestHeader       requestheader.Config
	// Authentication and Authorization are kubeconfigs of whom tokens and
	// users are reviewed as. Default: tokens identify nobody, and only
	// system:masters may have more than AlwaysAllow.
	Authentication, Authorization string
	// AlwaysAllow are the paths everybody may get. Default: /healthz, /livez
	// and /readyz.
	AlwaysAllow []string
}

// watched is what a component shows of itself.
type watched struct {
	registry *prometheus.Registry
	pages    *zpages.Pages // or nil
	mu       sync.Mutex
	checks   []healthCheck
}

type healthCheck struct {
	name string
	err  func() error
}

func newWatched() *watched {
	w := &watched{registry: prometheus.NewRegistry()}
	w.registry.MustRegister(append(metrics.BuildInfo(versionInfo()), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))...)
	w.check("ping", func() error { return nil })
	return w
}

// check adds a named condition of health.
func (w *watched) check(name string, err func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checks = append(w.checks, healthCheck{name, err})
}

// ServeHTTP answers /healthz, /livez and /readyz as upstream's components do.
func (w *watched) ServeHTTP(out http.ResponseWriter, req *http.Request) {
	w.mu.Lock()
	checks := slices.Clone(w.checks)
	w.mu.Unlock()
	name := strings.Trim(req.URL.Path, "/")
	var text strings.Builder
	failed := false
	for _, c := range checks {
		if err := c.err(); err != nil {
			failed = true
			fmt.Fprintf(&text, "[-]%s failed: %v\n", c.name, err)
		} else {
			fmt.Fprintf(&text, "[+]%s ok\n", c.name)
		}
	}
	out.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case failed:
		out.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(out, "%s%s check failed\n", &text, name)
	case req.URL.Query().Has("verbose"):
		fmt.Fprintf(out, "%s%s check passed\n", &text, name)
	default:
		io.WriteString(out, "ok")
	}
}

// mux is what is served of w.
func (w *watched) mux() *http.ServeMux {
	mux := http.NewServeMux()
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		mux.Handle(path, w)
	}
	mux.Handle("/metrics", promhttp.HandlerFor(w.registry, promhttp.HandlerOpts{}))
	if w.pages != nil {
		w.pages.Mount(mux)
	}
	return mux
}

// startServing opens the port and serves w until the cluster's servers end.
func (c *Cluster) startServing(s Serving, name string, w *watched) error {
	if s.Address == "" {
		return nil
	}
	d, err := newDelegate(s, c.log)
	if err != nil {
		return err
	}
	conf, err := s.tls(name)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", s.Address)
	if err != nil {
		return err
	}
	c.log.Info("serving health and metrics", "address", l.Addr())
	c.serve("secure port", tls.NewListener(l, conf), d.guard(w.mux()))
	return nil
}

// serve answers on l until the cluster's servers end.
func (c *Cluster) serve(name string, l net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		IdleTimeout: 90 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	c.start(c.servers, name, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { srv.Close() })()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

func (s Serving) tls(name string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: max(s.MinTLS, tls.VersionTLS12), CipherSuites: s.CipherSuites, ClientAuth: tls.RequestClientCert}
	if s.CertFile == "" {
		pair, err := bootstrap.SelfSigned(name)
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{pair.TLS()}
		return conf, nil
	}
	load := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		return &pair, err
	}
	if _, err := load(nil); err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	conf.GetCertificate = load
	return conf, nil
}

// delegate decides who may see what by asking the API server.
type delegate struct {
	serving       Serving
	authenticator auth.Authenticator
	tokens        kubernetes.Interface // reviews tokens and holds the client CA; nil: none
	access        kubernetes.Interface // reviews access; nil: none
	log           *slog.Logger

	mu     sync.Mutex
	pool   *x509.CertPool // looked up
	looked time.Time
}

// lookupEvery bounds how old a looked-up client CA is.
const lookupEvery = time.Minute

// reviewTimeout bounds one question to the API server.
const reviewTimeout = 10 * time.Second

func newDelegate(s Serving, log *slog.Logger) (*delegate, error) {
	d := &delegate{serving: s, log: log}
	var list []auth.Authenticator
	for _, k := range []struct {
		file string
		dst  *kubernetes.Interface
	}{{s.Authentication, &d.tokens}, {s.Authorization, &d.access}} {
		if k.file == "" {
			continue
		}
		cfg, err := Connection{Kubeconfig: k.file, QPS: 20, Burst: 40}.config("")
		if err != nil {
			return nil, err
		}
		cfg.Timeout = reviewTimeout
		if *k.dst, err = kubernetes.NewForConfig(cfg); err != nil {
			return nil, err
		}
	}
	if s.RequestHeaderCAFile != "" {
		pool, err := cert.NewPool(s.RequestHeaderCAFile)
		if err != nil {
			return nil, fmt.Errorf("request header CA: %w", err)
		}
		s.RequestHeader.Pool = certauth.Static(pool)
		front, err := requestheader.New(s.RequestHeader)
		if err != nil {
			return nil, err
		}
		list = append(list, front)
	}
	if s.ClientCAFile != "" {
		var err error
		if d.pool, err = cert.NewPool(s.ClientCAFile); err != nil {
			return nil, fmt.Errorf("client CA: %w", err)
		}
	}
	d.authenticator = auth.Server(auth.HealthPaths, append(list, certauth.New(d.clientCA, nil), auth.Bearer(d))...)
	return d, nil
}

// clientCA is whose client certificates are good.
func (d *delegate) clientCA() *x509.CertPool {
	if d.serving.ClientCAFile != "" || d.serving.SkipLookup || d.tokens == nil {
		return d.pool
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.looked) < lookupEvery {
		return d.pool
	}
	ctx, cancel := context.WithTimeout(context.Background(), reviewTimeout)
	defer cancel()
	cm, err := d.tokens.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		d.log.Warn("the authority of client certificates cannot be read; the last one known stays", "err", err)
		return d.pool
	}
	pool := x509.NewCertPool()
	if pool.AppendCertsFromPEM([]byte(cm.Data["client-ca-file"])) {
		d.pool = pool
	}
	d.looked = time.Now()
	return d.pool
}

// AuthenticateToken implements auth.TokenAuthenticator by a TokenReview.
func (d *delegate) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	if d.tokens == nil {
		return auth.Identity{}, false, nil
	}
	res, err := d.tokens.AuthenticationV1().TokenReviews().Create(ctx, &authnv1.TokenReview{
		Spec: authnv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{})
	if err != nil || !res.Status.Authenticated {
		return auth.Identity{}, false, err
	}
	return auth.Identity{User: auth.UserOf(res.Status.User), Audiences: res.Status.Audiences}, true, nil
}

// allowed says whether the API server lets a user have a path.
func (d *delegate) allowed(ctx context.Context, u auth.User, verb, path string) (bool, error) {
	if slices.Contains(u.Groups, auth.GroupMasters) {
		return true, nil
	}
	if d.access == nil {
		return false, nil
	}
	extra := map[string]authzv1.ExtraValue{}
	for k, v := range u.Extra {
		extra[k] = v
	}
	res, err := d.access.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authzv1.SubjectAccessReview{Spec: authzv1.SubjectAccessReviewSpec{
		User: u.Name, UID: u.UID, Groups: u.Groups, Extra: extra,
		NonResourceAttributes: &authzv1.NonResourceAttributes{Path: path, Verb: verb},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return res.Status.Allowed, nil
}

// guard lets through to h who may.
func (d *delegate) guard(h http.Handler) http.Handler {
	always := d.serving.AlwaysAllow
	if len(always) == 0 {
		always = []string{"/healthz", "/livez", "/readyz"}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		id, known, err := d.authenticator.Authenticate(req)
		if err != nil {
			d.log.Debug("unable to authenticate the request", "err", err)
			refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "Unauthorized")
			return
		}
		if !known {
			id.User = auth.User{Name: auth.UserAnonymous, Groups: []string{auth.GroupUnauthenticated}}
		}
		verb, path := strings.ToLower(req.Method), req.URL.Path
		ok := slices.Contains(always, path)
		if !ok {
			if ok, err = d.allowed(req.Context(), id.User, verb, path); err != nil {
				refuse(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, "ask whether this is allowed: "+err.Error())
				return
			}
		}
		if !ok {
			refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, fmt.Sprintf("forbidden: User %q cannot %s path %q", id.User.Name, verb, path))
			return
		}
		h.ServeHTTP(w, req)
	})
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status: metav1.StatusFailure, Message: message, Reason: reason, Code: int32(code)})
}
