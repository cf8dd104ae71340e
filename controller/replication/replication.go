// Package replication runs replication controllers: the ReplicaSet loop over core/v1 objects.
package replication

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/replicaset"
	"github.com/skiff-project/skiff/controller/workload"
)

// New returns the ReplicationController controller.
func New(env engine.Env) (*engine.Controller, error) {
	inf := env.Informers.Core().V1().ReplicationControllers()
	api := env.Client.CoreV1()
	return replicaset.NewFor(env, replicaset.Kind{
		Controller:    "replicationcontroller-controller",
		GVK:           corev1.SchemeGroupVersion.WithKind("ReplicationController"),
		Resource:      "replicationcontrollers",
		Informer:      inf.Informer(),
		NoTerminating: true,
		Get: func(ns, name string) (*appsv1.ReplicaSet, error) {
			rc, err := inf.Lister().ReplicationControllers(ns).Get(name)
			if err != nil {
				return nil, err
			}
			return toSet(rc), nil
		},
		List: func(ns string) ([]*appsv1.ReplicaSet, error) {
			rcs, err := inf.Lister().ReplicationControllers(ns).List(labels.Everything())
			if err != nil {
				return nil, err
			}
			out := make([]*appsv1.ReplicaSet, len(rcs))
			for i, rc := range rcs {
				out[i] = toSet(rc)
			}
			return out, nil
		},
		Fresh: func(ctx context.Context, ns, name string) (metav1.Object, error) {
			return api.ReplicationControllers(ns).Get(ctx, name, metav1.GetOptions{})
		},
		SetStatus: func(ctx context.Context, rs *appsv1.ReplicaSet) error {
			_, err := api.ReplicationControllers(rs.Namespace).UpdateStatus(ctx, fromSet(rs), metav1.UpdateOptions{})
			return err
		},
		Object: func(rs *appsv1.ReplicaSet) workload.Owner { return fromSet(rs) },
	})
}

// toSet presents rc as a ReplicaSet; everything is shared with rc except what differs in type.
func toSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        rc.Spec.Replicas,
			MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector:        &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas:             rc.Status.Replicas,
			FullyLabeledReplicas: rc.Status.FullyLabeledReplicas,
			ReadyReplicas:        rc.Status.ReadyReplicas,
			AvailableReplicas:    rc.Status.AvailableReplicas,
			ObservedGeneration:   rc.Status.ObservedGeneration,
			Conditions:           convert[appsv1.ReplicaSetCondition](rc.Status.Conditions, setCondition),
		},
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	return rs
}

// fromSet turns a set made by toSet back; a replication controller has no terminatingReplicas.
func fromSet(rs *appsv1.ReplicaSet) *corev1.ReplicationController {
	return &corev1.ReplicationController{
		ObjectMeta: rs.ObjectMeta,
		Spec: corev1.ReplicationControllerSpec{
			Replicas:        rs.Spec.Replicas,
			MinReadySeconds: rs.Spec.MinReadySeconds,
			Selector:        rs.Spec.Selector.MatchLabels,
			Template:        &rs.Spec.Template,
		},
		Status: corev1.ReplicationControllerStatus{
			Replicas:             rs.Status.Replicas,
			FullyLabeledReplicas: rs.Status.FullyLabeledReplicas,
			ReadyReplicas:        rs.Status.ReadyReplicas,
			AvailableReplicas:    rs.Status.AvailableReplicas,
			ObservedGeneration:   rs.Status.ObservedGeneration,
			Conditions:           convert[corev1.ReplicationControllerCondition](rs.Status.Conditions, rcCondition),
		},
	}
}

func setCondition(c corev1.ReplicationControllerCondition) appsv1.ReplicaSetCondition {
	return appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status,
		LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message}
}

func rcCondition(c appsv1.ReplicaSetCondition) corev1.ReplicationControllerCondition {
	return corev1.ReplicationControllerCondition{Type: corev1.ReplicationControllerConditionType(c.Type),
		Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message}
}

func convert[B, A any](in []A, fn func(A) B) []B {
	var out []B
	for _, a := range in {
		out = append(out, fn(a))
	}
	return out
}
