package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Objects tells, when asked, how many objects of each resource are stored. It is
// a prometheus.Collector.
type Objects func(yield func(r schema.GroupResource, count int))

var (
	storageObjects = prometheus.NewDesc("apiserver_storage_objects",
		"Number of stored objects at the time of last check split by kind.", []string{"resource"}, nil)
	resourceObjects = prometheus.NewDesc("apiserver_resource_objects",
		"Number of stored objects at the time of last check split by kind.", []string{"group", "resource"}, nil)
)

// Describe implements prometheus.Collector.
func (o Objects) Describe(ch chan<- *prometheus.Desc) { ch <- storageObjects; ch <- resourceObjects }

// Collect implements prometheus.Collector.
func (o Objects) Collect(ch chan<- prometheus.Metric) {
	o(func(r schema.GroupResource, count int) {
		ch <- prometheus.MustNewConstMetric(storageObjects, prometheus.GaugeValue, float64(count), r.String())
		ch <- prometheus.MustNewConstMetric(resourceObjects, prometheus.GaugeValue, float64(count), r.Group, r.Resource)
	})
}
