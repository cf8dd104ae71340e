package tokencache

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count, under upstream's names, what caches are asked. A nil one does not.
type Metrics struct {
	took     *prometheus.HistogramVec
	requests *prometheus.CounterVec
	fetches  *prometheus.CounterVec
	active   *prometheus.GaugeVec
}

// NewMetrics returns metrics that have counted nothing.
func NewMetrics() *Metrics {
	const prefix = "authentication_token_cache_"
	labels := []string{"status"}
	return &Metrics{
		took:     prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + "request_duration_seconds"}, labels),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "request_total"}, labels),
		fetches:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "fetch_total"}, labels),
		active:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "active_fetch_count"}, labels),
	}
}

// Collectors are what is to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.took, m.requests, m.fetches, m.active}
}

// asked counts a question that began at a time and was answered from what is known, or not.
func (m *Metrics) asked(began time.Time, known bool) {
	if m == nil {
		return
	}
	status := "miss"
	if known {
		status = "hit"
	}
	m.requests.WithLabelValues(status).Inc()
	m.took.WithLabelValues(status).Observe(time.Since(began).Seconds())
}

// waiting counts one who waits for an answer, until done is called.
func (m *Metrics) waiting() (done func()) {
	if m == nil {
		return func() {}
	}
	g := m.active.WithLabelValues("blocked")
	g.Inc()
	return g.Dec
}

// fetching counts that somebody is asked, until done is called with what came of it.
func (m *Metrics) fetching() (done func(error)) {
	if m == nil {
		return func(error) {}
	}
	g := m.active.WithLabelValues("in_flight")
	g.Inc()
	return func(err error) {
		status := "ok"
		if err != nil {
			status = "error"
		}
		m.fetches.WithLabelValues(status).Inc()
		g.Dec()
	}
}
