package admission

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// conditions are upstream's metrics of the match conditions of webhooks and
// policies. Their series are bounded by the names of these.
type conditions struct {
	took             *prometheus.HistogramVec
	errors, excluded *prometheus.CounterVec
}

func newConditions() conditions {
	const name, by = "apiserver_admission_match_condition_", "broken out for each kind containing matchConditions (webhook or policy), operation and "
	labels := []string{"name", "kind", "type", "operation"}
	count := func(which, what string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name + which, Help: "Admission match condition evaluation " + what +
			" count, identified by name of resource containing the match condition and " + by + "admission type (validate or admit)."}, labels)
	}
	return conditions{
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name + "evaluation_seconds",
			Help:    "Admission match condition evaluation time in seconds, identified by name and " + by + "type (validate or admit).",
			Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25}}, labels),
		errors: count("evaluation_errors_total", "errors"), excluded: count("exclusions_total", "exclusions"),
	}
}

// Conditioned counts that match conditions were evaluated, of which so many have no value, and whether that left their
// owner out. Name, kind and half of admission are the owner's, as upstream labels them.
func (r *Request) Conditioned(name, kind, half string, took time.Duration, failed int, excluded bool) {
	if r.chain == nil {
		return
	}
	c, op := &r.chain.conditions, string(r.Operation())
	c.took.WithLabelValues(name, kind, half, op).Observe(took.Seconds())
	if failed > 0 {
		c.errors.WithLabelValues(name, kind, half, op).Add(float64(failed))
	}
	if excluded {
		c.excluded.WithLabelValues(name, kind, half, op).Inc()
	}
}
