package autoscaling

import (
	"fmt"
	"strconv"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

func cells(h *autoscalingv2.HorizontalPodAutoscaler, now metav1.Time) []any {
	low := "<unset>"
	if h.Spec.MinReplicas != nil {
		low = strconv.Itoa(int(*h.Spec.MinReplicas))
	}
	return []any{
		h.Name, h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name, targets(h), low,
		int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), api.Age(h.CreationTimestamp, now),
	}
}

// targets shows current against wanted for the first two metrics.
func targets(h *autoscalingv2.HorizontalPodAutoscaler) string {
	const most = 2
	specs := h.Spec.Metrics
	if len(specs) == 0 {
		return "<none>"
	}
	var list []string
	for i := range specs {
		status := autoscalingv2.MetricStatus{}
		if i < len(h.Status.CurrentMetrics) {
			status = h.Status.CurrentMetrics[i]
		}
		list = append(list, target(&specs[i], &status))
	}
	if len(list) > most {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

func target(m *autoscalingv2.MetricSpec, s *autoscalingv2.MetricStatus) string {
	switch m.Type {
	case autoscalingv2.ExternalMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if s.External != nil {
			now = &s.External.Current
		}
		return valueOrAverage(&m.External.Target, now)
	case autoscalingv2.ObjectMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if s.Object != nil {
			now = &s.Object.Current
		}
		return valueOrAverage(&m.Object.Target, now)
	case autoscalingv2.PodsMetricSourceType:
		now := "<unknown>"
		if s.Pods != nil {
			now = quantity(s.Pods.Current.AverageValue)
		}
		return now + "/" + quantity(m.Pods.Target.AverageValue)
	case autoscalingv2.ResourceMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if s.Resource != nil {
			now = &s.Resource.Current
		}
		return m.Resource.Name.String() + ": " + averageOrUtilization(&m.Resource.Target, now)
	case autoscalingv2.ContainerResourceMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if s.ContainerResource != nil {
			now = &s.ContainerResource.Current
		}
		return m.ContainerResource.Name.String() + ": " + averageOrUtilization(&m.ContainerResource.Target, now)
	}
	return "<unknown type>"
}

func quantity(q *resource.Quantity) string {
	if q == nil {
		return "<unknown>"
	}
	return q.String()
}

func valueOrAverage(t *autoscalingv2.MetricTarget, now *autoscalingv2.MetricValueStatus) string {
	if now == nil {
		now = &autoscalingv2.MetricValueStatus{}
	}
	if t.AverageValue != nil {
		return quantity(now.AverageValue) + "/" + t.AverageValue.String() + " (avg)"
	}
	return quantity(now.Value) + "/" + quantity(t.Value)
}

func averageOrUtilization(t *autoscalingv2.MetricTarget, now *autoscalingv2.MetricValueStatus) string {
	if now == nil {
		now = &autoscalingv2.MetricValueStatus{}
	}
	if t.AverageValue != nil {
		return quantity(now.AverageValue) + "/" + t.AverageValue.String()
	}
	current, wanted := "<unknown>", "<auto>"
	if now.AverageUtilization != nil {
		current = fmt.Sprintf("%d%%", *now.AverageUtilization)
	}
	if t.AverageUtilization != nil {
		wanted = fmt.Sprintf("%d%%", *t.AverageUtilization)
	}
	return current + "/" + wanted
}
