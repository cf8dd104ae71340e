package authwebhook

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count what authorization webhooks do, under upstream's names. nil counts nothing.
type Metrics struct {
	evaluations, failOpen, exclusions, errors *prometheus.CounterVec
	duration, matching                        *prometheus.HistogramVec
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_authorization_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_authorization_" + name, Help: help, Buckets: buckets}, labels)
	}
	return &Metrics{
		evaluations: counter("webhook_evaluations_total", "Round-trips to authorization webhooks.", "name", "result"),
		failOpen:    counter("webhook_evaluations_fail_open_total", "NoOpinion results due to webhook timeout or error.", "name", "result"),
		exclusions: counter("match_condition_exclusions_total",
			"Total number of exclusions when an authorization webhook is skipped because match conditions exclude it.", "type", "name"),
		errors: counter("match_condition_evaluation_errors_total",
			"Total number of errors when an authorization webhook encounters a match condition error split by authorizer type and name.", "type", "name"),
		duration: histogram("webhook_duration_seconds", "Request latency in seconds.", prometheus.DefBuckets, "name", "result"),
		matching: histogram("match_condition_evaluation_seconds", "Authorization match condition evaluation time in seconds, split by authorizer type and name.",
			[]float64{0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25}, "type", "name"),
	}
}

// Collectors are what is to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.evaluations, m.failOpen, m.exclusions, m.errors, m.duration, m.matching}
}

func (m *Metrics) matched(name string, match bool, err error, took time.Duration) {
	if m == nil {
		return
	}
	m.matching.WithLabelValues("Webhook", name).Observe(took.Seconds())
	switch {
	case err != nil:
		m.errors.WithLabelValues("Webhook", name).Inc()
	case !match:
		m.exclusions.WithLabelValues("Webhook", name).Inc()
	}
}

func (m *Metrics) asked(name, result string, took time.Duration) {
	if m == nil {
		return
	}
	m.evaluations.WithLabelValues(name, result).Inc()
	m.duration.WithLabelValues(name, result).Observe(took.Seconds())
}

func (m *Metrics) failedOpen(name, result string) {
	if m != nil {
		m.failOpen.WithLabelValues(name, result).Inc()
	}
}

// resultOf names how a try ended.
func resultOf(ctx context.Context, err error) string {
	var slow net.Error
	switch {
	case err == nil:
		return "success"
	case ctx.Err() != nil:
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &slow) && slow.Timeout(), errors.Is(err, errGatewayTimeout):
		return "timeout"
	}
	return "error"
}
