package workload

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// DisruptionTarget is the condition that tells why a Pod is taken away.
func DisruptionTarget(p *corev1.Pod, reason, message string) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message}
	if p.Status.ObservedGeneration != 0 {
		c.ObservedGeneration = p.Generation
	}
	return c
}

// StatusPatch returns the strategic-merge patch for p's status sub-resource that sets the phase (if
// not empty) and the condition (if not nil). The UID in it makes the server refuse a namesake.
// changed is false if p has all that already.
func StatusPatch(p *corev1.Pod, phase corev1.PodPhase, cond *corev1.PodCondition, now time.Time) (patch []byte, changed bool) {
	status := map[string]any{}
	if phase != "" && p.Status.Phase != phase {
		status["phase"] = phase
	}
	if cond != nil {
		st := p.Status.DeepCopy()
		if SetCondition(st, *cond, now) {
			for _, c := range st.Conditions {
				if c.Type == cond.Type {
					status["conditions"] = []corev1.PodCondition{c} // merged by type
				}
			}
		}
	}
	return marshal(map[string]any{"metadata": map[string]any{"uid": p.UID}, "status": status}), len(status) > 0
}
