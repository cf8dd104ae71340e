package autoscaling

import (
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

const (
	maxPeriodSeconds = 1800
	maxWindowSeconds = 3600
)

func validate(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	l, s := &check.List{}, &h.Spec
	if s.MinReplicas != nil && *s.MinReplicas < 0 {
		l.Invalid(specPath.Child("minReplicas"), *s.MinReplicas, "must be greater than or equal to 0")
	}
	at := specPath.Child("maxReplicas")
	if s.MaxReplicas == 0 {
		l.Required(at, "")
	} else if s.MaxReplicas < 0 {
		l.Invalid(at, s.MaxReplicas, "must be greater than or equal to 1")
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		l.Invalid(at, s.MaxReplicas, "must be greater than or equal to `minReplicas`")
	}
	checkRef(l, specPath.Child("scaleTargetRef"), &s.ScaleTargetRef)
	checkAPIVersion(l, specPath.Child("scaleTargetRef", "apiVersion"), &s.ScaleTargetRef)
	beyond := false
	for i := range s.Metrics {
		m := &s.Metrics[i]
		checkMetric(l, specPath.Child("metrics").Index(i), m)
		beyond = beyond || m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	}
	if s.MinReplicas != nil && *s.MinReplicas == 0 && !beyond {
		l.Forbidden(specPath.Child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas")
	}
	if b := s.Behavior; b != nil {
		checkScaling(l, specPath.Child("behavior", "scaleUp"), b.ScaleUp)
		checkScaling(l, specPath.Child("behavior", "scaleDown"), b.ScaleDown)
	}
	return l.Errors
}

func segment(l *check.List, p *field.Path, s string) {
	if s == "" {
		l.Required(p, "")
		return
	}
	l.Messages(p, s, path.IsValidPathSegmentName(s))
}

func checkRef(l *check.List, p *field.Path, r *autoscalingv2.CrossVersionObjectReference) {
	segment(l, p.Child("kind"), r.Kind)
	segment(l, p.Child("name"), r.Name)
}

// checkAPIVersion wants a target's group named, except for the core group's
// own scalable kind.
func checkAPIVersion(l *check.List, p *field.Path, r *autoscalingv2.CrossVersionObjectReference) {
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		l.Invalid(p, r.APIVersion, err.Error())
	} else if gv.Group == "" && r.Kind != "ReplicationController" {
		l.Invalid(p, r.APIVersion, "apiVersion must specify API group")
	}
}

// metricSource is one kind of source a metric may have.
type metricSource struct {
	field string
	set   bool
	check func(*field.Path)
}

func metricSources(l *check.List, m *autoscalingv2.MetricSpec) map[autoscalingv2.MetricSourceType]metricSource {
	return map[autoscalingv2.MetricSourceType]metricSource{
		autoscalingv2.ObjectMetricSourceType: {"object", m.Object != nil, func(p *field.Path) {
			checkRef(l, p.Child("describedObject"), &m.Object.DescribedObject)
			checkIdentifier(l, p.Child("metric"), &m.Object.Metric)
			checkTarget(l, p.Child("target"), &m.Object.Target)
			if m.Object.Target.Value == nil && m.Object.Target.AverageValue == nil {
				l.Required(p.Child("target", "averageValue"), "must set either a target value or averageValue")
			}
		}},
		autoscalingv2.PodsMetricSourceType: {"pods", m.Pods != nil, func(p *field.Path) {
			checkIdentifier(l, p.Child("metric"), &m.Pods.Metric)
			checkTarget(l, p.Child("target"), &m.Pods.Target)
			if m.Pods.Target.AverageValue == nil {
				l.Required(p.Child("target", "averageValue"), "must specify a positive target averageValue")
			}
		}},
		autoscalingv2.ResourceMetricSourceType: {"resource", m.Resource != nil, func(p *field.Path) {
			checkResource(l, p, string(m.Resource.Name), &m.Resource.Target)
		}},
		autoscalingv2.ContainerResourceMetricSourceType: {"containerResource", m.ContainerResource != nil, func(p *field.Path) {
			if m.ContainerResource.Container == "" {
				l.Required(p.Child("container"), "must specify a container")
			} else {
				l.Label(p.Child("container"), m.ContainerResource.Container)
			}
			if name := m.ContainerResource.Name; name != "" {
				podspec.CheckContainerResourceName(l, p.Child("name"), name)
			}
			checkResource(l, p, string(m.ContainerResource.Name), &m.ContainerResource.Target)
		}},
		autoscalingv2.ExternalMetricSourceType: {"external", m.External != nil, func(p *field.Path) {
			checkIdentifier(l, p.Child("metric"), &m.External.Metric)
			checkTarget(l, p.Child("target"), &m.External.Target)
			switch t := &m.External.Target; {
			case t.Value == nil && t.AverageValue == nil:
				l.Required(p.Child("target", "averageValue"), "must set either a target value for metric or a per-pod target")
			case t.Value != nil && t.AverageValue != nil:
				l.Forbidden(p.Child("target", "value"), "may not set both a target value for metric and a per-pod target")
			}
		}},
	}
}

func checkMetric(l *check.List, p *field.Path, m *autoscalingv2.MetricSpec) {
	sources := metricSources(l, m)
	if m.Type == "" {
		l.Required(p.Child("type"), "must specify a metric source type")
	}
	wanted, known := sources[m.Type]
	if !known { // upstream says so twice
		for range 2 {
			check.OneOf(l, p.Child("type"), m.Type, autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType,
				autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType)
		}
	}
	present := 0
	for _, t := range []autoscalingv2.MetricSourceType{
		autoscalingv2.ObjectMetricSourceType, autoscalingv2.ExternalMetricSourceType, autoscalingv2.PodsMetricSourceType,
		autoscalingv2.ResourceMetricSourceType, autoscalingv2.ContainerResourceMetricSourceType,
	} {
		if s := sources[t]; s.set {
			if present++; present == 1 {
				s.check(p.Child(s.field))
			}
		}
	}
	if known && !wanted.set {
		l.Required(p.Child(wanted.field), "must populate information for the given metric source")
	}
	if present == 1 {
		return
	}
	for t, s := range check.Sorted(sources) {
		if s.set && t != m.Type {
			l.Forbidden(p.Child(s.field), "must populate the given metric source only")
		}
	}
}

func checkIdentifier(l *check.List, p *field.Path, m *autoscalingv2.MetricIdentifier) {
	if m.Name == "" {
		l.Required(p.Child("name"), "must specify a metric name")
		return
	}
	l.Messages(p.Child("name"), m.Name, path.IsValidPathSegmentName(m.Name))
}

func checkResource(l *check.List, p *field.Path, name string, t *autoscalingv2.MetricTarget) {
	if name == "" {
		l.Required(p.Child("name"), "must specify a resource name")
	}
	checkTarget(l, p.Child("target"), t)
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		l.Required(p.Child("target", "averageUtilization"), "must set either a target raw value or a target utilization")
	case t.AverageUtilization != nil && t.AverageValue != nil:
		l.Forbidden(p.Child("target", "averageValue"), "may not set both a target raw value and a target utilization")
	}
}

func checkTarget(l *check.List, p *field.Path, t *autoscalingv2.MetricTarget) {
	if t.Type == "" {
		l.Required(p.Child("type"), "must specify a metric target type")
	}
	switch t.Type {
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	default:
		l.Invalid(p.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue")
	}
	if t.Value != nil && t.Value.Sign() != 1 {
		l.Invalid(p.Child("value"), t.Value, "must be positive")
	}
	if t.AverageValue != nil && t.AverageValue.Sign() != 1 {
		l.Invalid(p.Child("averageValue"), t.AverageValue, "must be positive")
	}
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		l.Invalid(p.Child("averageUtilization"), t.AverageUtilization, "must be greater than 0")
	}
}

func checkScaling(l *check.List, p *field.Path, r *autoscalingv2.HPAScalingRules) {
	if r == nil {
		return
	}
	if w := r.StabilizationWindowSeconds; w != nil {
		at := p.Child("stabilizationWindowSeconds")
		if *w < 0 {
			l.Invalid(at, w, "must be greater than or equal to zero")
		}
		if *w > maxWindowSeconds {
			l.Invalid(at, w, fmt.Sprintf("must be less than or equal to %v", maxWindowSeconds))
		}
	}
	if r.SelectPolicy != nil {
		check.OneOf(l, p.Child("selectPolicy"), *r.SelectPolicy, autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect)
	}
	if len(r.Policies) == 0 {
		l.Required(p.Child("policies"), "must specify at least one Policy")
	}
	for i, s := range r.Policies {
		at := p.Child("policies").Index(i)
		check.OneOf(l, at.Child("type"), s.Type, autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy)
		l.Positive(at.Child("value"), int64(s.Value))
		l.Positive(at.Child("periodSeconds"), int64(s.PeriodSeconds))
		if s.PeriodSeconds > maxPeriodSeconds {
			l.Invalid(at.Child("periodSeconds"), s.PeriodSeconds, fmt.Sprintf("must be less than or equal to %v", maxPeriodSeconds))
		}
	}
	if r.Tolerance != nil {
		l.NonnegativeQuantity(p.Child("tolerance"), *r.Tolerance)
	}
}
