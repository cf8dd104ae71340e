// Package metrics counts what the API server does, under upstream's names.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skiff-project/skiff/store"
)

// Metrics are the API server's own.
type Metrics struct {
	Registry *prometheus.Registry // of all
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	handler  http.Handler
}

// New registers the metrics, and those of others.
func New(st store.Store, more ...prometheus.Collector) *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
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
	gauge := func(name, help string, value func() int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	m.Registry.MustRegister(
		m.requests, m.duration,
		gauge("apiserver_storage_size_bytes", "Size of the storage database file in bytes.", func() int64 { return st.Status().SizeBytes }),
		gauge("apiserver_storage_objects", "Number of stored objects.", func() int64 { return st.Status().Keys }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.Registry.MustRegister(more...)
	m.handler = promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{})
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
}

// Observe counts one request.
func (m *Metrics) Observe(r Request, code int, took time.Duration) {
	verb, scope := metricVerbs[r.Verb], "cluster"
	switch {
	case r.Resource == "":
		verb, scope = "other", ""
	case r.Named:
		scope = "resource"
	case r.Namespaced:
		scope = "namespace"
	}
	if verb == "" {
		verb = "other"
	}
	m.requests.WithLabelValues(verb, r.Group, r.Version, r.Resource, r.Subresource, scope, strconv.Itoa(code)).Inc()
	if verb != "WATCH" {
		m.duration.WithLabelValues(verb, r.Group, r.Version, r.Resource, scope).Observe(took.Seconds())
	}
}

var metricVerbs = map[string]string{
	"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETECOLLECTION",
}
