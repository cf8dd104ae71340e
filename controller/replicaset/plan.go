package replicaset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/controller/workload"
)

// burst is the most Pods created or deleted by one reconcile.
const burst = 500

// observed is everything a plan depends on.
type observed struct {
	set         *appsv1.ReplicaSet
	pods        []*corev1.Pod  // active, held by the set
	terminating []*corev1.Pod  // still ours, being deleted, not finished
	rank        map[string]int // active Pods of the set's siblings per node
	settled     bool           // the cache shows our own last writes
	uncounted   bool           // the kind has no status.terminatingReplicas
	now         time.Time
}

// plan is what to do: at most one of create and remove is set.
type plan struct {
	create int
	remove []*corev1.Pod
}

// planReplicas decides how many Pods to create or which to delete. With an unsettled cache, or a
// set being deleted, it decides nothing: acting on old news makes too many or too few Pods.
func planReplicas(o observed) plan {
	if !o.settled || o.set.DeletionTimestamp != nil {
		return plan{}
	}
	switch diff := len(o.pods) - int(*o.set.Spec.Replicas); {
	case diff < 0:
		return plan{create: min(-diff, burst)}
	case diff > 0:
		return plan{remove: workload.DeletionOrder(o.pods, o.rank, o.now)[:min(diff, burst)]}
	}
	return plan{}
}

// planStatus computes the status the set should show after manageErr, the outcome of the plan.
func planStatus(o observed, manageErr error) appsv1.ReplicaSetStatus {
	s := *o.set.Status.DeepCopy()
	s.Replicas = int32(len(o.pods))
	s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0
	template := labels.Set(o.set.Spec.Template.Labels).AsSelectorPreValidated()
	for _, p := range o.pods {
		if template.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if workload.IsReady(p) {
			s.ReadyReplicas++
		}
		if workload.IsAvailable(p, o.set.Spec.MinReadySeconds, o.now) {
			s.AvailableReplicas++
		}
	}
	s.TerminatingReplicas = nil
	if !o.uncounted {
		n := int32(len(o.terminating))
		s.TerminatingReplicas = &n
	}
	s.ObservedGeneration = o.set.Generation
	s.Conditions = failureCondition(o, s.Conditions, manageErr)
	return s
}

// failureCondition keeps an existing ReplicaFailure as it is while failures go on, and removes it
// with the first success.
func failureCondition(o observed, conds []appsv1.ReplicaSetCondition, err error) []appsv1.ReplicaSetCondition {
	var out []appsv1.ReplicaSetCondition
	for _, c := range conds {
		if c.Type != appsv1.ReplicaSetReplicaFailure {
			out = append(out, c)
		} else if err != nil {
			return conds
		}
	}
	if err == nil {
		return out
	}
	reason := ""
	switch diff := len(o.pods) - int(*o.set.Spec.Replicas); {
	case diff < 0:
		reason = "FailedCreate"
	case diff > 0:
		reason = "FailedDelete"
	}
	return append(out, appsv1.ReplicaSetCondition{
		Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
		LastTransitionTime: metav1.NewTime(o.now), Reason: reason, Message: err.Error(),
	})
}

func statusEqual(a, b appsv1.ReplicaSetStatus) bool { return equality.Semantic.DeepEqual(a, b) }
