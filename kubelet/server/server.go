// Package server is the node's HTTPS API on port 10250: pods, logs, exec, attach, port-forward,
// stats and metrics. Every request but none is authenticated, by client certificate or by asking the
// API server about its token, and authorized by asking the API server.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/internal/zpages"
	"github.com/skiff-project/skiff/kubelet/logs"
	"github.com/skiff-project/skiff/kubelet/podcert"
)

// Backend is what the server shows.
type Backend interface {
	// Pods lists the node's pods with their newest status.
	Pods() []*v1.Pod
	// Container finds the running container of a pod; uid "" matches any. Errors are *Error.
	Container(ctx context.Context, namespace, pod string, uid types.UID, container string) (id string, err error)
	// Sandbox finds the ready sandbox of a pod.
	Sandbox(ctx context.Context, namespace, pod string, uid types.UID) (id string, err error)
	// LogFile finds the log of a container's current or previous run and says whether it still runs.
	LogFile(namespace, pod, container string, previous bool) (path string, alive logs.Alive, err error)
	// Streams makes the runtime's streaming endpoints.
	Streams() Streams
	Summary(ctx context.Context, onlyCPUAndMemory bool) (*statsapi.Summary, error)
	ExecSync(ctx context.Context, containerID string, cmd []string, timeout time.Duration) ([]byte, error)
	Healthy() error
}

// Streams is the streaming part of the runtime service.
type Streams interface {
	Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(context.Context, *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Error is an answer with a status code.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Config of a Server.
type Config struct {
	Addr     string // host:port to listen on
	NodeName string
	Version  string
	Flags    map[string]string   // for /flagz; nil: there is none
	Metrics  prometheus.Gatherer // told after its own; or nil
	Cert     *tls.Certificate
	ClientCA *x509.CertPool // nil: client certificates identify nobody
	Client   kubernetes.Interface
	Backend  Backend
	// Certificates counts the certificates of pods for the metrics; nil: there are none.
	Certificates func() map[podcert.SignerState]int
	LogDir       string // the node's own logs, under /logs/; default /var/log
	Log          *slog.Logger
	Clock        clock.PassiveClock
}

// Server serves the node API.
type Server struct {
	cfg  Config
	auth *authority
}

// New makes a server; nothing listens before Run.
func New(cfg Config) (*Server, error) {
	if cfg.Certificates == nil {
		cfg.Certificates = func() map[podcert.SignerState]int { return nil }
	}
	if cfg.LogDir == "" {
		cfg.LogDir = "/var/log"
	}
	if cfg.Cert == nil || cfg.Client == nil || cfg.Backend == nil {
		return nil, errors.New("node API server: Cert, Client and Backend are required")
	}
	return &Server{cfg: cfg, auth: newAuthority(cfg.Client, cfg.Clock)}, nil
}

// Listen binds the address, so that a port that is taken is known before anything starts.
func (s *Server) Listen() (net.Listener, error) {
	l, err := net.Listen("tcp", s.cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the node API on %s: %w", s.cfg.Addr, err)
	}
	return l, nil
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	tlsCfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*s.cfg.Cert}}
	if s.cfg.ClientCA != nil {
		tlsCfg.ClientCAs, tlsCfg.ClientAuth = s.cfg.ClientCA, tls.VerifyClientCertIfGiven
	}
	srv := &http.Server{
		Handler: s.Handler(), TLSConfig: tlsCfg, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 90 * time.Second,
		MaxHeaderBytes: 1 << 20, ErrorLog: log.New(logWriter{s.cfg.Log}, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
		// HTTP/1.1 only: upgrades need it, and nobody here gains from more.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	err := srv.ServeTLS(l, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// logWriter brings the HTTP server's complaints (bad handshakes, mostly) to the log, quietly.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Debug("node API", "msg", string(b))
	return len(b), nil
}

// Handler is the whole API behind authentication and authorization.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	ok := func(w http.ResponseWriter, _ *http.Request) {
		if err := s.cfg.Backend.Healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "ok")
	}
	for _, p := range []string{"/healthz", "/healthz/ping", "/healthz/log", "/healthz/syncloop"} {
		mux.HandleFunc("GET "+p, ok)
	}
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /pods/", s.pods)
	mux.HandleFunc("GET /runningpods/", s.pods)
	mux.HandleFunc("GET /containerLogs/{ns}/{pod}/{container}", s.logs)
	mux.HandleFunc("GET /logs/", s.nodeLogs)
	for _, method := range []string{"GET", "POST"} {
		for _, uid := range []string{"", "/{uid}"} {
			mux.HandleFunc(method+" /exec/{ns}/{pod}"+uid+"/{container}", s.exec)
			mux.HandleFunc(method+" /attach/{ns}/{pod}"+uid+"/{container}", s.attach)
			mux.HandleFunc(method+" /portForward/{ns}/{pod}"+uid, s.portForward)
		}
	}
	mux.HandleFunc("POST /run/{ns}/{pod}/{container}", s.run)
	mux.HandleFunc("POST /run/{ns}/{pod}/{uid}/{container}", s.run)
	mux.HandleFunc("GET /stats/summary", s.summary)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /metrics/resource", s.resourceMetrics)
	mux.HandleFunc("GET /metrics/cadvisor", s.resourceMetrics)
	mux.HandleFunc("GET /metrics/probes", s.metrics)
	mux.HandleFunc("GET /configz", s.configz)
	zpages.New("kubelet", s.cfg.Version, s.cfg.Flags, "/configz", "/healthz", "/logs", "/metrics", "/pods", "/runningpods", "/stats").Mount(mux)
	return s.guard(mux)
}

// guard lets only known users do what they may.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, known, err := s.auth.authenticate(r)
		if err != nil && !errors.Is(err, auth.ErrInvalidToken) {
			s.cfg.Log.Warn("node API: cannot authenticate", "err", err)
		}
		if !known {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		allowed, reason, err := s.auth.authorize(r.Context(), user, attributes(r, s.cfg.NodeName))
		switch {
		case err != nil:
			msg := fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource=%s)", user.Name, verb(r.Method), subresources(r.URL.Path))
			s.cfg.Log.Warn(msg, "err", err)
			http.Error(w, msg, http.StatusInternalServerError)
		case !allowed:
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v) %s", user.Name, verb(r.Method), subresources(r.URL.Path), reason), http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	var e *Error
	if errors.As(err, &e) {
		code = e.Code
	}
	http.Error(w, err.Error(), code)
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := v1.PodList{}
	list.Kind, list.APIVersion = "PodList", "v1"
	for _, p := range s.cfg.Backend.Pods() {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, &list)
}

func (s *Server) configz(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{"kubeletconfig": map[string]any{"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1"}})
}

func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	only := r.URL.Query().Get("only_cpu_and_memory") == "true"
	sum, err := s.cfg.Backend.Summary(r.Context(), only)
	if err != nil {
		fail(w, err)
		return
	}
	writeJSON(w, sum)
}

func (s *Server) container(r *http.Request) (string, error) {
	return s.cfg.Backend.Container(r.Context(), r.PathValue("ns"), r.PathValue("pod"), types.UID(r.PathValue("uid")), r.PathValue("container"))
}

// on reads a stream flag of exec and attach.
func on(r *http.Request, name string) bool {
	v := r.URL.Query().Get(name)
	return v == "1" || v == "true"
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	id, err := s.container(r)
	if err != nil {
		fail(w, err)
		return
	}
	tty := on(r, "tty")
	req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: r.URL.Query()["command"], Tty: tty, Stdin: on(r, "input"),
		Stdout: on(r, "output"), Stderr: on(r, "error") && !tty}
	if !req.Stdin && !req.Stdout && !req.Stderr {
		fail(w, &Error{http.StatusBadRequest, errors.New("you must specify at least 1 of stdin, stdout, stderr")})
		return
	}
	res, err := s.cfg.Backend.Streams().Exec(r.Context(), req)
	s.stream(w, r, res.GetUrl(), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	id, err := s.container(r)
	if err != nil {
		fail(w, err)
		return
	}
	tty := on(r, "tty")
	req := &runtimeapi.AttachRequest{ContainerId: id, Tty: tty, Stdin: on(r, "input"), Stdout: on(r, "output"), Stderr: on(r, "error") && !tty}
	if !req.Stdin && !req.Stdout && !req.Stderr {
		fail(w, &Error{http.StatusBadRequest, errors.New("you must specify at least 1 of stdin, stdout, stderr")})
		return
	}
	res, err := s.cfg.Backend.Streams().Attach(r.Context(), req)
	s.stream(w, r, res.GetUrl(), err)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	id, err := s.cfg.Backend.Sandbox(r.Context(), r.PathValue("ns"), r.PathValue("pod"), types.UID(r.PathValue("uid")))
	if err != nil {
		fail(w, err)
		return
	}
	ports, err := ports(r)
	if err != nil {
		fail(w, &Error{http.StatusBadRequest, err})
		return
	}
	res, err := s.cfg.Backend.Streams().PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: ports})
	s.stream(w, r, res.GetUrl(), err)
}

// stream passes the upgrade and everything after it through to the runtime's streaming server.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, target string, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	u, err := url.Parse(target)
	if err != nil || u.Host == "" {
		fail(w, fmt.Errorf("the runtime gave an unusable streaming address %q", target))
		return
	}
	p := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL, pr.Out.Host = u, u.Host
			pr.Out.Header.Del("Authorization")
		},
		Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			s.cfg.Log.Warn("node API: streaming", "err", err)
			http.Error(w, "the container runtime's streaming server did not answer: "+err.Error(), http.StatusBadGateway)
		},
		ErrorLog: log.New(logWriter{s.cfg.Log}, "", 0),
	}
	p.ServeHTTP(w, r)
}

func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	id, err := s.container(r)
	if err != nil {
		fail(w, err)
		return
	}
	out, err := s.cfg.Backend.ExecSync(r.Context(), id, r.URL.Query()["cmd"], 0)
	if err != nil {
		fail(w, err)
		return
	}
	_, _ = w.Write(out)
}
