package nodelifecycle_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/nodelifecycle"
)

func node(name string, ready corev1.ConditionStatus, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(enginetest.Epoch)}}
	if ready != "" {
		for _, t := range []corev1.NodeConditionType{"MemoryPressure", "DiskPressure", "PIDPressure"} {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse})
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeReady, Status: ready,
			LastHeartbeatTime: metav1.NewTime(enginetest.Epoch)})
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func inZone(z string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelTopologyZone: z} }
}

func lease(name string, at time.Time) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: name},
		Spec: coordinationv1.LeaseSpec{RenewTime: new(metav1.NewMicroTime(at))}}
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(nodelifecycle.New(w.Env, nodelifecycle.Config{}))
}

// show prints the node's readiness and taints.
func show(w *enginetest.World, name string) string {
	n, err := w.Client.CoreV1().Nodes().Get(w.T.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	out := []string{"none"}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out[0] = strings.TrimSpace(string(c.Status) + " " + c.Reason)
		}
	}
	var taints []string
	for _, t := range n.Spec.Taints {
		taints = append(taints, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(taints)
	return strings.Join(append(out, taints...), " ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

const (
	lost    = "Unknown NodeStatusUnknown unreachable:NoExecute unreachable:NoSchedule"
	waiting = "Unknown NodeStatusUnknown unreachable:NoSchedule"
)

func pod(name, on string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: on},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
}

func TestSilentNode(t *testing.T) {
	w := world(t, node("a", "True"), node("b", "True"), pod("p", "a")).Settle()
	expect(t, "events", strings.Join(w.Events(), "|"), "Normal RegisteredNode Node a event: Registered Node a in Controller|"+
		"Normal RegisteredNode Node b event: Registered Node b in Controller")
	for i := range 10 { // b lives by its lease alone
		w.Step(5 * time.Second)
		w.Put(lease("b", enginetest.Epoch.Add(time.Duration(i)*5*time.Second)))
		w.Settle()
	}
	expect(t, "a at 50 s", show(w, "a"), "True")
	w.Step(time.Second).Settle()
	expect(t, "a at 51 s", show(w, "a"), lost)
	expect(t, "b at 51 s", show(w, "b"), "True")
	p, _ := w.Client.CoreV1().Pods("ns").Get(t.Context(), "p", metav1.GetOptions{})
	if p.Status.Conditions[0].Status != corev1.ConditionFalse {
		t.Error("the pod is still ready")
	}
	expect(t, "events", strings.Join(w.Events(), "|"),
		"Normal NodeNotReady Node a status is now: NodeNotReady|Warning NodeNotReady Node is not ready")
	n := node("a", "True", func(n *corev1.Node) {
		stored, _ := w.Client.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{})
		n.Spec = stored.Spec
		n.Status.Conditions[3].LastHeartbeatTime = metav1.NewTime(w.Clock.Now())
	})
	w.Put(n)
	w.Settle()
	expect(t, "a is back", show(w, "a"), "True")
}

func TestNeverPostedStatus(t *testing.T) {
	w := world(t, node("a", ""), node("b", "True")).Settle()
	w.Step(59 * time.Second)
	w.Put(lease("b", w.Clock.Now()))
	w.Settle()
	expect(t, "at 59 s", show(w, "a"), "none")
	w.Step(2 * time.Second).Settle()
	expect(t, "at 61 s", show(w, "a"), "Unknown NodeStatusNeverUpdated unreachable:NoExecute unreachable:NoSchedule")
}

// With no ready node left, nobody is evicted, and taints go again.
func TestLoneNodeKeepsItsPods(t *testing.T) {
	w := world(t, node("a", "True")).Settle()
	w.Step(51 * time.Second).Settle()
	expect(t, "silent", show(w, "a"), waiting)
}

func TestClockJumpOfANodeHarmsNobody(t *testing.T) {
	w := world(t, node("a", "True"), node("b", "True")).Settle()
	for i := range 20 {
		w.Step(10 * time.Second)
		w.Put(lease("a", enginetest.Epoch.Add(-time.Hour+time.Duration(i)*10*time.Second))) // an hour behind
		w.Put(lease("b", enginetest.Epoch.Add(time.Hour+time.Duration(i)*10*time.Second)))  // an hour ahead
		w.Settle()
	}
	expect(t, "a", show(w, "a"), "True")
	expect(t, "b", show(w, "b"), "True")
}

func TestConditionTaints(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*corev1.Node)
		want   string
	}{
		"memory":        {func(n *corev1.Node) { n.Status.Conditions[0].Status = "True" }, "True memory-pressure:NoSchedule"},
		"disk":          {func(n *corev1.Node) { n.Status.Conditions[1].Status = "True" }, "True disk-pressure:NoSchedule"},
		"pid":           {func(n *corev1.Node) { n.Status.Conditions[2].Status = "True" }, "True pid-pressure:NoSchedule"},
		"not ready":     {func(n *corev1.Node) { n.Status.Conditions[3].Status = "False" }, "False not-ready:NoExecute not-ready:NoSchedule"},
		"unschedulable": {func(n *corev1.Node) { n.Spec.Unschedulable = true }, "True unschedulable:NoSchedule"},
		"stale and foreign": {func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/disk-pressure", Effect: "NoSchedule"}, {Key: "mine", Effect: "NoExecute"}}
		}, "True mine:NoExecute"},
		"no network": {func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: "NetworkUnavailable", Status: "True"})
		}, "True network-unavailable:NoSchedule"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t, node("a", "True", c.change), node("b", "True")).Settle()
			expect(t, "node", show(w, "a"), c.want)
		})
	}
}

// One node each 10 s loses its Pods; with more than half of a small zone down, none any more.
func TestZonePacesEviction(t *testing.T) {
	var objs []runtime.Object
	for i := range 10 {
		objs = append(objs, node(fmt.Sprintf("n%d", i), "True", inZone("z")))
	}
	w := world(t, objs...).Settle()
	down := func(i int) {
		n, _ := w.Client.CoreV1().Nodes().Get(t.Context(), fmt.Sprintf("n%d", i), metav1.GetOptions{})
		n = n.DeepCopy()
		n.Status.Conditions[3].Status = "False"
		w.Put(n)
	}
	tainted := func() int {
		n := 0
		for i := range 10 {
			if strings.Contains(show(w, fmt.Sprintf("n%d", i)), "NoExecute") {
				n++
			}
		}
		return n
	}
	for i := range 4 {
		down(i)
	}
	w.Settle()
	expect(t, "at once", fmt.Sprint(tainted()), "1")
	w.Step(10 * time.Second).Settle()
	expect(t, "after 10 s", fmt.Sprint(tainted()), "2")
	for i := 4; i < 8; i++ {
		down(i)
	}
	w.Settle()
	w.Step(20 * time.Second).Settle()
	w.Step(20 * time.Second).Settle()
	expect(t, "with 8 of 10 down", fmt.Sprint(tainted()), "2")
}

func TestOldLabels(t *testing.T) {
	w := world(t, node("a", "True", func(n *corev1.Node) {
		n.Labels = map[string]string{corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64", "beta.kubernetes.io/arch": "arm"}
	})).Settle()
	n, _ := w.Client.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{})
	expect(t, "labels", n.Labels["beta.kubernetes.io/os"]+" "+n.Labels["beta.kubernetes.io/arch"], "linux amd64")
}

// Heartbeats alone must not make work.
func TestHeartbeatsWakeNobody(t *testing.T) {
	w := world(t, node("a", "True"), node("b", "True")).Settle()
	w.Put(lease("a", w.Clock.Now()))
	w.Put(node("a", "True", func(n *corev1.Node) {
		n.Status.Conditions[3].LastHeartbeatTime = metav1.NewTime(enginetest.Epoch.Add(time.Second))
	}))
	w.Observe()
	if keys := w.Queued(); len(keys) > 0 {
		t.Errorf("woken: %v", keys)
	}
}
