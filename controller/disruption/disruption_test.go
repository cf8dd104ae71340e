package disruption_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/controller/disruption"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func budget(change func(*policyv1.PodDisruptionBudget)) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b", UID: "b", Generation: 3},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	change(b)
	return b
}

func minAvailable(v intstr.IntOrString) func(*policyv1.PodDisruptionBudget) {
	return func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable = &v }
}

func maxUnavailable(v intstr.IntOrString) func(*policyv1.PodDisruptionBudget) {
	return func(b *policyv1.PodDisruptionBudget) { b.Spec.MaxUnavailable = &v }
}

// pods makes n Pods of a set, the first ready ones ready.
func pods(n, ready int, kind string) []runtime.Object {
	var out []runtime.Object
	for i := range n {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprint(i)),
			Labels:          map[string]string{"app": "web"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: "web", UID: "rs", Controller: new(true)}}}}
		if i < ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		out = append(out, p)
	}
	return out
}

func set(replicas int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "rs"}, Spec: appsv1.ReplicaSetSpec{Replicas: &replicas}}
}

func show(w *enginetest.World) string {
	b, _ := w.Client.PolicyV1().PodDisruptionBudgets("ns").Get(w.T.Context(), "b", metav1.GetOptions{})
	s := b.Status
	return strings.TrimSpace(fmt.Sprintf("allowed %d healthy %d/%d of %d %s", s.DisruptionsAllowed, s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods, s.Conditions[0].Reason))
}

func TestAllowance(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*policyv1.PodDisruptionBudget)
		pods   []runtime.Object
		want   string
	}{
		"minAvailable":            {minAvailable(intstr.FromInt32(2)), pods(3, 3, "ReplicaSet"), "allowed 1 healthy 3/2 of 3 SufficientPods"},
		"minAvailable, one sick":  {minAvailable(intstr.FromInt32(2)), pods(3, 2, "ReplicaSet"), "allowed 0 healthy 2/2 of 3 InsufficientPods"},
		"minAvailable %":          {minAvailable(intstr.FromString("50%")), pods(3, 3, "ReplicaSet"), "allowed 1 healthy 3/2 of 4 SufficientPods"},
		"maxUnavailable":          {maxUnavailable(intstr.FromInt32(1)), pods(4, 4, "ReplicaSet"), "allowed 1 healthy 4/3 of 4 SufficientPods"},
		"maxUnavailable, missing": {maxUnavailable(intstr.FromInt32(1)), pods(3, 3, "ReplicaSet"), "allowed 0 healthy 3/3 of 4 InsufficientPods"},
		"unknown owner":           {maxUnavailable(intstr.FromInt32(1)), pods(3, 3, "Widget"), "allowed 0 healthy 0/0 of 0 SyncFailed"},
		"no pods":                 {maxUnavailable(intstr.FromInt32(1)), nil, "allowed 0 healthy 0/0 of 0 InsufficientPods"},
	} {
		t.Run(name, func(t *testing.T) {
			w := enginetest.New(t, append(c.pods, budget(c.change), set(4))...)
			w.Build(disruption.New(w.Env)).Settle()
			if got := show(w); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// An eviction just admitted counts until its Pod shows as being deleted, for two minutes at most.
func TestEvictionUnderWay(t *testing.T) {
	b := budget(minAvailable(intstr.FromInt32(2)))
	b.Status.DisruptedPods = map[string]metav1.Time{"p0": metav1.NewTime(enginetest.Epoch), "gone": metav1.NewTime(enginetest.Epoch)}
	w := enginetest.New(t, append(pods(3, 3, "ReplicaSet"), b, set(3))...)
	w.Build(disruption.New(w.Env)).Settle()
	if got := show(w); got != "allowed 0 healthy 2/2 of 3 InsufficientPods" {
		t.Error(got)
	}
	w.Step(2 * time.Minute).Settle()
	if got := show(w); got != "allowed 1 healthy 3/2 of 3 SufficientPods" {
		t.Error(got)
	}
	if ev := strings.Join(w.Events(), "|"); !strings.Contains(ev, "Warning NotDeleted Pod was expected by PDB ns/b to be deleted but it wasn't") {
		t.Errorf("events %s", ev)
	}
}
