package autoscaling

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

var specPath = field.NewPath("spec")

// defaultUtilization is the CPU target, in percent, of autoscalers that name no metric.
const defaultUtilization = 80

func horizontalPodAutoscalerResource() *api.Resource {
	v1 := api.Versioned[autoscalingv1.HorizontalPodAutoscaler, autoscalingv1.HorizontalPodAutoscalerList]("v1", func(h *autoscalingv1.HorizontalPodAutoscaler) {
		api.SetIfNil(&h.Spec.MinReplicas, 1)
	})
	v1.FromStorage = func(o api.Object) (api.Object, error) { return toV1(o.(*autoscalingv2.HorizontalPodAutoscaler)) }
	v1.ToStorage = func(o api.Object) (api.Object, error) {
		return fromV1(o.(*autoscalingv1.HorizontalPodAutoscaler)), nil
	}
	doc := autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "horizontalpodautoscalers", Singular: "horizontalpodautoscaler", Kind: "HorizontalPodAutoscaler",
		ShortNames: []string{"hpa"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions: []api.Version{
			api.Versioned[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList]("v2", setDefaults),
			v1,
		},
		StorageVersion: "v2",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(h *autoscalingv2.HorizontalPodAutoscaler) {
				h.Status, h.Generation = autoscalingv2.HorizontalPodAutoscalerStatus{}, 1
			}),
			PrepareForUpdate: api.OnUpdate(func(h, old *autoscalingv2.HorizontalPodAutoscaler) {
				h.Status = old.Status
				api.BumpGeneration(h, old, api.Changed(h.Spec, old.Spec))
			}),
			Validate:       api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(h, _ *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList { return validate(h) }),
		},
		Subresources: []api.Subresource{api.StatusView(func(h, old *autoscalingv2.HorizontalPodAutoscaler) { h.Spec = old.Spec }, validateStatus)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Reference", "string", doc["scaleTargetRef"]),
			api.Column("Targets", "string", doc["metrics"]),
			api.Column("MinPods", "string", doc["minReplicas"]),
			api.Column("MaxPods", "string", doc["maxReplicas"]),
			api.Column("Replicas", "string", autoscalingv2.HorizontalPodAutoscalerStatus{}.SwaggerDoc()["currentReplicas"]),
			api.AgeColumn(),
		},
		Cells: func(o api.Object, now metav1.Time) []any {
			if h, ok := o.(*autoscalingv1.HorizontalPodAutoscaler); ok {
				o = fromV1(h)
			}
			return cells(o.(*autoscalingv2.HorizontalPodAutoscaler), now)
		},
	}
}

func setDefaults(h *autoscalingv2.HorizontalPodAutoscaler) {
	api.SetIfNil(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []autoscalingv2.MetricSpec{cpuMetric(defaultUtilization)}
	}
	b := h.Spec.Behavior
	if b == nil {
		return
	}
	percent := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}
	pods := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}
	b.ScaleUp = completeRules(b.ScaleUp, pods, percent)
	api.SetIfNil(&b.ScaleUp.StabilizationWindowSeconds, 0)
	// How long a scale-down waits is the controller's to default.
	b.ScaleDown = completeRules(b.ScaleDown, percent)
}

func completeRules(r *autoscalingv2.HPAScalingRules, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	if r == nil {
		r = &autoscalingv2.HPAScalingRules{}
	}
	api.SetIfNil(&r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if r.Policies == nil {
		r.Policies = policies
	}
	return r
}

func cpuMetric(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{
		Type: autoscalingv2.ResourceMetricSourceType,
		Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
		},
	}
}

func validateStatus(h, _ *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	l, p := &check.List{}, field.NewPath("status")
	l.Nonnegative(p.Child("currentReplicas"), int64(h.Status.CurrentReplicas))
	l.Nonnegative(p.Child("desiredReplicas"), int64(h.Status.DesiredReplicas))
	return l.Errors
}
