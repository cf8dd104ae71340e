package impersonation

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/auth"
)

// metrics are upstream's, by mode and decision.
type metrics struct {
	attempts, checks         *prometheus.CounterVec
	attemptTimes, checkTimes *prometheus.HistogramVec
}

func newMetrics() metrics {
	labels := []string{"mode", "decision"}
	count := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_impersonation_" + name, Help: help}, labels)
	}
	times := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_impersonation_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, labels)
	}
	return metrics{
		count("attempts_total", "Total number of impersonation attempts split by mode and decision."),
		count("authorization_attempts_total", "Total number of authorization checks made by the impersonation handler split by mode and decision."),
		times("attempts_duration_seconds", "Latency of impersonation attempts in seconds split by mode and decision."),
		times("authorization_attempts_duration_seconds",
			"Latency of authorization checks made by the impersonation handler in seconds split by mode and decision."),
	}
}

// Collectors are for a registry.
func (m *metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.attempts, m.checks, m.attemptTimes, m.checkTimes}
}

// label is the mode's in metrics; nil: none was allowed.
func (m *mode) label() string {
	switch {
	case m == nil:
		return ""
	case m.name == "":
		return "legacy"
	}
	return m.name
}

func decision(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}

func (m *metrics) attempted(by *mode, took time.Duration) {
	m.attempts.WithLabelValues(by.label(), decision(by != nil)).Inc()
	m.attemptTimes.WithLabelValues(by.label(), decision(by != nil)).Observe(took.Seconds())
}

// authorize asks the authorizer and counts that.
func (i *Impersonation) authorize(ctx context.Context, a auth.Attributes, m *mode) (auth.Decision, string, error) {
	began := time.Now()
	d, reason, err := i.authorizer.Authorize(ctx, a)
	i.checks.WithLabelValues(m.label(), decision(d == auth.Allow)).Inc()
	i.checkTimes.WithLabelValues(m.label(), decision(d == auth.Allow)).Observe(time.Since(began).Seconds())
	return d, reason, err
}
