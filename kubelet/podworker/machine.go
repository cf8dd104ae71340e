// Package podworker decides what to do next for one pod. A Machine is a pure state machine: Step
// takes the desired pod, the runtime's state, probe verdicts and the time, and returns actions to
// execute, the status to publish and the time at which it wants to be asked again. Done reports
// the outcome of an action. The machine starts no goroutine, reads no clock and does no I/O.
package podworker

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/kubelet/allocation"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/status"
)

// Kind names an action.
type Kind string

// The actions a machine asks for.
const (
	Mount         Kind = "mount"          // make the pod's folders, cgroup and volumes
	CreateSandbox Kind = "create-sandbox" // Attempt
	StopSandbox   Kind = "stop-sandbox"   // ID
	Start         Kind = "start"          // Container: pull, create, start, postStart hook
	CancelStart   Kind = "cancel-start"   // give up the start in flight; its Done still comes
	PreStop       Kind = "pre-stop"       // Container, ID, Grace: run the preStop hook, at most Grace seconds
	Stop          Kind = "stop"           // Container, ID, Grace
	Resize        Kind = "resize"         // apply granted resources to the pod's cgroup and its running containers
	Cleanup       Kind = "cleanup"        // unmount volumes, remove the cgroup
	DeletePod     Kind = "delete-pod"     // publish the final status, then delete the API object
	Purge         Kind = "purge"          // remove containers, sandboxes, folders and logs
)

// Action is one thing to do. Key identifies it while in flight.
type Action struct {
	Kind      Kind
	Container string
	ID        string
	Attempt   uint32
	Grace     int64 // seconds
}

// Key identifies the action: at most one with the same key is in flight.
func (a Action) Key() string {
	switch a.Kind {
	case Start, CreateSandbox:
		return string(a.Kind)
	case Stop:
		return fmt.Sprintf("stop/%s/%d", a.ID, a.Grace)
	}
	return string(a.Kind) + "/" + a.ID
}

// Event is a Kubernetes event to record; Container "" means the pod itself.
type Event struct{ Type, Reason, Message, Container string }

// Result is how an action ended. Reason "" is success. For Start, Reason is the waiting reason
// ("ErrImagePull", "CreateContainerError", …) and Message its text.
type Result struct{ Reason, Message string }

// Input is what a step looks at. The machine keeps nothing of it.
type Input struct {
	Pod     *v1.Pod // with the resources granted to it, which may not yet be those its spec asks for
	Asked   *v1.Pod // with its own spec
	Pending *Pending
	Granted bool // the resources in Pod were granted just now, to a pod that had others
	Runtime podstate.Runtime
	Probes  map[string]status.Probes // by container id
	// Removed: the pod is no longer wanted (gone from the API, or its file is gone).
	Removed bool
	NodeIPs []string
	Scheme  string
	RRO     bool
	Settle  bool // see status.Input
	Now     time.Time
}

// Output is what a step decided.
type Output struct {
	Actions []Action
	Events  []Event
	Status  v1.PodStatus
	Wake    time.Time // zero: nothing to wait for but events
	// Finished: the pod is gone from the node; the machine can be dropped.
	Finished bool
	// Final: all containers are down for good and the phase is settled.
	Final bool
}

// Limits are the back-off parameters.
type Limits struct {
	CrashInitial, CrashMax time.Duration // default 10 s, 5 min
	ImageInitial, ImageMax time.Duration // default 10 s, 5 min
}

func (l *Limits) defaults() {
	for _, d := range []*time.Duration{&l.CrashInitial, &l.ImageInitial} {
		if *d == 0 {
			*d = 10 * time.Second
		}
	}
	for _, d := range []*time.Duration{&l.CrashMax, &l.ImageMax} {
		if *d == 0 {
			*d = 5 * time.Minute
		}
	}
}

// Machine is the memory between steps. It is not safe for concurrent use.
type Machine struct {
	limits  Limits
	busy    map[string]Action
	waiting map[string]status.Waiting
	crash   map[string]*backoff // by container name and hash
	image   map[string]*backoff // by image
	retry   map[string]retry    // by action or container
	said    map[string]bool     // events emitted once
	kills   map[string]*kill    // by container id
	// In-place resize: what was applied last and what the action in flight applies, the conditions,
	// and why the last try failed.
	actuated, target  allocation.Set
	pending, progress *v1.PodCondition
	resizeError       string
	hold              bool // no container starts in this step
	events            []Event
	old               v1.PodStatus
	gen               int64

	mounted     bool
	terminating bool
	since       time.Time
	cancelled   bool
	verdict     *status.Verdict
	grace       *int64          // of an eviction, in seconds
	stopped     map[string]bool // sandboxes stopped in termination
	cleaned     bool
	deleted     bool
	purged      bool
}

// New makes the machine of a pod seen for the first time by this process. old is the last status
// known, normally pod.Status; actuated is what Actuated returned last, or empty.
func New(old v1.PodStatus, actuated allocation.Set, limits Limits) *Machine {
	limits.defaults()
	m := &Machine{actuated: actuated, limits: limits, old: *old.DeepCopy(),
		busy: map[string]Action{}, waiting: map[string]status.Waiting{}, crash: map[string]*backoff{},
		image: map[string]*backoff{}, retry: map[string]retry{}, said: map[string]bool{},
		kills: map[string]*kill{}, stopped: map[string]bool{}}
	for i := range m.old.Conditions {
		switch c := &m.old.Conditions[i]; c.Type {
		case v1.PodResizePending:
			m.pending = c
		case v1.PodResizeInProgress:
			m.progress = c
		}
	}
	return m
}

// Reject ends the pod with phase Failed before anything of it runs.
func (m *Machine) Reject(reason, message string) {
	m.verdict = &status.Verdict{Reason: reason, Message: message}
}

// Status returns the last status a step produced.
func (m *Machine) Status() v1.PodStatus { return m.old }

// Terminating says whether the pod is on its way down.
func (m *Machine) Terminating() bool { return m.terminating }

// Starting returns the container whose start is in flight, or "".
func (m *Machine) Starting() string { return m.busy[string(Start)].Container }

// Retry forgets waiting times, for when something outside changed that may cure a failure.
func (m *Machine) Retry() { clear(m.retry) }

// Step decides what to do now.
func (m *Machine) Step(in Input) Output {
	o := Output{}
	if in.Pod.Generation != m.gen {
		m.gen = in.Pod.Generation
		clear(m.retry)
	}
	m.grant(&in)
	masked := m.mask(in)
	m.checkDeadline(&in, &o)
	s := m.generate(&in, &masked)
	switch {
	case m.terminating:
	case in.Removed, in.Pod.DeletionTimestamp != nil, m.verdict != nil, status.Terminal(s.Phase):
		m.terminating, m.since = true, in.Now
	}
	if m.terminating {
		m.terminate(&in, &o)
	} else {
		m.sync(&in, &o)
	}
	m.settle(&in)
	masked = m.mask(in)
	s = m.generate(&in, &masked)
	down := m.terminating && !in.Runtime.AnyRunning() && !m.inFlight(Start, CreateSandbox)
	switch {
	case down && m.cleaned:
		status.Finish(&s, podstate.IsStatic(in.Pod))
		o.Final = true
	case !down && status.Terminal(s.Phase) && !status.Terminal(m.old.Phase):
		// Never published as final while containers may run.
		s.Phase, s.Reason, s.Message = m.old.Phase, m.old.Reason, m.old.Message
		if s.Phase == "" {
			s.Phase = v1.PodPending
		}
	}
	m.old = s
	o.Status = *s.DeepCopy()
	o.Events = append(m.events, o.Events...)
	m.events = nil
	o.Finished = m.purged
	return o
}

func (m *Machine) generate(in *Input, rt *podstate.Runtime) v1.PodStatus {
	return status.Generate(status.Input{
		Pod: in.Pod, Old: m.old, Runtime: rt, Waiting: m.waiting, Probes: in.Probes,
		Actuated: m.actuated, Resize: []*v1.PodCondition{m.pending, m.progress},
		Terminal: m.terminating && !in.Runtime.AnyRunning(), Forced: m.verdict,
		NodeIPs: in.NodeIPs, Scheme: in.Scheme, RRO: in.RRO, Settle: in.Settle, Now: in.Now,
	})
}

// mask hides from the status a container whose postStart hook has not finished: it is not
// reported running before (documented behaviour of postStart).
func (m *Machine) mask(in Input) podstate.Runtime {
	rt := in.Runtime
	name := m.Starting()
	c := podstate.FindContainer(in.Pod, name)
	if name == "" || c == nil || c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return rt
	}
	rt.Containers = append([]podstate.Container(nil), rt.Containers...)
	if l := rt.Latest(name); l != nil && l.State == podstate.Running {
		l.State = podstate.Created
		if _, ok := m.waiting[name]; !ok {
			m.waiting[name] = status.Waiting{Reason: "ContainerCreating"}
		}
	}
	return rt
}

// Evict takes a running pod down with phase Failed. Its containers get grace seconds, or what they
// have left if that is less. Later calls, and those for a pod that ends anyway, change nothing.
func (m *Machine) Evict(reason, message string, grace int64) {
	if m.verdict == nil && !m.terminating && !status.Terminal(m.old.Phase) {
		m.verdict, m.grace = &status.Verdict{Reason: reason, Message: message}, &grace
	}
}

func (m *Machine) checkDeadline(in *Input, o *Output) {
	d := in.Pod.Spec.ActiveDeadlineSeconds
	if d == nil || m.old.StartTime == nil || m.terminating || status.Terminal(m.old.Phase) {
		return
	}
	end := m.old.StartTime.Add(time.Duration(*d) * time.Second)
	if in.Now.Before(end) {
		o.wake(end)
		return
	}
	const msg = "Pod was active on the node longer than the specified deadline"
	m.verdict = &status.Verdict{Reason: "DeadlineExceeded", Message: msg}
	m.event(v1.EventTypeNormal, "DeadlineExceeded", msg, "")
}

func (m *Machine) event(typ, reason, message, container string) {
	if len(m.events) < 100 {
		m.events = append(m.events, Event{typ, reason, message, container})
	}
}

// once records an event the first time the key is seen.
func (m *Machine) once(key, typ, reason, message, container string) {
	if m.said[key] {
		return
	}
	if len(m.said) > 1000 {
		clear(m.said)
	}
	m.said[key] = true
	m.event(typ, reason, message, container)
}

func (m *Machine) do(o *Output, a Action) {
	if _, on := m.busy[a.Key()]; on {
		return
	}
	m.busy[a.Key()] = a
	o.Actions = append(o.Actions, a)
}

func (m *Machine) inFlight(kinds ...Kind) bool {
	for _, a := range m.busy {
		for _, k := range kinds {
			if a.Kind == k {
				return true
			}
		}
	}
	return false
}

func (o *Output) wake(t time.Time) {
	if o.Wake.IsZero() || t.Before(o.Wake) {
		o.Wake = t
	}
}

// Done tells the machine how an action ended.
func (m *Machine) Done(a Action, r Result, now time.Time) {
	delete(m.busy, a.Key())
	ok := r.Reason == ""
	switch a.Kind {
	case Mount:
		m.mounted = m.mounted || ok
	case Start:
		m.startDone(a, r, now)
		return
	case CreateSandbox:
		if !ok && !m.cancelled {
			m.event(v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+r.Message, "")
		}
	case PreStop:
		if k := m.kills[a.ID]; k != nil {
			k.hookDone = true
		}
		return
	case Stop:
		if k := m.kills[a.ID]; k != nil {
			k.failed = !ok
		}
	case StopSandbox:
		m.stopped[a.ID] = ok
	case Cleanup:
		m.cleaned = ok
	case DeletePod:
		m.deleted = ok
	case Purge:
		m.purged = ok
	case Resize:
		m.resizeDone(r)
	}
	m.noteRetry(a.Key(), ok, now)
}
