package proxy

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/internal/innetns"
)

const httpTimeout = 5 * time.Second

// healthServers answer load balancers' questions on Services' healthCheckNodePorts: has
// this node an endpoint of the Service? (externalTrafficPolicy Local)
type healthServers struct {
	netns string
	log   *slog.Logger
	want  map[string]*healthCheck // by namespace/name

	open map[uint16]*healthServer
}

type healthCheck struct {
	port  uint16
	local int
}

type healthServer struct {
	http *http.Server
	mu   sync.Mutex
	svc  string
	n    int
}

// note takes in a Service's wish.
func (h *healthServers) note(key string, svc *corev1.Service, eps []*discoveryv1.EndpointSlice, node string) {
	if h.want == nil {
		h.want = map[string]*healthCheck{}
	}
	if !serves(svc) || svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.HealthCheckNodePort == 0 ||
		svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		delete(h.want, key)
		return
	}
	h.want[key] = &healthCheck{port: uint16(svc.Spec.HealthCheckNodePort), local: localReady(eps, node)}
}

// localReady counts the node's ready endpoint addresses.
func localReady(eps []*discoveryv1.EndpointSlice, node string) int {
	addrs := map[string]bool{}
	for _, s := range eps {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.NodeName != nil && *e.NodeName == node && (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
				addrs[e.Addresses[0]] = true
			}
		}
	}
	return len(addrs)
}

func (h *healthServers) apply() { h.sync(h.want) }

// sync makes the servers exactly those wanted.
func (h *healthServers) sync(want map[string]*healthCheck) {
	ports := map[uint16]string{}
	for key, c := range want {
		if other, taken := ports[c.port]; !taken || key < other {
			ports[c.port] = key
		}
	}
	for port, s := range h.open {
		if _, keep := ports[port]; !keep {
			_ = s.http.Close()
			delete(h.open, port)
		}
	}
	for port, key := range ports {
		s := h.open[port]
		if s == nil {
			s = &healthServer{}
			if err := h.listen(port, s); err != nil {
				h.log.Error("a Service's health check cannot be served", "service", key, "port", port, "err", err)
				continue
			}
		}
		s.mu.Lock()
		s.svc, s.n = key, want[key].local
		s.mu.Unlock()
	}
}

func (h *healthServers) listen(port uint16, s *healthServer) error {
	l, err := listen(h.netns, net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	s.http = serve(l, s)
	if h.open == nil {
		h.open = map[uint16]*healthServer{}
	}
	h.open[port] = s
	return nil
}

// ServeHTTP answers 200 if there are local endpoints, 503 if not.
func (s *healthServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	key, n := s.svc, s.n
	s.mu.Unlock()
	ns, name, _ := strings.Cut(key, "/")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(n))
	if n == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	answer := struct {
		Service struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"service"`
		LocalEndpoints      int  `json:"localEndpoints"`
		ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
	}{LocalEndpoints: n, ServiceProxyHealthy: true}
	answer.Service.Namespace, answer.Service.Name = ns, name
	_ = json.NewEncoder(w).Encode(answer)
}

// metrics are the proxy's own figures, under upstream's names.
type metrics struct {
	clock    clock.PassiveClock
	registry *prometheus.Registry
	duration prometheus.Histogram
	last     prometheus.Gauge
	failures prometheus.Counter

	mu      sync.Mutex
	updated time.Time
	healthy bool
	rounds  int
}

// synced counts the rounds that left the kernel up to date.
func (m *metrics) synced() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rounds
}

func newMetrics(c clock.PassiveClock) *metrics {
	m := &metrics{clock: c, registry: prometheus.NewRegistry(),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubeproxy_sync_proxy_rules_duration_seconds",
			Help: "How long bringing the kernel up to date took.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
			Help: "When the kernel was last brought up to date."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
			Help: "How often the kernel refused an update."}),
	}
	m.registry.MustRegister(m.duration, m.last, m.failures)
	return m
}

func (m *metrics) observe(start time.Time, failed bool) {
	now := m.clock.Now()
	m.duration.Observe(now.Sub(start).Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.healthy = !failed
	if failed {
		m.failures.Inc()
		return
	}
	m.last.Set(float64(now.UnixNano()) / 1e9)
	m.updated = now
	m.rounds++
}

// ServeHTTP is /healthz: 200 while the kernel is up to date.
func (m *metrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	updated, healthy := m.updated, m.healthy
	m.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(map[string]string{
		"lastUpdated": updated.String(), "currentTime": m.clock.Now().String()})
}

// serveHTTP opens the configured addresses and returns what closes them.
func (p *Proxy) serveHTTP() (stop func(), err error) {
	var open []*http.Server
	stop = func() {
		for _, s := range open {
			_ = s.Close()
		}
	}
	muxes := map[string]*http.ServeMux{}
	for _, r := range []struct {
		addr, path string
		handler    http.Handler
	}{
		{p.cfg.HealthzAddr, "/healthz", p.metrics},
		{p.cfg.HealthzAddr, "/livez", p.metrics},
		{p.cfg.MetricsAddr, "/metrics", promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{})},
		{p.cfg.MetricsAddr, "/proxyMode", proxyMode{}},
	} {
		if r.addr == "" {
			continue
		}
		if muxes[r.addr] == nil {
			l, err := listen(p.cfg.Netns, r.addr)
			if err != nil {
				stop()
				return nil, err
			}
			muxes[r.addr] = http.NewServeMux()
			open = append(open, serve(l, muxes[r.addr]))
		}
		muxes[r.addr].Handle(r.path, r.handler)
	}
	if mux := muxes[p.cfg.MetricsAddr]; mux != nil && p.cfg.Pages != nil {
		p.cfg.Pages.Mount(mux)
	}
	return stop, nil
}

// proxyMode answers what upstream's proxies answer on /proxyMode.
type proxyMode struct{}

// ServeHTTP implements http.Handler.
func (proxyMode) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	_, _ = w.Write([]byte("nftables"))
}

func listen(netns, addr string) (l net.Listener, err error) {
	err = innetns.Do(netns, func() error {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

func serve(l net.Listener, h http.Handler) *http.Server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: httpTimeout, ReadTimeout: httpTimeout, WriteTimeout: httpTimeout, IdleTimeout: httpTimeout}
	go func() { _ = s.Serve(l) }()
	return s
}
