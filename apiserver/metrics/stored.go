package metrics

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Storage counts what is asked of the store and told to watchers. Its series
// are bounded by the resources that are served. It is a prometheus.Collector.
type Storage struct {
	took                                *prometheus.HistogramVec
	requests, errors                    *prometheus.CounterVec
	lists, fetched, evaluated, returned *prometheus.CounterVec
	of                                  sync.Map // of schema.GroupResource: *Stored
	watched                             sync.Map // of schema.GroupVersionResource: *Events
}

// NewStorage returns a Storage that has counted nothing.
func NewStorage() *Storage {
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"group", "resource"}, labels...))
	}
	const list = "apiserver_storage_list_"
	return &Storage{
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "etcd_request_duration_seconds", Help: "Etcd request latency in seconds for each operation and object type.",
			Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, []string{"group", "resource", "operation"}),
		requests:  count("etcd_requests_total", "Etcd request counts for each operation and object type.", "operation"),
		errors:    count("etcd_request_errors_total", "Etcd failed request counts for each operation and object type.", "operation"),
		lists:     count(list+"total", "Number of LIST requests served from storage", "index", "storage"),
		fetched:   count(list+"fetched_objects_total", "Number of objects read from storage in the course of serving a LIST request", "index", "storage"),
		evaluated: count(list+"evaluated_objects_total", "Number of objects tested in the course of serving a LIST request from storage", "storage"),
		returned:  count(list+"returned_objects_total", "Number of objects returned for a LIST request from storage", "storage"),
	}
}

// Of counts for one resource; nil is for none.
func (s *Storage) Of(gr schema.GroupResource) *Stored {
	if s == nil {
		return nil
	}
	have, ok := s.of.Load(gr)
	if !ok {
		have, _ = s.of.LoadOrStore(gr, &Stored{s: s, gr: gr})
	}
	return have.(*Stored)
}

// Operation is what is asked of the store; the names are upstream's.
type Operation int

// The operations that reach the store. Reads are of what is in memory.
const (
	Create Operation = iota
	Update
	Delete
)

func (o Operation) String() string { return [...]string{"create", "update", "delete"}[o] }

// Stored counts for one resource. A nil one does not.
type Stored struct {
	s       *Storage
	gr      schema.GroupResource
	series  [3]atomic.Pointer[request]
	listing atomic.Pointer[listing]
}

type request struct {
	count prometheus.Counter
	took  prometheus.Observer
}

type listing struct{ lists, fetched, evaluated, returned prometheus.Counter }

// Asked counts a request to the store that began at a time.
func (s *Stored) Asked(op Operation, began time.Time, err error) {
	if s == nil {
		return
	}
	r := s.series[op].Load()
	if r == nil {
		labels := prometheus.Labels{"group": s.gr.Group, "resource": s.gr.Resource, "operation": op.String()}
		r = &request{s.s.requests.With(labels), s.s.took.With(labels)}
		s.series[op].Store(r)
	}
	r.count.Inc()
	r.took.Observe(time.Since(began).Seconds())
	if err != nil {
		s.s.errors.WithLabelValues(s.gr.Group, s.gr.Resource, op.String()).Inc()
	}
}

// Listed counts a list that looked at so many objects and returned so many.
func (s *Stored) Listed(evaluated, returned int) {
	if s == nil {
		return
	}
	l := s.listing.Load()
	if l == nil {
		const memory = "watchcache" // as upstream calls what is in memory
		g, r := s.gr.Group, s.gr.Resource
		l = &listing{s.s.lists.WithLabelValues(g, r, "", memory), s.s.fetched.WithLabelValues(g, r, "", memory),
			s.s.evaluated.WithLabelValues(g, r, memory), s.s.returned.WithLabelValues(g, r, memory)}
		s.listing.Store(l)
	}
	l.lists.Inc()
	l.fetched.Add(float64(evaluated))
	l.evaluated.Add(float64(evaluated))
	l.returned.Add(float64(returned))
}

// Events counts the events that watchers of a resource were sent. It is two
// additions for each, as there may be a thousand watchers.
type Events struct {
	bytes atomic.Uint64
	sized [eventSizes + 1]atomic.Uint64
}

const (
	eventSizes    = 8 // buckets, of which each is twice the one before
	smallestEvent = 1024
)

// Events returns the counter of a resource in one version.
func (s *Storage) Events(gvr schema.GroupVersionResource) *Events {
	have, ok := s.watched.Load(gvr)
	if !ok {
		have, _ = s.watched.LoadOrStore(gvr, new(Events))
	}
	return have.(*Events)
}

// Sent counts an event of so many bytes before compression.
func (e *Events) Sent(size int) {
	at := 0
	for limit := smallestEvent; at < eventSizes && size > limit; limit *= 2 {
		at++
	}
	e.bytes.Add(uint64(size))
	e.sized[at].Add(1)
}

// PlainSize is how long the gzip member p is when it is read.
func PlainSize(p []byte) int { return int(binary.LittleEndian.Uint32(p[len(p)-4:])) }

var (
	watchLabels = []string{"group", "version", "resource"}
	watchEvents = prometheus.NewDesc("apiserver_watch_events_total", "Number of events sent in watch clients", watchLabels, nil)
	watchSizes  = prometheus.NewDesc("apiserver_watch_events_sizes", "Watch event size distribution in bytes", watchLabels, nil)
)

func (s *Storage) vectors() []prometheus.Collector {
	return []prometheus.Collector{s.took, s.requests, s.errors, s.lists, s.fetched, s.evaluated, s.returned}
}

// Describe implements prometheus.Collector.
func (s *Storage) Describe(out chan<- *prometheus.Desc) {
	for _, c := range s.vectors() {
		c.Describe(out)
	}
	out <- watchEvents
	out <- watchSizes
}

// Collect implements prometheus.Collector.
func (s *Storage) Collect(out chan<- prometheus.Metric) {
	for _, c := range s.vectors() {
		c.Collect(out)
	}
	s.watched.Range(func(k, v any) bool {
		gvr, e := k.(schema.GroupVersionResource), v.(*Events)
		buckets, n, limit := map[float64]uint64{}, uint64(0), smallestEvent
		for i := range eventSizes {
			n += e.sized[i].Load()
			buckets[float64(limit)] = n
			limit *= 2
		}
		n += e.sized[eventSizes].Load()
		out <- prometheus.MustNewConstMetric(watchEvents, prometheus.CounterValue, float64(n), gvr.Group, gvr.Version, gvr.Resource)
		out <- prometheus.MustNewConstHistogram(watchSizes, n, float64(e.bytes.Load()), buckets, gvr.Group, gvr.Version, gvr.Resource)
		return true
	})
}
