package podgc_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/podgc"
)

func pod(name, on string, phase corev1.PodPhase, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
		Spec: corev1.PodSpec{NodeName: on}, Status: corev1.PodStatus{Phase: phase}}
	for _, f := range change {
		f(p)
	}
	return p
}

func going(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.NewTime(enginetest.Epoch)) }

func left(w *enginetest.World) string {
	l, _ := w.Client.CoreV1().Pods("ns").List(w.T.Context(), metav1.ListOptions{})
	var out []string
	for _, p := range l.Items {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestPodsOfVanishedNode(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "n"}}
	w := enginetest.New(t, n, pod("a", "n", "Running"), pod("b", "gone", "Running"), pod("c", "", "Pending"))
	w.Build(podgc.New(w.Env, 12500)).Settle()
	w.Step(39 * time.Second).Settle()
	expect(t, "in quarantine", left(w), "a b c")
	w.Step(time.Second).Settle()
	expect(t, "after quarantine", left(w), "a c")
	if writes := strings.Join(w.Writes(), "\n"); !strings.Contains(writes, `"reason":"DeletionByPodGC"`) || !strings.Contains(writes, `"phase":"Failed"`) {
		t.Errorf("writes %s", writes)
	}
	w.Remove(n)
	w.Settle()
	w.Put(n) // back in time
	w.Settle()
	w.Step(time.Minute).Settle()
	expect(t, "node came back", left(w), "a c")
}

func TestTerminatingPods(t *testing.T) {
	dead := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "dead", UID: "d"},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: "NoExecute"}}}}
	live := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "live", UID: "l"}}
	w := enginetest.New(t, dead, live, pod("unscheduled", "", "Pending", going), pod("on-dead", "dead", "Running", going),
		pod("on-live", "live", "Running", going), pod("stays-on-dead", "dead", "Running"))
	w.Build(podgc.New(w.Env, 12500)).Settle()
	expect(t, "left", left(w), "on-live stays-on-dead")
}

func TestFinishedPodsBeyondThreshold(t *testing.T) {
	w := enginetest.New(t)
	for i := range 5 {
		w.Put(pod(fmt.Sprintf("p%d", i), "", "Succeeded", func(p *corev1.Pod) {
			p.CreationTimestamp = metav1.NewTime(enginetest.Epoch.Add(time.Duration(i) * time.Second))
			if i == 4 {
				p.Status.Phase, p.Status.Reason = "Failed", "Evicted"
			}
		}))
	}
	w.Put(pod("running", "", "Running"))
	w.Build(podgc.New(w.Env, 2)).Settle()
	expect(t, "at once", left(w), "p0 p1 p2 p3 p4 running")
	w.Step(20 * time.Second).Settle()
	expect(t, "evicted first, then the oldest", left(w), "p2 p3 running")
}
