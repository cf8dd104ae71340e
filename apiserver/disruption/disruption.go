// Package disruption decides what disruption budgets let an eviction do.
package disruption

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// maxDisruptedPods bounds evictions the disruption controller has not confirmed yet.
const maxDisruptedPods = 2000

// Free tells pods no budget counts: those that cannot be disrupted any more are deleted outright.
func Free(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	}
	return pod.DeletionTimestamp != nil
}

// UnhealthyMayGo tells whether pod may go whatever its budget: a pod that is not ready does not count towards its budget.
func UnhealthyMayGo(pod *corev1.Pod, pdb *policyv1.PodDisruptionBudget) bool {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
			return false
		}
	}
	if p := pdb.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return pdb.Status.CurrentHealthy >= pdb.Status.DesiredHealthy && pdb.Status.DesiredHealthy > 0
}

func tooManyEvictions(retryAfter int, cause string) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", retryAfter)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: cause})
	return err
}

// Charge takes one disruption, of the named pod, from the budget, or says why
// that is not allowed.
func Charge(b *policyv1.PodDisruptionBudget, pod string, now metav1.Time) error {
	if err := Allowed(b); err != nil {
		return err
	}
	if b.Status.DisruptionsAllowed--; b.Status.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&b.Status.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Reason: policyv1.InsufficientPodsReason, Status: metav1.ConditionFalse, ObservedGeneration: b.Status.ObservedGeneration,
		})
	}
	if b.Status.DisruptedPods == nil {
		b.Status.DisruptedPods = map[string]metav1.Time{}
	}
	b.Status.DisruptedPods[pod] = now
	return nil
}

// Allowed says why a budget allows no disruption now.
func Allowed(b *policyv1.PodDisruptionBudget) error {
	st := &b.Status
	switch {
	case st.ObservedGeneration < b.Generation:
		return tooManyEvictions(10, fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name))
	case st.DisruptionsAllowed < 0:
		return budgetForbidden(b, "pdb disruptions allowed is negative", "pdb disruptions allowed is negative")
	case len(st.DisruptedPods) > maxDisruptedPods:
		return budgetForbidden(b, "DisruptedPods map too big - too many evictions not confirmed by PDB controller", "too many pending evictions not confirmed by PDB controller")
	case st.DisruptionsAllowed > 0:
		return nil
	}
	cond := meta.FindStatusCondition(st.Conditions, policyv1.DisruptionAllowedCondition)
	told := cond != nil && cond.Status == metav1.ConditionFalse && cond.Message != ""
	msg := fmt.Sprintf("The disruption budget %s does not allow evicting pods currently", b.Name)
	switch {
	case told && cond.Reason == policyv1.SyncFailedReason:
		msg += " because it failed sync: " + cond.Message
	case st.CurrentHealthy <= st.DesiredHealthy:
		msg = fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, st.DesiredHealthy, st.CurrentHealthy)
	case told:
		msg += fmt.Sprintf(" (%s): %s", cond.Reason, cond.Message)
	}
	return tooManyEvictions(0, msg)
}

func budgetForbidden(b *policyv1.PodDisruptionBudget, reason, cause string) error {
	err := apierrors.NewForbidden(schema.GroupResource{Group: "policy", Resource: "poddisruptionbudget"}, b.Name, errors.New(reason))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: policyv1.DisruptionBudgetCause, Message: fmt.Sprintf("The disruption budget %s does not allow evicting pods currently: %s", b.Name, cause),
	})
	return err
}
