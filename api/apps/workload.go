package apps

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// scale serves Scale on an object of type P.
func scale[P api.Object](spec func(P) (replicas **int32, selector *metav1.LabelSelector), status func(P) int32) api.Subresource {
	return api.Subresource{Name: "scale", Kind: "Scale", Group: "autoscaling", Version: "v1", Scale: &api.Scale{
		Get: func(o api.Object) (autoscalingv1.ScaleSpec, autoscalingv1.ScaleStatus) {
			replicas, selector := spec(o.(P))
			text := ""
			if s, err := metav1.LabelSelectorAsSelector(selector); err == nil {
				text = s.String()
			}
			return autoscalingv1.ScaleSpec{Replicas: core.Replicas(*replicas)}, autoscalingv1.ScaleStatus{Replicas: status(o.(P)), Selector: text}
		},
		Set: func(o api.Object, n int32) {
			replicas, _ := spec(o.(P))
			*replicas = &n
		},
	}}
}

// checkSelector checks the selector of a workload and that it selects the
// template's labels; kind names the workload in the error, bad is what is
// said of a selector that is none.
func checkSelector(l *check.List, s *metav1.LabelSelector, t *corev1.PodTemplateSpec, kind, bad string) {
	at := specPath.Child("selector")
	if s == nil {
		l.Required(at, "")
	} else {
		l.Selector(at, s)
		if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			l.Invalid(at, s, "empty selector is invalid for "+kind)
		}
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		l.Invalid(at, s, bad)
		return
	}
	if !selector.Empty() && !selector.Matches(labels.Set(t.Labels)) {
		l.Invalid(specPath.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`")
	}
}

func checkOptional(l *check.List, p *field.Path, n *int32) {
	if n != nil {
		l.Nonnegative(p, int64(*n))
	}
}

// checkCollisions checks a status' count of names that were taken, which only grows.
func checkCollisions(l *check.List, now, old *int32) {
	p := statusPath.Child("collisionCount")
	checkOptional(l, p, now)
	if old != nil && core.Replicas(now) < *old {
		l.Invalid(p, core.Replicas(now), "cannot be decremented")
	}
}

func templateWarnings(t *corev1.PodTemplateSpec) []string {
	return podspec.PodTemplateWarnings(&t.ObjectMeta, &t.Spec, specPath.Child("template"))
}

func selectorText(s *metav1.LabelSelector) string {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return "<invalid>"
	}
	return selector.String()
}

func notMore(l *check.List, name string, n, most int32, what string) {
	if n > most {
		l.Invalid(statusPath.Child(name), n, "cannot be greater than "+what)
	}
}
