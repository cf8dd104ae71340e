package kubelet

import (
	"context"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/kubelet/admit"
	"github.com/skiff-project/skiff/kubelet/allocation"
	"github.com/skiff-project/skiff/kubelet/evict"
	"github.com/skiff-project/skiff/kubelet/objects"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/podworker"
	"github.com/skiff-project/skiff/kubelet/probe"
	"github.com/skiff-project/skiff/kubelet/status"
	"github.com/skiff-project/skiff/kubelet/volume"
)

// worker is the shell around one pod's state machine: a goroutine that collects what happened,
// steps the machine and has its actions executed. It sleeps when nothing happens.
type worker struct {
	k   *Kubelet
	uid types.UID

	mu      sync.Mutex // guards what other goroutines hand in and read
	pod     *v1.Pod    // as the API has it
	grants  grants     // what it has of what it asks for
	waits   bool       // its resize is deferred
	granted bool       // resources were granted that the machine has not heard of
	removed bool
	evicted string // why, once it is
	results []result
	dirty   bool // the runtime's state must be read again
	renew   bool // volumes must be brought up to date
	last    v1.PodStatus
	final   bool
	rt      podstate.Runtime
	cancel  context.CancelFunc // of the start, sandbox or mount in flight

	wake    chan struct{}
	machine *podworker.Machine
	prober  *probe.Pod

	volMu    sync.Mutex
	vols     *volume.Pod
	renewing bool
}

type result struct {
	action podworker.Action
	res    podworker.Result
}

func newWorker(k *Kubelet, pod *v1.Pod) *worker {
	w := &worker{k: k, uid: pod.UID, pod: pod, dirty: true, wake: make(chan struct{}, 1), last: pod.Status}
	w.grants = w.readGrants()
	w.machine = podworker.New(pod.Status, w.grants.Actuated, k.cfg.Backoff)
	if w.grants.Allocated.Empty() {
		w.grants.Allocated = allocation.Of(pod)
	}
	w.prober = probe.NewPod(probe.Config{Runner: k.prober, Clock: k.cfg.Clock, Changed: w.poke,
		Event: func(container, reason, message string) {
			w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: reason, Message: message, Container: container})
		}})
	w.poke()
	return w
}

// poke wakes the worker; it never blocks.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// runtimeChanged makes the worker read the runtime's state again.
func (w *worker) runtimeChanged() {
	w.mu.Lock()
	w.dirty = true
	w.mu.Unlock()
	w.poke()
}

func (w *worker) renewVolumes() {
	w.mu.Lock()
	w.renew = true
	w.mu.Unlock()
	w.poke()
}

// update takes a newer API object. Older ones, and the end of a removed pod, are ignored.
func (w *worker) update(pod *v1.Pod) {
	w.mu.Lock()
	shrunk := holdsLess(pod, w.pod)
	if !w.removed {
		w.renew = w.renew || !equality.Semantic.DeepEqual(w.pod.Annotations, pod.Annotations) ||
			!equality.Semantic.DeepEqual(w.pod.Labels, pod.Labels)
		w.pod = pod
	}
	w.mu.Unlock()
	w.poke()
	if shrunk {
		w.k.retryResizes()
	}
}

// remove says the pod is no longer wanted. A pod deleted at the API carries its grace period.
func (w *worker) remove(pod *v1.Pod) {
	w.mu.Lock()
	w.removed = true
	if pod.DeletionTimestamp != nil {
		w.pod = pod
	}
	w.mu.Unlock()
	w.poke()
}

func (w *worker) reject(r *admit.Rejection) {
	w.machine.Reject(r.Reason, "Pod was rejected: "+r.Message)
}

// current is the pod with the resources it was granted.
func (w *worker) current() *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	pod, _ := w.grants.Allocated.Apply(w.pod)
	return pod
}

func (w *worker) status() v1.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *w.last.DeepCopy()
}

func (w *worker) runtime() podstate.Runtime {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rt
}

// active says whether the pod counts against the node's resources.
func (w *worker) active() (*v1.Pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pod, _ := w.grants.Allocated.Apply(w.pod)
	return pod, !w.final && !podstate.Terminal(w.last.Phase)
}

func (w *worker) event(e podworker.Event) {
	pod := w.current()
	ref := &v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion}
	if e.Container != "" {
		ref.FieldPath = fieldPath(pod, e.Container)
	}
	w.k.recorder.Event(ref, e.Type, e.Reason, e.Message)
}

// fieldPath names a container in events.
func fieldPath(pod *v1.Pod, name string) string {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return "spec.initContainers{" + name + "}"
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return "spec.ephemeralContainers{" + name + "}"
		}
	}
	return "spec.containers{" + name + "}"
}

func (w *worker) run(ctx context.Context) {
	defer w.prober.Stop()
	w.k.objects.Register(w.uid, objects.Refs(w.current()))
	timer := w.k.cfg.Clock.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C():
		}
		wake, finished := w.step(ctx)
		if finished {
			w.finish()
			return
		}
		timer.Stop()
		d := time.Hour
		if !wake.IsZero() {
			d = max(wake.Sub(w.k.cfg.Clock.Now()), time.Millisecond)
		}
		timer.Reset(d)
	}
}

// inspectRetry is how soon a runtime that did not answer is asked again.
const inspectRetry = time.Second

func (w *worker) step(ctx context.Context) (wake time.Time, finished bool) {
	k := w.k
	w.mu.Lock()
	asked, removed, results, dirty, renew, evicted := w.pod, w.removed, w.results, w.dirty, w.renew, w.evicted
	w.results, w.dirty, w.renew = nil, false, false
	w.mu.Unlock()
	now := k.cfg.Clock.Now()
	pod, pending := w.allocate(asked)
	if dirty {
		rt, err := k.inspector.Pod(ctx, w.uid)
		if err != nil {
			w.mu.Lock()
			w.dirty, w.results, w.renew = true, append(results, w.results...), w.renew || renew
			w.mu.Unlock()
			if ctx.Err() == nil {
				k.cfg.Log.Warn("cannot read the state of a pod from the runtime", "pod", podstate.Format(pod), "err", err)
			}
			return now.Add(inspectRetry), false
		}
		w.mu.Lock()
		w.rt = rt
		w.mu.Unlock()
	}
	for _, r := range results {
		w.machine.Done(r.action, r.res, now)
	}
	if renew {
		w.machine.Retry()
	}
	if evicted != "" {
		w.machine.Evict(evict.Reason, evicted, evict.Grace)
	}
	w.mu.Lock()
	granted := w.granted
	w.granted = false
	w.mu.Unlock()
	out := w.machine.Step(podworker.Input{Pod: pod, Asked: asked, Pending: pending, Granted: granted, Runtime: w.runtime(), Probes: w.prober.Results(), Removed: removed,
		NodeIPs: k.cfg.NodeIPs, Scheme: k.runtimeName, RRO: k.rro.Load(), Settle: k.prober.PID != nil, Now: now})
	for _, e := range out.Events {
		w.event(e)
	}
	w.mu.Lock()
	gone := out.Final && !w.final
	w.last, w.final = out.Status, out.Final
	w.mu.Unlock()
	w.keepActuated()
	if gone {
		k.retryResizes()
	}
	w.publish(pod, out.Status, removed)
	w.syncProbes(ctx, pod, &out)
	for _, a := range out.Actions {
		w.launch(ctx, a)
	}
	wake = w.syncVolumes(ctx, renew, out.Wake, now)
	if retry := now.Add(resizeRetry); pending != nil && (wake.IsZero() || retry.Before(wake)) {
		wake = retry
	}
	return wake, out.Finished
}

func (w *worker) publish(pod *v1.Pod, s v1.PodStatus, removed bool) {
	if podstate.IsStatic(pod) {
		if m := w.k.mirror(pod.Namespace, pod.Name); m != nil && podstate.IsMirror(m) && m.Annotations[podstate.ConfigMirror] == pod.Annotations[podstate.ConfigHash] {
			w.k.statuses.set(m, s)
		}
		return
	}
	if !removed {
		w.k.statuses.set(pod, s)
	}
}

// syncProbes probes exactly the containers that run now.
func (w *worker) syncProbes(ctx context.Context, pod *v1.Pod, out *podworker.Output) {
	var running []probe.Running
	rt := w.runtime()
	starting := w.machine.Starting()
	collect := func(list []v1.ContainerStatus) {
		for i := range list {
			st := &list[i]
			c := podstate.FindContainer(pod, st.Name)
			latest := rt.Latest(st.Name)
			if st.State.Running == nil || c == nil || latest == nil || latest.State != podstate.Running || st.Name == starting {
				continue
			}
			running = append(running, probe.Running{Container: c, ID: latest.ID, StartedAt: latest.StartedAt,
				Started: st.Started != nil && *st.Started})
		}
	}
	collect(out.Status.ContainerStatuses)
	collect(out.Status.InitContainerStatuses)
	w.prober.Sync(ctx, pod, out.Status.PodIP, running, w.machine.Terminating())
}

// syncVolumes renews volumes that are due, in the background, and says when to look again.
func (w *worker) syncVolumes(ctx context.Context, due bool, wake, now time.Time) time.Time {
	w.volMu.Lock()
	defer w.volMu.Unlock()
	if w.vols == nil || w.machine.Terminating() || w.renewing {
		return wake
	}
	next := w.vols.NextRefresh()
	if !next.IsZero() && !next.After(now) {
		due = true
	}
	if due {
		w.renewing = true
		w.k.spawn(func() { w.renewNow(ctx) })
		return wake
	}
	if !next.IsZero() && (wake.IsZero() || next.Before(wake)) {
		return next
	}
	return wake
}

// renewRetry paces the renewal of volumes when it fails.
const renewRetry = 10 * time.Second

func (w *worker) renewNow(ctx context.Context) {
	pod := w.current()
	w.k.objects.Register(w.uid, objects.Refs(pod))
	w.volMu.Lock()
	vols := w.vols
	var err error
	if vols != nil {
		err = vols.Renew(ctx, pod, w.podIPs())
	}
	w.volMu.Unlock()
	if err != nil && ctx.Err() == nil {
		w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "FailedMount", Message: err.Error()})
		w.k.sleep(ctx, renewRetry)
	}
	w.volMu.Lock()
	w.renewing = false
	w.volMu.Unlock()
	if err != nil {
		w.renewVolumes()
		return
	}
	w.poke()
}

func (w *worker) podIPs() []string {
	pod := w.current()
	if pod.Spec.HostNetwork {
		return w.k.cfg.NodeIPs
	}
	rt := w.runtime()
	return status.SortIPs(rt.IPs(), w.k.cfg.NodeIPs)
}

// launch executes an action in the background and reports back.
func (w *worker) launch(ctx context.Context, a podworker.Action) {
	if a.Kind == podworker.CancelStart {
		w.mu.Lock()
		if w.cancel != nil {
			w.cancel()
		}
		w.mu.Unlock()
		return
	}
	actx, cancel := context.WithCancel(ctx)
	if slices.Contains([]podworker.Kind{podworker.Start, podworker.CreateSandbox, podworker.Mount}, a.Kind) {
		w.mu.Lock()
		w.cancel = cancel
		w.mu.Unlock()
	}
	w.k.spawn(func() {
		defer cancel()
		res := w.do(actx, a)
		w.mu.Lock()
		w.results = append(w.results, result{a, res})
		w.dirty = true
		w.mu.Unlock()
		w.poke()
	})
}

// finish forgets a pod that is gone from the node.
func (w *worker) finish() {
	w.k.objects.Unregister(w.uid)
	w.k.statuses.forget(w.uid)
	w.k.mu.Lock()
	delete(w.k.workers, w.uid)
	w.k.mu.Unlock()
	w.k.nextStatic()
}
