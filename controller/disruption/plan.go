package disruption

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/controller/workload"
)

// deletionTimeout is how long an evicted Pod may take to show as being deleted.
const deletionTimeout = 2 * time.Minute

// observed is everything a plan depends on.
type observed struct {
	budget   *policyv1.PodDisruptionBudget
	pods     []*corev1.Pod // that the budget selects
	scale    int32         // how many Pods their owners want
	scaleErr error         // why scale is not known
	now      time.Time
}

// plan is the wanted status, the Pods whose eviction did not happen, and when to look again.
type plan struct {
	status policyv1.PodDisruptionBudgetStatus
	kept   []*corev1.Pod
	again  time.Duration
}

// planBudget decides how many of the Pods may be disrupted now.
func planBudget(o observed) plan {
	p := plan{status: *o.budget.Status.DeepCopy()}
	s := &p.status
	expected, desired, err := o.wanted()
	if err != nil {
		s.DisruptionsAllowed = 0 // rather none than one too many
		s.ObservedGeneration = o.budget.Generation
		o.setCondition(s, metav1.ConditionFalse, policyv1.SyncFailedReason, err.Error())
		return p
	}
	s.DisruptedPods = o.underWay(&p)
	healthy := int32(0)
	for _, pod := range o.pods {
		if _, going := s.DisruptedPods[pod.Name]; !going && pod.DeletionTimestamp == nil && workload.IsReady(pod) {
			healthy++
		}
	}
	s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods = healthy, desired, expected
	s.DisruptionsAllowed = max(0, healthy-desired)
	if expected <= 0 {
		s.DisruptionsAllowed = 0
	}
	s.ObservedGeneration = o.budget.Generation
	if s.DisruptionsAllowed > 0 {
		o.setCondition(s, metav1.ConditionTrue, policyv1.SufficientPodsReason, "")
	} else {
		o.setCondition(s, metav1.ConditionFalse, policyv1.InsufficientPodsReason, "")
	}
	return p
}

// wanted returns how many Pods there should be and how many of them must be healthy.
func (o observed) wanted() (expected, desired int32, err error) {
	spec := o.budget.Spec
	switch {
	case spec.MaxUnavailable != nil:
		n, err := o.part(spec.MaxUnavailable)
		return o.scale, max(0, o.scale-n), err
	case spec.MinAvailable != nil && spec.MinAvailable.Type == intstr.Int:
		return int32(len(o.pods)), spec.MinAvailable.IntVal, nil
	case spec.MinAvailable != nil:
		n, err := o.part(spec.MinAvailable)
		return o.scale, n, err
	}
	return int32(len(o.pods)), 0, nil
}

func (o observed) part(v *intstr.IntOrString) (int32, error) {
	if o.scaleErr != nil {
		return 0, o.scaleErr
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, int(o.scale), true)
	return int32(n), err
}

// underWay keeps the evictions that are neither done nor overdue.
func (o observed) underWay(p *plan) map[string]metav1.Time {
	var out map[string]metav1.Time
	for name, at := range o.budget.Status.DisruptedPods {
		i := slices.IndexFunc(o.pods, func(x *corev1.Pod) bool { return x.Name == name })
		if i < 0 || o.pods[i].DeletionTimestamp != nil {
			continue
		}
		left := at.Add(deletionTimeout).Sub(o.now)
		if left <= 0 {
			p.kept = append(p.kept, o.pods[i])
			continue
		}
		if out == nil {
			out = map[string]metav1.Time{}
		}
		out[name] = at
		if p.again == 0 || left < p.again {
			p.again = left
		}
	}
	return out
}

func (o observed) setCondition(s *policyv1.PodDisruptionBudgetStatus, st metav1.ConditionStatus, reason, msg string) {
	c := metav1.Condition{Type: policyv1.DisruptionAllowedCondition, Status: st, Reason: reason, Message: msg,
		ObservedGeneration: s.ObservedGeneration, LastTransitionTime: metav1.NewTime(o.now)}
	for i := range s.Conditions {
		if s.Conditions[i].Type != c.Type {
			continue
		}
		if s.Conditions[i].Status == st {
			c.LastTransitionTime = s.Conditions[i].LastTransitionTime
		}
		s.Conditions[i] = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}

func unknownOwner(ref *metav1.OwnerReference) error {
	return fmt.Errorf("found no scale for owner %s %s (%s)", ref.Kind, ref.Name, ref.APIVersion)
}
