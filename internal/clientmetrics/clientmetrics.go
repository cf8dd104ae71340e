// Package clientmetrics tells of client-go's requests and work queues under
// upstream's names. client-go has one place for each in a process, so it is
// for components that have the process to themselves.
package clientmetrics

import (
	"context"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/metrics"
	"k8s.io/client-go/util/workqueue"
)

// Install has client-go count in registry from now on. Only the first call in
// a process counts; queues made before it are not told of.
func Install(registry *prometheus.Registry) {
	r := newRequests()
	q := newQueues()
	registry.MustRegister(r.took, r.waited, r.sent, r.received, r.results, r.retries)
	registry.MustRegister(q.depth, q.adds, q.queued, q.worked, q.unfinished, q.longest, q.retries)
	metrics.Register(metrics.RegisterOpts{
		RequestLatency: latency{r.took}, RateLimiterLatency: latency{r.waited},
		RequestSize: size{r.sent}, ResponseSize: size{r.received}, RequestResult: result{r.results}, RequestRetry: retry{r.retries},
	})
	workqueue.SetProvider(q)
}

// requests are those of REST clients.
type requests struct {
	took, waited, sent, received *prometheus.HistogramVec
	results, retries             *prometheus.CounterVec
}

func newRequests() *requests {
	seconds := []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}
	bytes := []float64{64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216}
	vec := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rest_client_" + name, Help: help, Buckets: buckets}, []string{"verb", "host"})
	}
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rest_client_" + name, Help: help}, labels)
	}
	return &requests{
		took:     vec("request_duration_seconds", "Request latency in seconds. Broken down by verb, and host.", seconds),
		waited:   vec("rate_limiter_duration_seconds", "Client side rate limiter latency in seconds. Broken down by verb, and host.", seconds),
		sent:     vec("request_size_bytes", "Request size in bytes. Broken down by verb and host.", bytes),
		received: vec("response_size_bytes", "Response size in bytes. Broken down by verb and host.", bytes),
		results:  count("requests_total", "Number of HTTP requests, partitioned by status code, method, and host.", "code", "method", "host"),
		retries:  count("request_retries_total", "Number of request retries, partitioned by status code, verb, and host.", "code", "verb", "host"),
	}
}

type (
	latency struct{ *prometheus.HistogramVec }
	size    struct{ *prometheus.HistogramVec }
	result  struct{ *prometheus.CounterVec }
	retry   struct{ *prometheus.CounterVec }
)

func (m latency) Observe(_ context.Context, verb string, u url.URL, d time.Duration) {
	m.WithLabelValues(verb, u.Host).Observe(d.Seconds())
}

func (m size) Observe(_ context.Context, verb, host string, n float64) {
	if host != "" {
		m.WithLabelValues(verb, host).Observe(n)
	}
}

func (m result) Increment(_ context.Context, code, method, host string) {
	m.WithLabelValues(code, method, host).Inc()
}

func (m retry) IncrementRetry(_ context.Context, code, method, host string) {
	m.WithLabelValues(code, method, host).Inc()
}

// queues implements workqueue.MetricsProvider.
type queues struct {
	depth, unfinished, longest *prometheus.GaugeVec
	adds, retries              *prometheus.CounterVec
	queued, worked             *prometheus.HistogramVec
}

func newQueues() *queues {
	name := []string{"name"}
	gauge := func(n, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "workqueue_" + n, Help: help}, name)
	}
	count := func(n, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "workqueue_" + n, Help: help}, name)
	}
	took := func(n, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "workqueue_" + n, Help: help, Buckets: prometheus.ExponentialBuckets(10e-9, 10, 10)}, name)
	}
	return &queues{
		depth: gauge("depth", "Current depth of workqueue"),
		unfinished: gauge("unfinished_work_seconds", "How many seconds of work has done that is in progress and hasn't been observed by work_duration. "+
			"Large values indicate stuck threads. One can deduce the number of stuck threads by observing the rate at which this increases."),
		longest: gauge("longest_running_processor_seconds", "How many seconds has the longest running processor for workqueue been running."),
		adds:    count("adds_total", "Total number of adds handled by workqueue"),
		retries: count("retries_total", "Total number of retries handled by workqueue"),
		queued:  took("queue_duration_seconds", "How long in seconds an item stays in workqueue before being requested."),
		worked:  took("work_duration_seconds", "How long in seconds processing an item from workqueue takes."),
	}
}

func (q *queues) NewDepthMetric(name string) workqueue.GaugeMetric {
	return q.depth.WithLabelValues(name)
}

func (q *queues) NewAddsMetric(name string) workqueue.CounterMetric {
	return q.adds.WithLabelValues(name)
}

func (q *queues) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return q.queued.WithLabelValues(name)
}

func (q *queues) NewWorkDurationMetric(name string) workqueue.HistogramMetric {
	return q.worked.WithLabelValues(name)
}

func (q *queues) NewUnfinishedWorkSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return q.unfinished.WithLabelValues(name)
}

func (q *queues) NewLongestRunningProcessorSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return q.longest.WithLabelValues(name)
}

func (q *queues) NewRetriesMetric(name string) workqueue.CounterMetric {
	return q.retries.WithLabelValues(name)
}
