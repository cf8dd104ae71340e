package policy

import (
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func podDisruptionBudgetResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "poddisruptionbudgets", Singular: "poddisruptionbudget", Kind: "PodDisruptionBudget",
		ShortNames: []string{"pdb"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList]("v1", nil)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(b *policyv1.PodDisruptionBudget) {
				b.Status, b.Generation = policyv1.PodDisruptionBudgetStatus{}, 1
			}),
			PrepareForUpdate: api.OnUpdate(func(b, old *policyv1.PodDisruptionBudget) {
				b.Status = old.Status
				api.BumpGeneration(b, old, api.Changed(b.Spec, old.Spec))
			}),
			NameValid:               check.PathSegment,
			Validate:                api.Check(validate),
			ValidateUpdate:          api.CheckUpdate(func(b, _ *policyv1.PodDisruptionBudget) field.ErrorList { return validate(b) }),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{
			api.StatusView(func(b, old *policyv1.PodDisruptionBudget) { b.Spec = old.Spec }, validateStatus),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Min Available", "string", "The minimum number of pods that must be available."),
			api.Column("Max Unavailable", "string", "The maximum number of pods that may be unavailable."),
			api.Column("Allowed Disruptions", "integer", "Calculated number of pods that may be disrupted at this time."),
			api.AgeColumn(),
		},
		Cells: api.Row(func(b *policyv1.PodDisruptionBudget, now metav1.Time) []any {
			return []any{b.Name, amount(b.Spec.MinAvailable), amount(b.Spec.MaxUnavailable), int64(b.Status.DisruptionsAllowed), api.Age(b.CreationTimestamp, now)}
		}),
	}
}

func amount(v *intstr.IntOrString) string {
	if v == nil {
		return "N/A"
	}
	return v.String()
}

func validate(b *policyv1.PodDisruptionBudget) field.ErrorList {
	l, s, p := &check.List{}, &b.Spec, field.NewPath("spec")
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		l.Invalid(p, *s, "minAvailable and maxUnavailable cannot be both set")
	}
	if s.MinAvailable != nil {
		l.IntOrPercent(p.Child("minAvailable"), s.MinAvailable, true)
	}
	if s.MaxUnavailable != nil {
		l.IntOrPercent(p.Child("maxUnavailable"), s.MaxUnavailable, true)
	}
	l.Selector(p.Child("selector"), s.Selector)
	if u := s.UnhealthyPodEvictionPolicy; u != nil {
		check.OneOf(l, p.Child("unhealthyPodEvictionPolicy"), *u, policyv1.AlwaysAllow, policyv1.IfHealthyBudget)
	}
	return l.Errors
}

func validateStatus(b, _ *policyv1.PodDisruptionBudget) field.ErrorList {
	l, s, p := &check.List{}, &b.Status, field.NewPath("status")
	l.Add(metavalidation.ValidateConditions(s.Conditions, p.Child("conditions")))
	l.Nonnegative(p.Child("disruptionsAllowed"), int64(s.DisruptionsAllowed))
	l.Nonnegative(p.Child("currentHealthy"), int64(s.CurrentHealthy))
	l.Nonnegative(p.Child("desiredHealthy"), int64(s.DesiredHealthy))
	l.Nonnegative(p.Child("expectedPods"), int64(s.ExpectedPods))
	return l.Errors
}
