package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Objects tells, when asked, how many objects of each resource are stored, and of
// how many bytes one is on average. It is a prometheus.Collector.
type Objects func(yield func(r schema.GroupResource, count int, each int64))

var (
	storageObjects = prometheus.NewDesc("apiserver_storage_objects",
		"[DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. "+
			"In case of a fetching error, the value will be -1.", []string{"resource"}, nil)
	resourceObjects = prometheus.NewDesc("apiserver_resource_objects",
		"Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.", []string{"group", "resource"}, nil)
	resourceBytes = prometheus.NewDesc("apiserver_resource_size_estimate_bytes",
		"Estimated size of stored objects in database. Estimate is based on sum of last observed sizes of serialized objects. "+
			"In case of a fetching error, the value will be -1.", []string{"group", "resource"}, nil)
)

// Describe implements prometheus.Collector.
func (o Objects) Describe(ch chan<- *prometheus.Desc) {
	ch <- storageObjects
	ch <- resourceObjects
	ch <- resourceBytes
}

// Collect implements prometheus.Collector.
func (o Objects) Collect(ch chan<- prometheus.Metric) {
	o(func(r schema.GroupResource, count int, each int64) {
		ch <- prometheus.MustNewConstMetric(storageObjects, prometheus.GaugeValue, float64(count), r.String())
		ch <- prometheus.MustNewConstMetric(resourceObjects, prometheus.GaugeValue, float64(count), r.Group, r.Resource)
		ch <- prometheus.MustNewConstMetric(resourceBytes, prometheus.GaugeValue, float64(int64(count)*each), r.Group, r.Resource)
	})
}
