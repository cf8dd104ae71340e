package policy

import (
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apiservercel "k8s.io/apiserver/pkg/cel"
)

// checks are upstream's metrics of one sort of policies. Their series are
// bounded by the policies and bindings there are. It is a prometheus.Collector.
type checks struct {
	count *prometheus.CounterVec
	took  *prometheus.HistogramVec
}

func newChecks(name, count, took string, labels ...string) *checks {
	labels = append([]string{"policy", "policy_binding", "error_type"}, labels...)
	name = "apiserver_" + name + "_admission_policy_check_"
	return &checks{
		prometheus.NewCounterVec(prometheus.CounterOpts{Name: name + "total", Help: count}, labels),
		prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name + "duration_seconds", Help: took,
			Buckets: []float64{0.0000005, 0.001, 0.01, 0.1, 1}}, labels),
	}
}

func validationChecks() *checks {
	return newChecks("validating",
		"Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.",
		"Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.",
		"enforcement_action")
}

func mutationChecks() *checks {
	return newChecks("mutating", "Mutation admission policy check total, labeled by policy and further identified by binding.",
		"Mutation admission latency for individual mutation expressions in seconds, labeled by policy and binding.")
}

// observe counts one expression that took so long; more are labels.
func (c *checks) observe(p *policy, b *binding, took time.Duration, failure string, more ...string) {
	labels := append([]string{p.name, b.name, failure}, more...)
	c.count.WithLabelValues(labels...).Inc()
	c.took.WithLabelValues(labels...).Observe(took.Seconds())
}

// failureOf is the label of a failed validation, which upstream tells from its message.
func failureOf(message string) string {
	switch {
	case strings.HasPrefix(message, "compilation"):
		return "compile_error"
	case strings.HasPrefix(message, "validation failed due to running out of cost budget"):
		return "out_of_budget"
	}
	return "invalid_error"
}

// mutationFailure is the label of what came of a mutation.
func mutationFailure(err error) string {
	switch {
	case err == nil:
		return "no_error"
	case errors.Is(err, apiservercel.ErrCompilation):
		return "compile_error"
	case errors.Is(err, apiservercel.ErrOutOfBudget):
		return "out_of_budget"
	}
	return "invalid_error"
}

// Describe implements prometheus.Collector.
func (c *checks) Describe(out chan<- *prometheus.Desc) { c.count.Describe(out); c.took.Describe(out) }

// Collect implements prometheus.Collector.
func (c *checks) Collect(out chan<- prometheus.Metric) { c.count.Collect(out); c.took.Collect(out) }
