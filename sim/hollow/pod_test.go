package hollow

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

var begin = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// life plays a pod's life by the answers of next alone, as an API server that
// stores what is written, and tells it line by line. At deleteAt the pod's
// deletion is asked for.
func life(pod *corev1.Pod, t Timing, deleteAt time.Duration) string {
	var out strings.Builder
	m := memory{seen: begin, hostIP: "100.64.0.1", podIP: "10.128.0.2"}
	now := begin
	for range 20 {
		at := now.Sub(begin)
		if deleteAt > 0 && at >= deleteAt && pod.DeletionTimestamp == nil {
			pod.DeletionTimestamp = &metav1.Time{Time: now}
			if pod.DeletionGracePeriodSeconds == nil {
				pod.DeletionGracePeriodSeconds = ptr.To[int64](30)
			}
			m.deleting = now
			fmt.Fprintf(&out, "%s delete\n", at)
		}
		s := next(pod, m, now, t)
		switch {
		case s.remove:
			fmt.Fprintf(&out, "%s gone\n", at)
			return out.String()
		case s.status != nil:
			s.status.DeepCopyInto(&pod.Status)
			fmt.Fprintf(&out, "%s %s\n", at, tell(pod))
		case s.after > 0 && (deleteAt == 0 || pod.DeletionTimestamp != nil || at+s.after < deleteAt):
			now = now.Add(s.after)
		case deleteAt > 0 && pod.DeletionTimestamp == nil:
			now = begin.Add(deleteAt)
		default:
			return out.String()
		}
	}
	return out.String() + "without end\n"
}

func tell(pod *corev1.Pod) string {
	s := pod.Status
	text := string(s.Phase)
	if r := condition(s.Conditions, corev1.PodReady); r != nil && r.Status == corev1.ConditionTrue {
		text += " ready"
	} else if r != nil {
		text += " unready " + r.Reason
	}
	for _, c := range append(append([]corev1.ContainerStatus{}, s.InitContainerStatuses...), s.ContainerStatuses...) {
		switch {
		case c.State.Waiting != nil:
			text += fmt.Sprintf(" %s:%s", c.Name, c.State.Waiting.Reason)
		case c.State.Running != nil:
			text += fmt.Sprintf(" %s:running", c.Name)
		case c.State.Terminated != nil:
			text += fmt.Sprintf(" %s:%s(%d)", c.Name, c.State.Terminated.Reason, c.State.Terminated.ExitCode)
		}
	}
	if s.Reason != "" {
		text += " " + s.Reason
	}
	return strings.TrimSpace(text + " " + s.PodIP)
}

func TestPodLives(t *testing.T) {
	slow := Timing{Start: 500 * time.Millisecond, Stop: 100 * time.Millisecond, RunFor: time.Second}
	always := ptr.To(corev1.ContainerRestartPolicyAlways)
	for _, c := range []struct {
		name     string
		timing   Timing
		deleteAt time.Duration
		change   func(*corev1.Pod)
		want     string
	}{
		{"at once", Timing{}, 0, nil, `
0s Running ready c:running 10.128.0.2
`},
		{"created, run, stopped with grace", slow, 5 * time.Second, nil, `
0s Pending unready ContainersNotReady c:ContainerCreating
500ms Running ready c:running 10.128.0.2
5s delete
5.1s Succeeded unready PodCompleted c:Completed(0) 10.128.0.2
5.1s gone
`},
		{"killed when the grace is shorter than the stop", Timing{Stop: time.Minute}, time.Second, func(p *corev1.Pod) {
			p.DeletionGracePeriodSeconds = ptr.To[int64](2)
		}, `
0s Running ready c:running 10.128.0.2
1s delete
3s Failed unready PodFailed c:Error(137) 10.128.0.2
3s gone
`},
		{"deleted before it runs", slow, 100 * time.Millisecond, nil, `
0s Pending unready ContainersNotReady c:ContainerCreating
100ms delete
100ms gone
`},
		{"completes", slow, 0, func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }, `
0s Pending unready ContainersNotReady c:ContainerCreating
500ms Running ready c:running 10.128.0.2
1.5s Succeeded unready PodCompleted c:Completed(0) 10.128.0.2
`},
		{"fails as its annotations say", Timing{}, 0, func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Annotations = map[string]string{AnnotationExitCode: "3", AnnotationRunFor: "2s"}
		}, `
0s Running ready c:running 10.128.0.2
2s Failed unready PodFailed c:Error(3) 10.128.0.2
`},
		{"a deadline", Timing{}, 0, func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](4) }, `
0s Running ready c:running 10.128.0.2
4s Failed unready PodFailed c:Error(137) DeadlineExceeded 10.128.0.2
`},
		{"init containers end, sidecars go on", slow, 0, func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}, {Name: "s", RestartPolicy: always}}
		}, `
0s Pending unready ContainersNotReady i:PodInitializing s:PodInitializing c:ContainerCreating
500ms Running ready i:Completed(0) s:running c:running 10.128.0.2
`},
		{"a readiness gate", Timing{}, 0, func(p *corev1.Pod) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/go"}}
		}, `
0s Running unready ReadinessGatesNotReady c:running 10.128.0.2
`},
		{"a gate that opens", Timing{}, 0, func(p *corev1.Pod) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/go"}}
			p.Status = *run(p, memory{hostIP: "100.64.0.1", podIP: "10.128.0.2"}, begin)
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: "example.com/go", Status: corev1.ConditionTrue})
		}, `
0s Running ready c:running 10.128.0.2
`},
		{"ended already", Timing{}, 0, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "c"}}}}
			if c.change != nil {
				c.change(pod)
			}
			if got := life(pod, c.timing, c.deleteAt); got != strings.TrimPrefix(c.want, "\n") {
				t.Errorf("got\n%swant%s", got, c.want)
			}
		})
	}
}

// A transition time moves only with its status.
func TestConditionKeepsItsTime(t *testing.T) {
	later := begin.Add(time.Minute)
	list := []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Time{Time: begin}}}
	setCondition(&list, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, Reason: "same"}, later)
	if len(list) != 1 || !list[0].LastTransitionTime.Time.Equal(begin) || list[0].Reason != "same" {
		t.Errorf("the same status: %+v", list)
	}
	setCondition(&list, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse}, later)
	if !list[0].LastTransitionTime.Time.Equal(later) {
		t.Errorf("another status: %+v", list)
	}
}

func TestAddresses(t *testing.T) {
	cfg := Config{Prefix: "n"}
	n := cfg.node(300)
	if n.name != "n-300" || n.ip != "100.64.1.45" || n.reserve.String() != "10.129.44.0/24" {
		t.Errorf("node 300 is %s at %s, pods in %s", n.name, n.ip, n.reserve)
	}
	n.cidr = n.reserve
	seen := map[string]bool{}
	for i := range 253 { // all but network, gateway and broadcast
		a, ok := n.take(podUID(i), "")
		if !ok || seen[a.String()] || a.String() == "10.129.44.1" || a.String() == "10.129.44.0" || a.String() == "10.129.44.255" {
			t.Fatalf("address %d: %s, %v", i, a, ok)
		}
		seen[a.String()] = true
	}
	if a, ok := n.take("more", ""); ok {
		t.Errorf("a full node gave %s", a)
	}
	n.release("10.129.44.9", podUID(7)) // 10.129.44.2 was the first pod's
	if a, ok := n.take("more", ""); !ok || a.String() != "10.129.44.9" {
		t.Errorf("after a release: %s, %v", a, ok)
	}
	n.release("10.129.44.9", podUID(7))
	if _, ok := n.take("another", ""); ok {
		t.Error("a pod gave back what is another's")
	}
	if a, ok := n.take("more", "10.129.44.9"); !ok || a.String() != "10.129.44.9" {
		t.Errorf("a pod lost the address it has: %s, %v", a, ok)
	}
}

func podUID(i int) types.UID { return types.UID(fmt.Sprint("pod-", i)) }
