// Package metrics counts what the API server does, under upstream's names.
package metrics

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skiff-project/skiff/store"
)

// Metrics are the API server's own.
type Metrics struct {
	Registry   *prometheus.Registry // of all
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	own        *prometheus.HistogramVec
	sizes      *prometheus.HistogramVec
	streams    *prometheus.GaugeVec
	deprecated *prometheus.GaugeVec
	listed     *prometheus.HistogramVec
	handler    http.Handler
	access     *access
	known      sync.Map // of key: *series, which are as many as those of the vectors
}

// key is what a request is counted under, and series are its counters: to find
// them by so many labels takes longer than to count.
type key struct {
	Request
	code int
}

type series struct {
	requests            prometheus.Counter
	duration, own, size prometheus.Observer // nil: it is not measured
}

// New registers the metrics, and those of others.
func New(stores []store.Store, more ...prometheus.Collector) *Metrics {
	labels := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total",
			Help: "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
		}, append(labels, "dry_run", "code")),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_duration_seconds",
			Help:    "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
			Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, append(labels, "dry_run")),
		own: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_sli_duration_seconds",
			Help: "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each " +
				"verb, group, version, resource, subresource, scope and component.",
			Buckets: []float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, labels),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_response_sizes",
			Help:    "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.",
			Buckets: prometheus.ExponentialBuckets(1000, 10, 7),
		}, labels),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests",
			Help: "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.",
		}, labels),
		deprecated: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_requested_deprecated_apis",
			Help: "Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release.",
		}, []string{"group", "version", "resource", "subresource", "removed_release"}),
	}
	m.listed = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "apiserver_watch_list_duration_seconds",
		Help:    "Response latency distribution in seconds for watch list requests broken by group, version, resource and scope.",
		Buckets: []float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300},
	}, []string{"group", "version", "resource", "scope"})
	m.Registry.MustRegister(
		m.listed, m.requests, m.duration, m.own, m.sizes, m.streams, m.deprecated,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	for i, st := range stores {
		m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_storage_size_bytes", Help: "Size of the storage database file physically allocated in bytes.",
			ConstLabels: prometheus.Labels{"storage_cluster_id": fmt.Sprintf("etcd-%d", i)},
		}, func() float64 { return float64(st.Status().SizeBytes) }))
	}
	m.access = newAccess()
	m.Registry.MustRegister(m.access.collectors()...)
	m.Registry.MustRegister(more...)
	m.handler = promhttp.HandlerFor(prometheus.Gatherers{m.Registry, expressions()}, promhttp.HandlerOpts{})
	return m
}

// Collectors are those of a list that have metrics.
func Collectors[T any](list []T) (out []prometheus.Collector) {
	for _, x := range list {
		if c, ok := any(x).(prometheus.Collector); ok {
			out = append(out, c)
		}
	}
	return out
}

// ServeHTTP answers /metrics.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, req *http.Request) { m.handler.ServeHTTP(w, req) }

// Request is what one request is counted under. Everything in it comes from
// the resource list, never from the client, so that the number of series is
// bounded; empty fields mean no resource.
type Request struct {
	Verb                                  string // as authorized: get, list, …
	Group, Version, Resource, Subresource string
	Named, Namespaced                     bool
	Apply, DryRun                         bool
}

// scope is how much the request is about.
func (r *Request) scope() string {
	switch {
	case r.Resource == "":
		return ""
	case r.Named || r.Verb == "create":
		return "resource"
	case r.Namespaced:
		return "namespace"
	}
	return "cluster"
}

func (r *Request) verb() string {
	switch verb := metricVerbs[r.Verb]; {
	case r.Resource == "" || verb == "":
		return "other"
	case r.Apply:
		return "APPLY"
	default:
		return verb
	}
}

// values are the labels of all vectors, in their order; there is room for more.
func (r *Request) values() []string {
	return append(make([]string, 0, 9), r.verb(), r.Group, r.Version, r.Resource, r.Subresource, r.scope(), "apiserver")
}

// Observe counts one request, which took so long and waited so much of that for
// others, and whose answer was of so many bytes.
func (m *Metrics) Observe(r Request, code int, took, waited time.Duration, size int64) {
	k := key{r, code}
	have, ok := m.known.Load(k)
	if !ok {
		have, _ = m.known.LoadOrStore(k, m.series(k))
	}
	s := have.(*series)
	s.requests.Inc()
	if s.duration != nil {
		s.duration.Observe(took.Seconds())
	}
	if s.own != nil {
		s.own.Observe((took - waited).Seconds())
	}
	if s.size != nil {
		s.size.Observe(float64(size))
	}
}

func (m *Metrics) series(k key) *series {
	labels, dry := k.values(), ""
	if k.DryRun {
		dry = "All"
	}
	s := &series{requests: m.requests.WithLabelValues(append(labels, dry, strconv.Itoa(k.code))...)}
	if k.Verb != "watch" {
		s.duration = m.duration.WithLabelValues(append(labels, dry)...)
		if !k.DryRun {
			s.own = m.own.WithLabelValues(labels...)
		}
	}
	if k.Verb == "get" || k.Verb == "list" {
		s.size = m.sizes.WithLabelValues(labels...)
	}
	return s
}

// Stream counts a request that takes as long as its client likes, until the returned function is called.
func (m *Metrics) Stream(r Request) (ended func()) {
	g := m.streams.WithLabelValues(r.values()...)
	g.Inc()
	return g.Dec
}

// Listed counts a watch that has sent, after so long, what there was when it began.
func (m *Metrics) Listed(r Request, took time.Duration) {
	m.listed.WithLabelValues(r.Group, r.Version, r.Resource, r.scope()).Observe(took.Seconds())
}

// Deprecated remembers that something was asked for that is deprecated, with no release that removes it yet.
func (m *Metrics) Deprecated(r Request) {
	m.deprecated.WithLabelValues(r.Group, r.Version, r.Resource, r.Subresource, "").Set(1)
}

var metricVerbs = map[string]string{
	"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETECOLLECTION",
}
