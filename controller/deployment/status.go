package deployment

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// status counts replicas as the cache shows them and judges availability.
func (m *model) status() appsv1.DeploymentStatus {
	all := m.all()
	available, total := sum(all, availableReplicas), sum(all, specReplicas)
	s := appsv1.DeploymentStatus{
		ObservedGeneration:  m.d.Generation,
		Replicas:            sum(all, statusReplicas),
		ReadyReplicas:       sum(all, readyReplicas),
		AvailableReplicas:   available,
		UnavailableReplicas: max(0, total-available),
		TerminatingReplicas: terminating(all),
		CollisionCount:      m.d.Status.CollisionCount,
		Conditions:          slices.Clone(m.d.Status.Conditions),
	}
	if m.current != nil {
		s.UpdatedReplicas = m.current.Status.Replicas
	}
	if available >= *m.d.Spec.Replicas-maxUnavailable(m.d) {
		m.set(&s, appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable",
			"Deployment has minimum availability.")
	} else {
		m.set(&s, appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable",
			"Deployment does not have minimum availability.")
	}
	return s
}

// terminating is unknown (nil) as long as one set has not counted.
func terminating(sets []*appsv1.ReplicaSet) *int32 {
	n := int32(0)
	for _, rs := range sets {
		if rs.Status.TerminatingReplicas == nil {
			if rs.Status.ObservedGeneration == 0 {
				continue // not looked at yet: it has no Pods
			}
			return nil
		}
		n += *rs.Status.TerminatingReplicas
	}
	return &n
}

// progress judges how the rollout goes and copies replica failures.
func (m *model) progress(s appsv1.DeploymentStatus) appsv1.DeploymentStatus {
	m.judge(&s)
	s.Conditions = without(s.Conditions, appsv1.DeploymentReplicaFailure,
		func(old appsv1.DeploymentCondition) bool { return m.failure() == nil })
	if f := m.failure(); f != nil {
		setCondition(&s, appsv1.DeploymentCondition{
			Type: appsv1.DeploymentReplicaFailure, Status: f.Status, Reason: f.Reason, Message: f.Message,
			LastTransitionTime: f.LastTransitionTime, LastUpdateTime: f.LastTransitionTime,
		})
	}
	return s
}

func (m *model) judge(s *appsv1.DeploymentStatus) {
	if !hasDeadline(m.d) {
		s.Conditions = without(s.Conditions, appsv1.DeploymentProgressing, nil)
		return
	}
	what := fmt.Sprintf("Deployment %q", m.d.Name)
	if m.current != nil {
		what = fmt.Sprintf("ReplicaSet %q", m.current.Name)
	}
	now := condition(m.d.Status, appsv1.DeploymentProgressing)
	if now != nil && now.Reason == "NewReplicaSetAvailable" && s.Replicas == s.UpdatedReplicas {
		return // the rollout has ended: later changes are not its progress
	}
	switch {
	case complete(m.d, s):
		m.set(s, appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetAvailable",
			what+" has successfully progressed.")
	case progressing(&m.d.Status, s):
		c := m.condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "ReplicaSetUpdated", what+" is progressing.")
		if now != nil && now.Status == corev1.ConditionTrue {
			c.LastTransitionTime = now.LastTransitionTime
		}
		// replaced even if the reason stays: its update time is what the deadline counts from
		s.Conditions = append(without(s.Conditions, appsv1.DeploymentProgressing, nil), c)
	case m.timedOut():
		m.set(s, appsv1.DeploymentProgressing, corev1.ConditionFalse, "ProgressDeadlineExceeded",
			what+" has timed out progressing.")
	}
}

// failure returns the ReplicaFailure of the current set, else of any.
func (m *model) failure() *appsv1.ReplicaSetCondition {
	sets := m.all()
	if m.current != nil {
		sets = append([]*appsv1.ReplicaSet{m.current}, sets...)
	}
	for _, rs := range sets {
		for i := range rs.Status.Conditions {
			if rs.Status.Conditions[i].Type == appsv1.ReplicaSetReplicaFailure {
				return &rs.Status.Conditions[i]
			}
		}
	}
	return nil
}

func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	n := *d.Spec.Replicas
	return s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n && s.ObservedGeneration >= d.Generation
}

func progressing(was, is *appsv1.DeploymentStatus) bool {
	return is.UpdatedReplicas > was.UpdatedReplicas ||
		is.Replicas-is.UpdatedReplicas < was.Replicas-was.UpdatedReplicas ||
		is.ReadyReplicas > was.ReadyReplicas ||
		is.AvailableReplicas > was.AvailableReplicas
}

func (m *model) timedOut() bool {
	c := condition(m.d.Status, appsv1.DeploymentProgressing)
	switch {
	case c == nil || c.Reason == "NewReplicaSetAvailable":
		return false
	case c.Reason == "ProgressDeadlineExceeded":
		return true
	}
	return c.LastUpdateTime.Add(deadline(m.d)).Before(m.now)
}

func deadline(d *appsv1.Deployment) time.Duration {
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

// nextLook returns when the rollout may time out if nothing happens until then; 0 for never.
func nextLook(d *appsv1.Deployment, now time.Time) time.Duration {
	c := condition(d.Status, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c == nil || d.DeletionTimestamp != nil || d.Spec.Paused || complete(d, &d.Status) ||
		c.Reason == "ProgressDeadlineExceeded" || c.Reason == "NewReplicaSetAvailable" {
		return 0
	}
	return max(time.Second, c.LastUpdateTime.Add(deadline(d)).Sub(now)+time.Second)
}

func condition(s appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func (m *model) condition(t appsv1.DeploymentConditionType, st corev1.ConditionStatus, reason, msg string) appsv1.DeploymentCondition {
	now := metav1.NewTime(m.now)
	return appsv1.DeploymentCondition{Type: t, Status: st, Reason: reason, Message: msg,
		LastUpdateTime: now, LastTransitionTime: now}
}

func (m *model) set(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType, st corev1.ConditionStatus, reason, msg string) {
	setCondition(s, m.condition(t, st, reason, msg))
}

// setCondition leaves a condition with the same status and reason alone, times and message too.
func setCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	if old := condition(*s, c.Type); old != nil && old.Status == c.Status {
		if old.Reason == c.Reason {
			return
		}
		c.LastTransitionTime = old.LastTransitionTime
	}
	s.Conditions = append(without(s.Conditions, c.Type, nil), c)
}

// without drops the conditions of type t (those for which drop is true, if given).
func without(in []appsv1.DeploymentCondition, t appsv1.DeploymentConditionType, drop func(appsv1.DeploymentCondition) bool) []appsv1.DeploymentCondition {
	var out []appsv1.DeploymentCondition
	for _, c := range in {
		if c.Type != t || (drop != nil && !drop(c)) {
			out = append(out, c)
		}
	}
	return out
}
