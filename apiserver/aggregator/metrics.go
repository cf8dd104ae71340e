package aggregator

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/api/apiregistration"
)

// availability counts under upstream's names which APIServices are available. It is a prometheus.Collector.
type availability struct {
	mu    sync.Mutex
	up    map[string]bool // by APIService
	gauge *prometheus.Desc
	lost  *prometheus.CounterVec
}

func newAvailability() *availability {
	return &availability{
		up: map[string]bool{},
		gauge: prometheus.NewDesc("aggregator_unavailable_apiservice",
			"Gauge of APIServices which are marked as unavailable broken down by APIService name.", []string{"name"}, nil),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aggregator_unavailable_apiservice_total",
			Help: "Counter of APIServices which are marked as unavailable broken down by APIService name and reason.",
		}, []string{"name", "reason"}),
	}
}

func (v *availability) note(s *apiregistration.APIService) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := apiregistration.IsAvailable(s)
	if v.up[s.Name] && !now {
		reason := "UnknownReason"
		if c := apiregistration.Condition(s); c != nil {
			reason = c.Reason
		}
		v.lost.WithLabelValues(s.Name, reason).Inc()
	}
	v.up[s.Name] = now
}

func (v *availability) forget(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.up, name)
	v.lost.DeletePartialMatch(prometheus.Labels{"name": name})
}

// names are the APIServices counted.
func (v *availability) names() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Keys(v.up))
}

// Describe implements prometheus.Collector.
func (v *availability) Describe(ch chan<- *prometheus.Desc) {
	ch <- v.gauge
	v.lost.Describe(ch)
}

// Collect implements prometheus.Collector.
func (v *availability) Collect(ch chan<- prometheus.Metric) {
	v.lost.Collect(ch)
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, up := range v.up {
		value := 1.0
		if up {
			value = 0
		}
		ch <- prometheus.MustNewConstMetric(v.gauge, prometheus.GaugeValue, value, name)
	}
}
