package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/object/cached"
	"github.com/skiff-project/skiff/scheduler/core"
)

// world is a scheduler on a fake API server that binds.
type world struct {
	*testing.T
	client *fake.Clientset
	clock  *clocktesting.FakeClock
	events chan string

	mu       sync.Mutex
	failBind error
}

// recorder is the events.EventRecorder of a world.
type recorder struct{ *world }

func (w recorder) Eventf(regarding, related runtime.Object, eventtype, reason, action, note string, args ...any) {
	pod := regarding.(*v1.Pod)
	w.events <- fmt.Sprintf("%s %s %s %s: %s", pod.Name, eventtype, reason, action, fmt.Sprintf(note, args...))
}

func (w recorder) WithLogger(klog.Logger) events.EventRecorderLogger { return w }

func start(t *testing.T, objects ...runtime.Object) *world {
	w := &world{T: t, client: fake.NewClientset(objects...), clock: clocktesting.NewFakeClock(time.Unix(1e9, 0)), events: make(chan string, 1000)}
	w.client.PrependReactor("create", "pods", w.binding)
	inf := informers.NewSharedInformerFactoryWithOptions(w.client, 0, informers.WithTransform(cached.New("").Transform))
	s, err := New(Config{Client: w.client, Informers: inf, Recorder: recorder{w}, Rand: func(int) int { return 0 }, Clock: w.clock, Parallelism: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		inf.Shutdown()
	})
	return w
}

// binding does what the API server does for pods/binding.
func (w *world) binding(action clienttesting.Action) (bool, runtime.Object, error) {
	create := action.(clienttesting.CreateAction)
	if create.GetSubresource() != "binding" {
		return false, nil, nil
	}
	w.mu.Lock()
	err := w.failBind
	w.mu.Unlock()
	if err != nil {
		return true, nil, err
	}
	b := create.GetObject().(*v1.Binding)
	pods := w.client.Tracker()
	obj, err := pods.Get(v1.SchemeGroupVersion.WithResource("pods"), b.Namespace, b.Name)
	if err != nil {
		return true, nil, err
	}
	pod := obj.(*v1.Pod).DeepCopy()
	pod.Spec.NodeName = b.Target.Name
	return true, b, pods.Update(v1.SchemeGroupVersion.WithResource("pods"), pod, b.Namespace)
}

func (w *world) failBinding(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failBind = err
}

func (w *world) expect(want string) {
	w.Helper()
	select {
	case got := <-w.events:
		if got != want {
			w.Errorf("event\n got %s\nwant %s", got, want)
		}
	case <-time.After(10 * time.Second):
		w.Fatalf("no event; want %s", want)
	}
}

func (w *world) quiet() {
	w.Helper()
	select {
	case got := <-w.events:
		w.Errorf("unexpected event %s", got)
	case <-time.After(30 * time.Millisecond):
	}
}

func (w *world) create(pods ...*v1.Pod) {
	w.Helper()
	for _, p := range pods {
		if _, err := w.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{}); err != nil {
			w.Fatal(err)
		}
	}
}

func node(name, cpu string) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Allocatable = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("110")}
	return n
}

func pod(name, cpu string, edit ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID("uid-" + name)}}
	p.Spec.SchedulerName = v1.DefaultSchedulerName
	p.Spec.Containers = []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}}}}
	for _, e := range edit {
		e(p)
	}
	return p
}

func priority(n int32) func(*v1.Pod) { return func(p *v1.Pod) { p.Spec.Priority = &n } }

func TestBindsAndTells(t *testing.T) {
	w := start(t, node("a", "2"), node("b", "4"))
	w.create(pod("p", "1"))
	w.expect("p Normal Scheduled Binding: Successfully assigned ns/p to b")
}

func TestUnschedulablePodGetsConditionAndLaterANode(t *testing.T) {
	w := start(t, node("a", "1"))
	w.create(pod("p", "2"))
	msg := "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
	w.expect("p Warning FailedScheduling Scheduling: " + msg)
	w.condition("p", v1.PodReasonUnschedulable, msg)
	// A node on which it does not fit wakes nobody.
	w.client.CoreV1().Nodes().Create(context.Background(), node("small", "1"), metav1.CreateOptions{})
	w.quiet()
	w.client.CoreV1().Nodes().Create(context.Background(), node("large", "4"), metav1.CreateOptions{})
	w.quiet() // the back-off of its first failure
	w.tick(firstBackoff)
	w.expect("p Normal Scheduled Binding: Successfully assigned ns/p to large")
}

// tick moves time on when the scheduler sleeps.
func (w *world) tick(d time.Duration) {
	w.Helper()
	for deadline := time.Now().Add(10 * time.Second); !w.clock.HasWaiters(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatal("the scheduler does not sleep")
		}
	}
	w.clock.Step(d)
}

// condition waits for the pod's PodScheduled condition.
func (w *world) condition(name, reason, message string) {
	w.Helper()
	var last string
	for range 1000 {
		for _, a := range w.client.Actions() {
			patch, ok := a.(clienttesting.PatchAction)
			if !ok || patch.GetName() != name || patch.GetSubresource() != "status" {
				continue
			}
			var p v1.Pod
			if err := json.Unmarshal(patch.GetPatch(), &p); err != nil {
				w.Fatal(err)
			}
			for _, c := range p.Status.Conditions {
				if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse && c.Reason == reason && c.Message == message && p.UID == types.UID("uid-"+name) {
					return
				}
				last = fmt.Sprintf("%+v", c)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.Errorf("condition %s, want reason %s and message %s", last, reason, message)
}

func TestNoNodes(t *testing.T) {
	w := start(t)
	w.create(pod("p", "1"))
	w.expect("p Warning FailedScheduling Scheduling: no nodes available to schedule pods")
	w.client.CoreV1().Nodes().Create(context.Background(), node("a", "4"), metav1.CreateOptions{})
	w.quiet()
	w.tick(firstBackoff)
	w.expect("p Normal Scheduled Binding: Successfully assigned ns/p to a")
}

func TestAssumedPodsCount(t *testing.T) {
	w := start(t, node("a", "3"))
	w.create(pod("p1", "1"), pod("p2", "1"), pod("p3", "1"), pod("p4", "1"))
	got := map[string]bool{}
	for range 4 {
		got[strings.Join(strings.Fields(<-w.events)[1:3], " ")] = true
	}
	if !got["Normal Scheduled"] || !got["Warning FailedScheduling"] {
		t.Errorf("events %v", got)
	}
	bound := 0
	list, _ := w.client.CoreV1().Pods("ns").List(context.Background(), metav1.ListOptions{})
	for _, p := range list.Items {
		if p.Spec.NodeName == "a" {
			bound++
		}
	}
	if bound != 3 {
		t.Errorf("%d pods are bound to a node for 3", bound)
	}
}

func TestFailedBindingIsTakenBack(t *testing.T) {
	w := start(t, node("a", "1"))
	w.failBinding(errors.New("no such luck"))
	w.create(pod("p", "1"))
	msg := `running Bind plugin "DefaultBinder": no such luck`
	w.expect("p Warning FailedScheduling Scheduling: " + msg)
	w.condition("p", v1.PodReasonSchedulerError, msg)
	w.failBinding(nil)
	w.tick(firstBackoff)
	w.expect("p Normal Scheduled Binding: Successfully assigned ns/p to a")
}

func TestDeletedPodMakesRoom(t *testing.T) {
	w := start(t, node("a", "1"), pod("old", "1", func(p *v1.Pod) { p.Spec.NodeName = "a" }))
	w.create(pod("p", "1"))
	w.expect("p Warning FailedScheduling Scheduling: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
	w.client.CoreV1().Pods("ns").Delete(context.Background(), "old", metav1.DeleteOptions{})
	w.quiet()
	w.tick(firstBackoff)
	w.expect("p Normal Scheduled Binding: Successfully assigned ns/p to a")
}

func TestPreemption(t *testing.T) {
	w := start(t, node("a", "1"), pod("low", "1", priority(1), func(p *v1.Pod) { p.Spec.NodeName = "a" }))
	w.create(pod("high", "1", priority(10)))
	w.expect("low Normal Preempted Preempting: Preempted by pod uid-high on node a")
	w.expect("high Warning FailedScheduling Scheduling: 0/1 nodes are available: 1 Insufficient cpu. preemption: found a potential placement for pod on node a, preempting 1 victims")
	// The place is kept for it, not given to the next comer.
	w.create(pod("thief", "1"))
	w.expect("thief Warning FailedScheduling Scheduling: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
	w.tick(firstBackoff)
	w.expect("high Normal Scheduled Binding: Successfully assigned ns/high to a")
}

func TestGatedAndForeignPodsWait(t *testing.T) {
	w := start(t, node("a", "4"))
	gated := pod("gated", "1", func(p *v1.Pod) { p.Spec.SchedulingGates = []v1.PodSchedulingGate{{Name: "example.com/wait"}} })
	w.create(gated, pod("foreign", "1", func(p *v1.Pod) { p.Spec.SchedulerName = "other" }))
	w.quiet()
	gated.Spec.SchedulingGates = nil
	if _, err := w.client.CoreV1().Pods("ns").Update(context.Background(), gated, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.expect("gated Normal Scheduled Binding: Successfully assigned ns/gated to a")
	w.quiet()
}

func TestClaims(t *testing.T) {
	far := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
	far.Spec.NodeAffinity = &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
		MatchFields: []v1.NodeSelectorRequirement{{Key: "metadata.name", Operator: v1.NodeSelectorOpIn, Values: []string{"b"}}}}}}}
	claim := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "ns"}}
	w := start(t, node("a", "4"), node("b", "1"), far, claim)
	with := func(name string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
		}
	}
	tail := " preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
	w.create(pod("lost", "1", with("nothing")))
	w.expect(`lost Warning FailedScheduling Scheduling: 0/2 nodes are available: persistentvolumeclaim "nothing" not found.` + tail)
	w.create(pod("p", "1", with("data")))
	w.expect("p Warning FailedScheduling Scheduling: 0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims." + tail)
	bound := claim.DeepCopy()
	bound.Spec.VolumeName = "pv"
	w.client.CoreV1().PersistentVolumeClaims("ns").Update(context.Background(), bound, metav1.UpdateOptions{})
	w.quiet()
	w.tick(firstBackoff)
	got := map[string]bool{<-w.events: true, <-w.events: true} // "lost" tries again too
	if !got["p Normal Scheduled Binding: Successfully assigned ns/p to b"] {
		t.Errorf("events %v", got)
	}
}

func TestQueueOrder(t *testing.T) {
	q := newQueue()
	now := time.Unix(1e9, 0)
	add := func(name string, prio int32, at time.Duration) {
		p, err := core.Compile(pod(name, "1", priority(prio)))
		if err != nil {
			t.Fatal(err)
		}
		q.set(p, true, now.Add(at))
	}
	add("late", 5, 2*time.Second)
	add("early", 5, time.Second)
	add("urgent", 9, 3*time.Second)
	add("raised", 1, 0)
	add("raised", 7, 4*time.Second) // updated: its priority counts, not its age
	var got []string
	for e := q.pop(now); e != nil; e = q.pop(now) {
		got = append(got, e.pod.Name)
		q.park(e, map[string]bool{core.NodeResourcesFit: true}, now)
	}
	if want := "urgent raised early late"; strings.Join(got, " ") != want {
		t.Errorf("order %v, want %s", got, want)
	}
	if d := q.wait(now); d != maxParked {
		t.Errorf("parked pods are tried again after %v", d)
	}
	// Back-off doubles from a second to ten.
	e := q.all["uid-urgent"]
	var waits []string
	for range 6 {
		q.ready(e, now)
		waits = append(waits, e.until.Sub(now).String())
		now = e.until
		if q.pop(now) != e {
			t.Fatal("not ready after its back-off")
		}
		q.park(e, nil, now)
	}
	if want := "1s 2s 4s 8s 10s 10s"; strings.Join(waits, " ") != want {
		t.Errorf("back-offs %v, want %s", waits, want)
	}
}

// lateStorage is a class that waits for the pod's node, claims of that class, and the use of them all by a pod.
func lateStorage(provisioner string, claims ...string) (objects []runtime.Object, use func(*v1.Pod)) {
	mode, class := storagev1.VolumeBindingWaitForFirstConsumer, "late"
	objects = append(objects, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: provisioner, VolumeBindingMode: &mode,
		AllowedTopologies: []v1.TopologySelectorTerm{{MatchLabelExpressions: []v1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"b"}}}}}})
	for _, name := range claims {
		c := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)}}
		c.Spec.StorageClassName, c.Spec.AccessModes = &class, []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}
		c.Spec.Resources.Requests = v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
		objects = append(objects, c)
	}
	return objects, func(p *v1.Pod) {
		for _, name := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: name, VolumeSource: v1.VolumeSource{
				PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
		}
	}
}

func inZone(n *v1.Node, zone string) *v1.Node {
	n.Labels = map[string]string{"zone": zone}
	return n
}

// localVolume can be reached in one zone only.
func localVolume(name, zone string) *v1.PersistentVolume {
	v := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1.PersistentVolumeStatus{Phase: v1.VolumeAvailable}}
	v.Spec.StorageClassName, v.Spec.AccessModes = "late", []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}
	v.Spec.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
	v.Spec.NodeAffinity = &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
		{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "zone", Operator: v1.NodeSelectorOpIn, Values: []string{zone}}}}}}}
	return v
}

func (w *world) eventually(what string, ok func() bool) {
	w.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatal(what, "does not happen")
		}
		w.clock.Step(100 * time.Millisecond) // back-offs pass
	}
}

// bindClaim does what the binder of volumes does once a volume is there.
func (w *world) bindClaim(name, volume string) {
	w.Helper()
	claims := w.client.CoreV1().PersistentVolumeClaims("ns")
	c, err := claims.Get(context.Background(), name, metav1.GetOptions{})
	if err == nil {
		c.Spec.VolumeName, c.Status.Phase = volume, v1.ClaimBound
		_, err = claims.Update(context.Background(), c, metav1.UpdateOptions{})
	}
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) nodeOf(name string) string {
	p, err := w.client.CoreV1().Pods("ns").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return p.Spec.NodeName
}

func TestAProvisionerIsToldTheNode(t *testing.T) {
	objects, use := lateStorage("example.com/p", "c")
	w := start(t, append(objects, inZone(node("n1", "8"), "a"), inZone(node("n2", "8"), "b"))...)
	w.create(pod("p", "1", use))
	selected := func() string {
		c, err := w.client.CoreV1().PersistentVolumeClaims("ns").Get(context.Background(), "c", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return c.Annotations["volume.kubernetes.io/selected-node"]
	}
	w.eventually("the choice of a node", func() bool { return selected() != "" })
	if got := selected(); got != "n2" {
		t.Errorf("the volume is to be made on %s, outside the class's topology", got)
	}
	if n := w.nodeOf("p"); n != "" {
		t.Errorf("the pod is on %s before its volume is there", n)
	}
	if _, err := w.client.CoreV1().PersistentVolumes().Create(context.Background(), localVolume("v", "b"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.bindClaim("c", "v")
	w.eventually("the pod's binding", func() bool { return w.nodeOf("p") == "n2" })
}

func TestLateClaimsGetVolumesOfOneNode(t *testing.T) {
	objects, use := lateStorage("kubernetes.io/no-provisioner", "c1", "c2")
	objects = append(objects, inZone(node("n1", "8"), "a"), inZone(node("n2", "8"), "b"), localVolume("v1", "a"), localVolume("v2", "b"), localVolume("v3", "b"))
	w := start(t, objects...)
	w.create(pod("p", "1", use))
	claimant := func(name string) string {
		v, err := w.client.CoreV1().PersistentVolumes().Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if v.Spec.ClaimRef == nil {
			return ""
		}
		return v.Spec.ClaimRef.Name
	}
	w.eventually("the choice of volumes", func() bool { return claimant("v2") != "" && claimant("v3") != "" })
	if claimant("v1") != "" || claimant("v2") == claimant("v3") {
		t.Errorf("v1 is for %q, v2 for %q, v3 for %q", claimant("v1"), claimant("v2"), claimant("v3"))
	}
	w.bindClaim(claimant("v2"), "v2")
	w.bindClaim(claimant("v3"), "v3")
	w.eventually("the pod's binding", func() bool { return w.nodeOf("p") == "n2" })
}

func TestNoVolumeForALateClaim(t *testing.T) {
	objects, use := lateStorage("kubernetes.io/no-provisioner", "c1", "c2")
	w := start(t, append(objects, inZone(node("n1", "8"), "a"), localVolume("v1", "a"))...)
	w.create(pod("p", "1", use))
	w.expect("p Warning FailedScheduling Scheduling: 0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind. " +
		"preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
}
