package webhook

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/apiserver/admission"
)

// counters are upstream's metrics of webhooks. Their series are bounded by the
// names in configurations.
type counters struct {
	took                       *prometheus.HistogramVec
	asked, rejected, passedFor *prometheus.CounterVec
}

func newCounters() *counters {
	const prefix, by, bound = "apiserver_admission_webhook_", ", identified by name and broken out for each admission type (validating or admit)",
		"Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded."
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
	}
	return &counters{
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "admission_duration_seconds", Help: "Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).",
			Buckets: []float64{0.005, 0.025, 0.1, 0.5, 1, 2.5, 10, 25},
		}, []string{"name", "type", "operation", "rejected"}),
		asked: count("request_total", "Admission webhook request total"+by+
			" and operation. Additional labels specify whether the request was rejected or not and an HTTP status code. "+bound, "name", "type", "operation", "code", "rejected"),
		rejected: count("rejection_count", "Admission webhook rejection count"+by+" and operation. Additional labels specify an error type (calling_webhook_error or "+
			"apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request "+
			"with an HTTP status code (honored by the apiserver when the code is greater or equal to 400). "+bound, "name", "type", "operation", "error_type", "rejection_code"),
		passedFor: count("fail_open_count", "Admission webhook fail open count"+by+".", "name", "type"),
	}
}

func (c *counters) all() []prometheus.Collector {
	return []prometheus.Collector{c.took, c.asked, c.rejected, c.passedFor}
}

// count counts one call and what came of it.
func (s *source) count(h *hook, op admission.Operation, took time.Duration, err error) {
	code, failure, rejected := 200, "no_error", err != nil
	var call *callError
	var status apierrors.APIStatus
	switch {
	case err == nil:
	case errors.As(err, &call):
		code, failure, rejected = call.code(), "calling_webhook_error", !h.ignored()
	case errors.As(err, &status) && !apierrors.IsInternalError(err):
		code = min(int(status.Status().Code), 600)
	default:
		code, failure = 0, "apiserver_internal_error"
	}
	if rejected && !errors.Is(err, context.Canceled) {
		s.counters.rejected.WithLabelValues(h.Name, s.kind, string(op), failure, strconv.Itoa(code)).Inc()
	}
	s.counters.asked.WithLabelValues(h.Name, s.kind, string(op), strconv.Itoa(code), strconv.FormatBool(rejected)).Inc()
	s.counters.took.WithLabelValues(h.Name, s.kind, string(op), strconv.FormatBool(rejected)).Observe(took.Seconds())
}

// code is the status a failure to call counts under.
func (e *callError) code() int {
	if status := apierrors.APIStatus(nil); errors.As(e.reason, &status) {
		return int(status.Status().Code)
	}
	return 503
}

// Describe implements prometheus.Collector, for both plugins.
func (p mutating) Describe(out chan<- *prometheus.Desc) {
	for _, c := range p.counters.all() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector, for both plugins.
func (p mutating) Collect(out chan<- prometheus.Metric) {
	for _, c := range p.counters.all() {
		c.Collect(out)
	}
}
