package fairness

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type countKey struct{ level, schema string }

// counts are what is counted of one schema's requests in one level; guarded by
// Limiter.mu but for the histograms.
type counts struct {
	dispatched, running, seats, queued, queuedSeats, unseated int
	rejected                                                  map[error]int
	wait, waitRefused, lengths                                prometheus.Histogram
	execution                                                 [2]prometheus.Histogram // of watches, of all else
}

var buckets = []float64{0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30}

func (l *Limiter) counted(level, schema string) *counts {
	k := countKey{level, schema}
	if c := l.counts[k]; c != nil {
		return c
	}
	h := func(name, help string, buckets []float64, more prometheus.Labels) prometheus.Histogram {
		labels := prometheus.Labels{"priority_level": level, "flow_schema": schema}
		for k, v := range more {
			labels[k] = v
		}
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "apiserver_flowcontrol_" + name, Help: help, Buckets: buckets, ConstLabels: labels})
	}
	const wait, execution = "Length of time a request spent waiting in its queue",
		"Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem"
	c := &counts{rejected: map[error]int{},
		wait:        h("request_wait_duration_seconds", wait, buckets, prometheus.Labels{"execute": "true"}),
		waitRefused: h("request_wait_duration_seconds", wait, buckets, prometheus.Labels{"execute": "false"}),
		lengths: h("request_queue_length_after_enqueue", "Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued",
			[]float64{0, 10, 25, 50, 100, 250, 500, 1000}, nil),
	}
	for i, kind := range []string{"watch", "regular"} {
		c.execution[i] = h("request_execution_seconds", execution, buckets, prometheus.Labels{"type": kind})
	}
	l.counts[k] = c
	return c
}

func (c *counts) reject(why error) { c.rejected[why]++ }

func (c *counts) waited(executed bool, d time.Duration) {
	if executed {
		c.wait.Observe(d.Seconds())
	} else {
		c.waitRefused.Observe(d.Seconds())
	}
}

func (c *counts) executed(verb string, d time.Duration) {
	kind := 1
	if verb == "watch" {
		kind = 0
	}
	c.execution[kind].Observe(d.Seconds())
}

// Describe implements prometheus.Collector; what there is is known when it is asked for.
func (l *Limiter) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector, with upstream's names.
func (l *Limiter) Collect(ch chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, name, help string, v float64, labels prometheus.Labels) {
		d := prometheus.NewDesc("apiserver_flowcontrol_"+name, help, nil, labels)
		ch <- prometheus.MustNewConstMetric(d, kind, v)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lv := range l.levels {
		of := prometheus.Labels{"priority_level": lv.name}
		for _, g := range []struct {
			name, help string
			v          float64
		}{
			{"nominal_limit_seats", "Nominal number of execution seats configured for each priority level", float64(lv.nominal)},
			{"lower_limit_seats", "Configured lower bound on number of execution seats available to each priority level", float64(lv.lowest)},
			{"upper_limit_seats", "Configured upper bound on number of execution seats available to each priority level", float64(lv.highest)},
			{"current_limit_seats", "current derived number of execution seats available to each priority level", float64(lv.current)},
			{"demand_seats_high_watermark", "High watermark, over last adjustment period, of demand_seats", lv.demand.peak},
			{"demand_seats_average", "Time-weighted average, over last adjustment period, of demand_seats", lv.demand.average},
			{"demand_seats_stdev", "Time-weighted standard deviation, over last adjustment period, of demand_seats", lv.demand.dev},
			{"demand_seats_smoothed", "Smoothed seat demands", lv.demand.smoothed},
		} {
			send(prometheus.GaugeValue, g.name, g.help, g.v, of)
		}
	}
	for k, c := range l.counts {
		of := prometheus.Labels{"priority_level": k.level, "flow_schema": k.schema}
		send(prometheus.CounterValue, "dispatched_requests_total", "Number of requests executed by API Priority and Fairness subsystem", float64(c.dispatched), of)
		send(prometheus.GaugeValue, "current_executing_requests", "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem", float64(c.running), of)
		send(prometheus.GaugeValue, "current_executing_seats", "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem", float64(c.seats), of)
		send(prometheus.GaugeValue, "current_inqueue_requests", "Number of requests currently pending in queues of the API Priority and Fairness subsystem", float64(c.queued), of)
		send(prometheus.GaugeValue, "current_inqueue_seats", "Number of seats currently pending in queues of the API Priority and Fairness subsystem", float64(c.queuedSeats), of)
		send(prometheus.CounterValue, "request_dispatch_no_accommodation_total", "Number of times a dispatch attempt resulted in a non accommodation due to lack of available seats", float64(c.unseated), of)
		for why, n := range c.rejected {
			send(prometheus.CounterValue, "rejected_requests_total", "Number of requests rejected by API Priority and Fairness subsystem", float64(n),
				prometheus.Labels{"priority_level": k.level, "flow_schema": k.schema, "reason": why.Error()})
		}
		ch <- c.wait
		ch <- c.waitRefused
		ch <- c.lengths
		ch <- c.execution[0]
		ch <- c.execution[1]
	}
}
