// Package apiserver is the Kubernetes API server: authentication,
// authorization, admission, the resources' strategies and the store behind
// one http.Handler, with upstream v1.37's behaviour, texts and wire formats.
//
// A request passes, in this order: request info, panic recovery, logging,
// authentication, the bound on requests in flight, authorization, routing,
// and then the handler of its verb. Objects are kept as the bytes they were
// written in; GET, LIST and WATCH in protobuf copy them without decoding.
package apiserver

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/aggregator"
	"github.com/skiff-project/skiff/apiserver/alloc"
	"github.com/skiff-project/skiff/apiserver/audit"
	"github.com/skiff-project/skiff/apiserver/componentstatus"
	"github.com/skiff-project/skiff/apiserver/connect"
	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/apiserver/fairness"
	"github.com/skiff-project/skiff/apiserver/front"
	"github.com/skiff-project/skiff/apiserver/health"
	"github.com/skiff-project/skiff/apiserver/identity"
	"github.com/skiff-project/skiff/apiserver/impersonation"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/apiserver/openapidoc"
	"github.com/skiff-project/skiff/apiserver/peers"
	admissionpolicy "github.com/skiff-project/skiff/apiserver/policy"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/shutdown"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac/policy"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/internal/zpages"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/transcode"
	"github.com/skiff-project/skiff/store"
)

// Config makes a Server.
type Config struct {
	// Store is the database; required. Its Decorate function must be
	// registry.Decorate. The server does not close it.
	Store store.Store
	// SharedStore says that other API servers, upstream's too, may be at work
	// on the same store: each announces itself there, and the kubernetes
	// Service has them all as endpoints.
	SharedStore bool
	// Encryption of stored objects; nil: none. The caller closes it.
	Encryption *encryption.Set
	// Resources are the served resources; required (all.Resources()).
	Resources []*api.Resource

	// Listener accepts TLS connections; nil: Run listens on Address.
	Listener net.Listener
	// Address to listen on; default "0.0.0.0:6443".
	Address string
	// TLS holds the serving certificate; nil: Run serves no network, only the
	// in-process transport. Client certificates are asked for, not required;
	// Authenticator checks them.
	TLS *tls.Config
	// ClientCA and RequestHeaderCA (PEM) are published in
	// kube-system/extension-apiserver-authentication; empty: not published.
	ClientCA, RequestHeaderCA []byte
	// RequestHeaderNames (front-proxy client names) are published beside it.
	RequestHeaderNames []string

	// Authenticator finds the user of a network request; nil: only the
	// in-process transport can authenticate. Wrap it with auth.Server.
	Authenticator auth.Authenticator
	// Tokens answers TokenReviews; nil: they fail.
	Tokens auth.TokenAuthenticator
	// ServiceAccounts issues tokens and publishes their keys; nil: those endpoints answer 404.
	ServiceAccounts *serviceaccount.Tokens
	// Authorizer decides; required.
	Authorizer auth.Authorizer
	// Rules answers SelfSubjectRulesReviews (rbac.Authorizer does); nil: they are incomplete.
	Rules RuleReviewer
	// OwnHealth is how components of this process are, for ComponentStatuses; nil: all are asked at upstream's ports.
	OwnHealth func(component string) (health string, here bool)
	// Audit records requests; nil: none. The caller closes it.
	Audit *audit.Auditor
	// Admission plugins in order; default none. plugins.All is the usual list.
	Admission []admission.Plugin
	// Policy is the RBAC bootstrap policy reconciled after start; nil: none. policy.Bootstrap() is the usual one.
	Policy *policy.Policy

	// KubeletTLS is the client TLS the server speaks to kubelets with; nil:
	// log, exec, attach and portforward fail with an explanation.
	KubeletTLS *tls.Config
	// FrontProxy is the client certificate aggregated servers believe who the user is by; nil: none is shown.
	FrontProxy func() *tls.Certificate
	// ClusterIPRouting sends what is for a Service to its cluster IP, which the machine must route. Else one of its endpoints gets it.
	ClusterIPRouting bool
	// Dial opens connections for the proxies; default net.Dialer. Network namespaces of nodes are its business.
	Dial connect.DialFunc

	// ServiceCIDR is where cluster IPs come from; default 10.96.0.0/12.
	ServiceCIDR netip.Prefix
	// AdvertiseAddress and AdvertisePort are the endpoint of the kubernetes
	// Service; invalid address: the Service has no endpoints.
	AdvertiseAddress netip.Addr
	AdvertisePort    int

	// Version is what /version says; default v1.37.2.
	Version version.Info
	Tuning
	// MaxLongRunning bounds concurrent watches and streams; default 100,000.
	MaxLongRunning int
	// BookmarkInterval between bookmarks on an idle watch; default 1 min.
	BookmarkInterval time.Duration

	Log   *slog.Logger // default: discard
	Clock clock.WithTickerAndDelayedExecution
}

// Tuning is what an operator may set of any server; zero values mean the default.
type Tuning struct {
	// Limits are how many requests are worked on at once.
	Limits Limits
	// NodePorts is the NodePort range, both ends included; default 30000–32767.
	NodePorts alloc.PortRange
	// EventTTL is how long events are kept, at least a second; default 1 h.
	EventTTL time.Duration
	// RequestTimeout bounds requests that are not long-running; default 60 s.
	RequestTimeout time.Duration
	// MinWatchTimeout is the shortest a watch without timeoutSeconds lasts; default 30 min (up to twice that, random).
	MinWatchTimeout time.Duration
	// CompactionInterval between compactions of the store, which keep at least
	// that much history; default 5 min; negative: there are none.
	CompactionInterval time.Duration
	// ExternalHost is what others know the server by, with or without a port: issuers of tokens are found there.
	// Default AdvertiseAddress.
	ExternalHost string
	// NoEndpoints leaves the endpoints of the kubernetes Service to others.
	NoEndpoints bool
	// KubeletAddresses are the kinds of addresses that kubelets are reached at, the preferred first; default InternalIP, ExternalIP, Hostname.
	KubeletAddresses []corev1.NodeAddressType
	// ShutdownGrace is how long Run waits for requests in flight after its context ends; default 5 s.
	ShutdownGrace time.Duration
	// Shutdown is what comes before that; default nothing.
	Shutdown shutdown.Options
	// LivezGrace is how long after New /livez passes although the start is not finished; default not at all.
	LivezGrace time.Duration
	// MaxStreams bounds the requests of one HTTP/2 connection at a time; default 1000. NoHTTP2: there are none.
	MaxStreams int
	NoHTTP2    bool
	// Front is for browsers; default nothing.
	Front front.Options
	// Profiling serves Go's profiles of the process at /debug/pprof/.
	Profiling bool
	// Flags are what /flagz tells: those of the command line, with their values.
	Flags map[string]string
}

// Limits are fairness.Limits.
type Limits = fairness.Limits

// RuleReviewer lists what a user may do in a namespace.
type RuleReviewer interface {
	ReviewRules(user auth.User, namespace string) authorizationv1.SubjectRulesReviewStatus
}

// MaxBody bounds request bodies, in bytes.
const MaxBody = 3 * 1024 * 1024

func (c *Config) setDefaults() error {
	if c.Store == nil || len(c.Resources) == 0 || c.Authorizer == nil {
		return errors.New("apiserver: Store, Resources and Authorizer are required")
	}
	api.SetIfEmpty(&c.Address, "0.0.0.0:6443")
	api.SetIfEmpty(&c.Limits.ReadOnly, 400)
	api.SetIfEmpty(&c.Limits.Mutating, 200)
	api.SetIfEmpty(&c.MaxLongRunning, 100_000)
	api.SetIfEmpty(&c.MaxStreams, 1000)
	api.SetIfEmpty(&c.EventTTL, time.Hour)
	api.SetIfEmpty(&c.RequestTimeout, time.Minute)
	api.SetIfEmpty(&c.MinWatchTimeout, 30*time.Minute)
	api.SetIfEmpty(&c.BookmarkInterval, time.Minute)
	api.SetIfEmpty(&c.CompactionInterval, 5*time.Minute)
	if len(c.KubeletAddresses) == 0 {
		c.KubeletAddresses = []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName}
	}
	api.SetIfEmpty(&c.ShutdownGrace, 5*time.Second)
	api.SetIfEmpty(&c.ServiceCIDR, netip.MustParsePrefix("10.96.0.0/12"))
	api.SetIfEmpty(&c.NodePorts, alloc.PortRange{First: 30000, Last: 32767})
	if c.Version.GitVersion == "" {
		c.Version = version.Info{
			Major: "1", Minor: "37", GitVersion: "v1.37.2", GitTreeState: "clean", Compiler: "gc",
			EmulationMajor: "1", EmulationMinor: "37", MinCompatibilityMajor: "1", MinCompatibilityMinor: "36",
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	return nil
}

// Server is an API server.
type Server struct {
	cfg        Config
	codec      *codec.Codec
	plans      transcode.Plans
	endpoints  map[string]*endpoint // by group/version/resource
	stores     map[string]*endpoint // by group/resource: the one with the stored version
	customs    customs
	aggregator *aggregator.Aggregator // nil: APIServices are not served
	reader     *Reader
	services   alloc.Services
	managed    *managed.Fields
	openapi    openapidoc.Cache
	proxy      *connect.Proxy
	routes     connect.Routes
	metrics    *metrics.Metrics
	health     *health.Health
	servers    *peers.Servers
	components componentstatus.Checks

	identity      *identity.Identity
	impersonation *impersonation.Impersonation
	shutdown      *shutdown.Shutdown
	admission     *admission.Chain
	storage       *metrics.Storage

	pages     *zpages.Pages
	gate      *fairness.Gate
	stopping  chan struct{} // closed when watches must end
	ready     atomic.Bool
	poststart atomic.Bool
}

// New returns a server; it reads the store once, and notes there which node
// ports Services have.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, codec: codec.New(scheme.Scheme),
		stopping: make(chan struct{}),
	}
	s.servers = &peers.Servers{
		Store: cfg.Store, Own: cfg.AdvertiseAddress.Unmap(), Changed: s.ensureEndpoints, Clock: cfg.Clock, Log: cfg.Log, Grace: cfg.ShutdownGrace,
	}
	s.components = componentstatus.Of(cfg.OwnHealth, s.checkStore)
	s.impersonation = impersonation.New(cfg.Authorizer)
	s.shutdown = shutdown.New(cfg.Shutdown, cfg.Clock)
	s.gate = fairness.NewGate(cfg.Limits, cfg.MaxLongRunning, cfg.Clock)
	s.proxy = &connect.Proxy{Dial: cfg.Dial, Log: cfg.Log, Stopping: s.stopping}
	s.managed = managed.New()
	s.storage, s.services.Counters = metrics.NewStorage(), alloc.NewCounters()
	s.admission = admission.NewChain(cfg.Admission)
	s.metrics = metrics.New(registry.Stores(cfg.Store), slices.Concat([]prometheus.Collector{metrics.Objects(s.countObjects), s.admission, s.storage, &s.services}, metrics.BuildInfo(cfg.Version), s.gate.Collectors(), s.impersonation.Collectors(), cfg.Audit.Collectors(), metrics.Collectors(cfg.Admission), metrics.Collectors([]auth.Authorizer{cfg.Authorizer}))...)
	err := s.buildEndpoints()
	if err != nil {
		return nil, err
	}
	if s.reader, err = NewReader(cfg.Store, cfg.Resources, cfg.Encryption); err != nil {
		return nil, err
	}
	s.routes = connect.Routes{Reader: s.reader, ClusterIP: cfg.ClusterIPRouting}
	s.openDefinitions()
	if err = s.openAggregator(); err != nil {
		return nil, err
	}
	s.health = s.healthChecks()
	if cfg.Flags == nil {
		cfg.Flags = map[string]string{}
	}
	s.pages = zpages.New("apiserver", cfg.Version.GitVersion, cfg.Flags, "/healthz", "/livez", "/metrics", "/readyz", "/version")
	for _, p := range cfg.Admission {
		if p, ok := p.(admissionpolicy.Plugin); ok {
			p.Serve(kinds{s})
		}
	}
	if err := s.openIdentity(); err != nil {
		return nil, err
	}
	return s, s.openAllocator()
}

// openIdentity makes what the server shows of itself, and has the use of legacy tokens noted.
func (s *Server) openIdentity() error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("the API server's own Lease is named after the host: %w", err)
	}
	peers := ""
	if s.cfg.AdvertiseAddress.IsValid() {
		peers = netip.AddrPortFrom(s.cfg.AdvertiseAddress, uint16(s.advertisedPort())).String()
	}
	s.identity, err = identity.New(identity.Config{
		Client:   s.InProcess(auth.User{Name: "system:apiserver", Groups: []string{auth.GroupMasters, auth.GroupAuthenticated}}),
		Hostname: host, Peers: peers, Shared: s.cfg.SharedStore, Clock: s.cfg.Clock, Log: s.cfg.Log,
	})
	if err == nil && s.cfg.ServiceAccounts != nil {
		s.cfg.ServiceAccounts.NoteUse(s.identity.TokenUsed)
	}
	return err
}

// Reader reads stored objects for authorizers and admission plugins.
type Reader = registry.Reader

// NewReader returns a reader over the store and its encryption (nil: none); resources without storage are left out.
func NewReader(s store.Store, resources []*api.Resource, enc *encryption.Set) (*Reader, error) {
	return registry.NewReader(s, resources, enc)
}

// Reader reads stored objects; admission plugins and authorizers use it.
func (s *Server) Reader() *Reader { return s.reader }
