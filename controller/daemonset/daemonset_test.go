package daemonset_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/controller/daemonset"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{"kubernetes.io/hostname": name}}}
	for _, f := range change {
		f(n)
	}
	return n
}

func taint(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}

func agent(change ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	l := map[string]string{"app": "agent"}
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "agent", UID: "ds", Generation: 1},
		Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: l}, RevisionHistoryLimit: new(int32(10)),
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: new(intstr.FromInt32(1)), MaxSurge: new(intstr.FromInt32(0))}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}
	for _, f := range change {
		f(ds)
	}
	return ds
}

func image(i string) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = i; ds.Generation++ }
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(daemonset.New(w.Env))
}

// edit changes the stored set.
func edit(w *enginetest.World, fn func(*appsv1.DaemonSet)) {
	ds, err := w.Client.AppsV1().DaemonSets("ns").Get(context.Background(), "agent", metav1.GetOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	ds = ds.DeepCopy()
	fn(ds)
	w.Put(ds)
}

func pods(w *enginetest.World) []corev1.Pod {
	l, _ := w.Client.CoreV1().Pods("ns").List(context.Background(), metav1.ListOptions{})
	return l.Items
}

func target(p *corev1.Pod) string {
	return p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
}

// show lists node=image, "*" marks available Pods.
func show(w *enginetest.World) string {
	var out []string
	for _, p := range pods(w) {
		s := target(&p) + "=" + p.Spec.Containers[0].Image
		if len(p.Status.Conditions) > 0 {
			s += "*"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// kubelet binds and starts every Pod.
func kubelet(w *enginetest.World) {
	for _, p := range pods(w) {
		p.Spec.NodeName = target(&p)
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		w.Put(&p)
	}
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestOnePodPerFittingNode(t *testing.T) {
	w := world(t, agent(func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector = map[string]string{"role": "x"} }),
		node("plain"), node("fits", func(n *corev1.Node) { n.Labels["role"] = "x" }),
		node("tainted", func(n *corev1.Node) { n.Labels["role"] = "x" }, taint("mine", corev1.TaintEffectNoSchedule)),
		node("pressed", func(n *corev1.Node) { n.Labels["role"] = "x" }, taint(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule),
			taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute))).Settle()
	expect(t, "pods", show(w), "fits=v1 pressed=v1")
	ds, _ := w.Client.AppsV1().DaemonSets("ns").Get(t.Context(), "agent", metav1.GetOptions{})
	if s := ds.Status; s.DesiredNumberScheduled != 2 || s.CurrentNumberScheduled != 2 || s.UpdatedNumberScheduled != 2 || s.NumberUnavailable != 2 || s.ObservedGeneration != 1 {
		t.Errorf("status %+v", s)
	}
	revs, _ := w.Client.AppsV1().ControllerRevisions("ns").List(t.Context(), metav1.ListOptions{})
	if len(revs.Items) != 1 || revs.Items[0].Revision != 1 || revs.Items[0].Name != "agent-"+pods(w)[0].Labels["controller-revision-hash"] {
		t.Errorf("revisions %+v", revs.Items)
	}
}

func TestNodesComeAndGo(t *testing.T) {
	w := world(t, agent(), node("a")).Settle()
	w.Put(node("b"))
	w.Settle()
	expect(t, "b came", show(w), "a=v1 b=v1")
	w.Put(node("b", taint("k", corev1.TaintEffectNoSchedule))) // may stay, must not come
	w.Settle()
	expect(t, "b NoSchedule", show(w), "a=v1 b=v1")
	w.Put(node("b", taint("k", corev1.TaintEffectNoExecute)))
	w.Settle()
	expect(t, "b NoExecute", show(w), "a=v1")
}

func TestRollsOneByOne(t *testing.T) {
	w := world(t, agent(), node("a"), node("b"), node("c")).Settle()
	kubelet(w)
	edit(w, image("v2"))
	w.Settle()
	expect(t, "first", show(w), "a=v2 b=v1* c=v1*")
	kubelet(w)
	w.Settle()
	expect(t, "second", show(w), "a=v2* b=v2 c=v1*")
	for range 2 {
		kubelet(w)
		w.Settle()
	}
	kubelet(w)
	w.Settle()
	expect(t, "done", show(w), "a=v2* b=v2* c=v2*")
	edit(w, image("v1")) // undo: the first revision becomes the newest
	w.Settle()
	revs, _ := w.Client.AppsV1().ControllerRevisions("ns").List(t.Context(), metav1.ListOptions{})
	got := []string{}
	for _, r := range revs.Items {
		got = append(got, fmt.Sprint(r.Revision))
	}
	slices.Sort(got)
	expect(t, "revisions", strings.Join(got, " "), "2 3")
}

func TestSurge(t *testing.T) {
	w := world(t, agent(func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy.RollingUpdate.MaxSurge = new(intstr.FromInt32(1))
		ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = new(intstr.FromInt32(0))
	}), node("a"), node("b")).Settle()
	kubelet(w)
	edit(w, image("v2"))
	w.Settle()
	expect(t, "new beside old", show(w), "a=v1* a=v2 b=v1*")
	kubelet(w)
	w.Settle()
	expect(t, "old goes when new is there", show(w), "a=v2* b=v1* b=v2")
}

func TestOnDelete(t *testing.T) {
	w := world(t, agent(func(ds *appsv1.DaemonSet) { ds.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType }), node("a")).Settle()
	kubelet(w)
	edit(w, image("v2"))
	w.Settle()
	expect(t, "untouched", show(w), "a=v1*")
	w.Remove(&pods(w)[0])
	w.Settle()
	expect(t, "replaced", show(w), "a=v2")
}

func TestFailedPodIsReplacedWithBackoff(t *testing.T) {
	w := world(t, agent(), node("a")).Settle()
	fail := func() {
		p := pods(w)[0]
		p.Status.Phase = corev1.PodFailed
		w.Put(&p)
		w.Events()
		w.Settle()
	}
	first := pods(w)[0].Name
	fail()
	if pods(w)[0].Name == first {
		t.Fatal("not replaced")
	}
	second := pods(w)[0].Name
	fail()
	if pods(w)[0].Name != second {
		t.Fatal("replaced again at once")
	}
	w.Step(time.Second).Settle()
	if pods(w)[0].Name == second {
		t.Fatal("not replaced after the back-off")
	}
	if ev := strings.Join(w.Events(), "\n"); !strings.Contains(ev, "Warning FailedDaemonPod Found failed daemon pod ns/"+second+" on node a, will try to kill it") {
		t.Errorf("events %s", ev)
	}
}

func TestStaleCache(t *testing.T) {
	w := world(t, agent(), node("a"), node("b")).Observe()
	for range 3 {
		if err := w.Reconcile("ns/agent"); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "pods", show(w), "a=v1 b=v1")
}
