package apiserver

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the server's own, under upstream's names.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	handler  http.Handler
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total",
			Help: "Counter of apiserver requests broken out for each verb, group, version, resource, scope and HTTP response code.",
		}, []string{"verb", "group", "version", "resource", "subresource", "scope", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_duration_seconds",
			Help:    "Response latency distribution in seconds for each verb, group, version, resource and scope.",
			Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 10, 30, 60},
		}, []string{"verb", "group", "version", "resource", "scope"}),
	}
	inflight := func(kind string, slots chan struct{}) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_current_inflight_requests", Help: "Requests being served now.", ConstLabels: prometheus.Labels{"request_kind": kind},
		}, func() float64 { return float64(len(slots)) })
	}
	store := func(name, help string, value func() int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	m.registry.MustRegister(
		m.requests, m.duration, inflight("readOnly", s.inFlight), inflight("longRunning", s.longRunning),
		store("apiserver_storage_size_bytes", "Size of the storage database file in bytes.", func() int64 { return s.cfg.Store.Status().SizeBytes }),
		store("apiserver_storage_objects", "Number of stored objects.", func() int64 { return s.cfg.Store.Status().Keys }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	return m
}

func (m *metrics) serve(c *call) { m.handler.ServeHTTP(c.w, c.req) }

// observe counts one request. Names come from the resource list, never from
// the client, so that the number of series is bounded.
func (m *metrics) observe(c *call, code int, took time.Duration) {
	verb, group, version, resource, sub, scope := "", "", "", "", "", ""
	if c.ep != nil {
		group, version, resource = c.ep.kind.Group, c.ep.kind.Version, c.ep.res.Name
		verb, scope = metricVerbs[c.info.Verb], metricScope(c)
		if c.ep.subs[c.info.Subresource] != nil {
			sub = c.info.Subresource
		}
	}
	if verb == "" {
		verb = "other"
	}
	m.requests.WithLabelValues(verb, group, version, resource, sub, scope, strconv.Itoa(code)).Inc()
	if verb != "WATCH" {
		m.duration.WithLabelValues(verb, group, version, resource, scope).Observe(took.Seconds())
	}
}

var metricVerbs = map[string]string{
	"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETECOLLECTION",
}

func metricScope(c *call) string {
	switch {
	case c.info.Name != "":
		return "resource"
	case c.info.Namespace != "":
		return "namespace"
	}
	return "cluster"
}
