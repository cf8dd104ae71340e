package replicaset_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ktesting "k8s.io/client-go/testing"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/replicaset"
)

func set(replicas int32) *appsv1.ReplicaSet {
	l := map[string]string{"app": "web"}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "web-uid", Generation: 1},
		Spec: appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}},
	}
}

func pod(name string, owner types.UID, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"),
		Labels: map[string]string{"app": "web"}}}
	if owner != "" {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web",
			UID: owner, Controller: new(true)}}
	}
	if change != nil {
		change(p)
	}
	return p
}

func ready(since time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.NodeName = "n1"
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(enginetest.Epoch.Add(-since))}}
	}
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(replicaset.New(w.Env))
}

func status(t *testing.T, w *enginetest.World) appsv1.ReplicaSetStatus {
	t.Helper()
	rs, err := w.Client.AppsV1().ReplicaSets("ns").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return rs.Status
}

func count(lines []string, prefix string) int {
	n := 0
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

func TestCreatesMissingPodsOnce(t *testing.T) {
	w := world(t, set(3)).Settle()
	if got := count(w.Writes(), "create pods"); got != 3 {
		t.Fatalf("created %d pods, want 3", got)
	}
	if got := count(w.Events(), "Normal SuccessfulCreate Created pod: web-"); got != 3 {
		t.Fatalf("%d events, want 3", got)
	}
	if s := status(t, w); s.Replicas != 3 || s.FullyLabeledReplicas != 3 || s.ReadyReplicas != 0 || s.ObservedGeneration != 1 {
		t.Fatalf("status %+v", s)
	}
	pods, _ := w.Client.CoreV1().Pods("ns").List(t.Context(), metav1.ListOptions{})
	if ref := metav1.GetControllerOf(&pods.Items[0]); ref == nil || ref.UID != "web-uid" || !*ref.BlockOwnerDeletion {
		t.Fatalf("owner reference %+v", ref)
	}
}

// A cache that lags behind the controller's own creations must not lead to more Pods.
func TestStaleCacheCreatesNothingTwice(t *testing.T) {
	w := world(t, set(3)).Observe()
	for range 5 {
		if err := w.Reconcile("ns/web"); err != nil {
			t.Fatal(err)
		}
		w.Observe("replicasets.apps")
	}
	if got := count(w.Writes(), "create pods"); got != 3 {
		t.Fatalf("created %d pods, want 3", got)
	}
	if w.Due("ns/web") != 5*time.Minute {
		t.Fatalf("comes back after %v, want the expectation timeout", w.Due("ns/web"))
	}
}

// Pods created and gone again before the cache showed them must be replaced once that is known.
func TestUnobservedPodsAreReplacedAfterTimeout(t *testing.T) {
	w := world(t, set(2)).Observe()
	_ = w.Reconcile("ns/web")
	pods, _ := w.Client.CoreV1().Pods("ns").List(t.Context(), metav1.ListOptions{})
	for i := range pods.Items {
		w.Remove(&pods.Items[i])
	}
	w.Settle()
	if got := count(w.Writes(), "create pods"); got != 2 {
		t.Fatalf("created %d pods before the timeout, want 2", got)
	}
	w.Step(5 * time.Minute).Settle()
	if got := count(w.Writes(), "create pods"); got != 2 {
		t.Fatalf("created %d pods after the timeout, want 2", got)
	}
}

func TestStaleCacheDeletesNothingTwice(t *testing.T) {
	objs := []runtime.Object{set(1)}
	for i := range 4 {
		objs = append(objs, pod(fmt.Sprintf("p%d", i), "web-uid", ready(time.Hour)))
	}
	w := world(t, objs...).Observe()
	for range 3 {
		if err := w.Reconcile("ns/web"); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(w.Writes(), "delete pods"); got != 3 {
		t.Fatalf("deleted %d pods, want 3", got)
	}
}

func TestDeletionOrder(t *testing.T) {
	cost := func(c string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			ready(time.Hour)(p)
			p.Annotations = map[string]string{corev1.PodDeletionCost: c}
		}
	}
	w := world(t, set(6),
		pod("a-old-ready", "web-uid", ready(1000*time.Hour)),
		pod("b-young-ready", "web-uid", ready(time.Minute)),
		pod("c-unready", "web-uid", func(p *corev1.Pod) { p.Spec.NodeName = "n1"; p.Status.Phase = corev1.PodRunning }),
		pod("d-pending", "web-uid", func(p *corev1.Pod) { p.Spec.NodeName = "n1"; p.Status.Phase = corev1.PodPending }),
		pod("e-unscheduled", "web-uid", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		pod("f-cheap", "web-uid", cost("-1")),
	).Settle()
	var order []string
	for n := int32(5); n >= 0; n-- {
		rs := set(n)
		w.Put(rs)
		w.Settle()
		for _, l := range w.Writes() {
			if name, ok := strings.CutPrefix(l, "delete pods "); ok {
				order = append(order, name)
			}
		}
	}
	want := "e-unscheduled d-pending c-unready f-cheap b-young-ready a-old-ready"
	if got := strings.Join(order, " "); got != want {
		t.Fatalf("deleted in order\n%s, want\n%s", got, want)
	}
}

func TestAdoptsOrphansAndReleasesStrays(t *testing.T) {
	w := world(t, set(1), pod("orphan", "", nil),
		pod("stray", "web-uid", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "other"} }),
		pod("foreign", "someone", nil))
	w.Settle()
	get := func(name string) *corev1.Pod {
		p, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if ref := metav1.GetControllerOf(get("orphan")); ref == nil || ref.UID != "web-uid" {
		t.Errorf("orphan not adopted: %+v", ref)
	}
	if refs := get("stray").OwnerReferences; len(refs) != 0 {
		t.Errorf("stray not released: %+v", refs)
	}
	if ref := metav1.GetControllerOf(get("foreign")); ref.UID != "someone" {
		t.Errorf("foreign pod taken: %+v", ref)
	}
	if got := count(w.Writes(), "create pods"); got != 0 {
		t.Errorf("created %d pods though the orphan fills the set", got)
	}
}

// A ReplicaSet deleted on the server, but not yet in the cache, adopts nothing.
func TestDeletedOwnerAdoptsNothing(t *testing.T) {
	w := world(t, set(1), pod("orphan", "", nil)).Observe()
	gone := set(1)
	gone.DeletionTimestamp = new(metav1.NewTime(enginetest.Epoch))
	w.Put(gone)
	if err := w.Reconcile("ns/web"); err == nil || !strings.Contains(err.Error(), "has just been deleted") {
		t.Fatalf("error %v", err)
	}
}

func TestSlowStartStopsAndReportsFailure(t *testing.T) {
	w := world(t, set(10))
	tries := 0
	w.Client.PrependReactor("create", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
		tries++
		return true, nil, errors.New("no quota")
	})
	w.Observe()
	if err := w.Reconcile("ns/web"); err == nil {
		t.Fatal("no error")
	}
	if tries != 1 {
		t.Errorf("%d tries, want 1", tries)
	}
	c := status(t, w).Conditions
	if len(c) != 1 || c[0].Type != appsv1.ReplicaSetReplicaFailure || c[0].Reason != "FailedCreate" || c[0].Message != "no quota" {
		t.Errorf("conditions %+v", c)
	}
	if ev := w.Events(); len(ev) != 1 || ev[0] != "Warning FailedCreate Error creating: no quota" {
		t.Errorf("events %q", ev)
	}
}

func TestCountsReadyAvailableTerminating(t *testing.T) {
	rs := set(3)
	rs.Spec.MinReadySeconds = 30
	w := world(t, rs,
		pod("long", "web-uid", ready(time.Minute)), pod("short", "web-uid", ready(10*time.Second)),
		pod("going", "web-uid", func(p *corev1.Pod) {
			p.DeletionTimestamp = new(metav1.NewTime(enginetest.Epoch))
			p.Finalizers = []string{"x/y"}
		}),
		pod("done", "web-uid", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })).Settle()
	s := status(t, w)
	if s.Replicas != 3 || s.ReadyReplicas != 2 || s.AvailableReplicas != 1 || *s.TerminatingReplicas != 1 {
		t.Fatalf("status %+v", s)
	}
	if due := w.Due("ns/web"); due != 20*time.Second {
		t.Fatalf("comes back after %v, want 20s", due)
	}
	w.Step(20 * time.Second).Settle()
	if s := status(t, w); s.AvailableReplicas != 2 {
		t.Fatalf("available %d after minReadySeconds, want 2", s.AvailableReplicas)
	}
}
