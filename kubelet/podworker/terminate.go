package podworker

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// minGrace is the shortest time, in seconds, a container gets between TERM and KILL.
const minGrace = 2

// drain is how long the containers of a deleted pod go on before their stop signal, so that the
// Service rules of all nodes have let go of the pod when it stops listening. Upstream's own
// latency leaves that time by accident.
const drain = 100 * time.Millisecond

// kill follows one container on its way down: hook first, then the stop signal.
type kill struct {
	since    time.Time
	grace    int64 // seconds
	hookDone bool
	sent     int64 // grace of the last stop asked for; -1 = none
	failed   bool
	resize   bool
}

type killWhy struct {
	message string // event text; "" = Stopping container <name>
	grace   int64
	resize  bool // it ends for nothing but to come back with other resources
	// turn: it is this container's turn to be signalled (sidecars end after the containers they serve).
	wait bool
}

func (w *killWhy) probeGrace(p *v1.Probe) {
	if p != nil && p.TerminationGracePeriodSeconds != nil {
		w.grace = *p.TerminationGracePeriodSeconds
	}
}

// podGrace is the pod's grace period in seconds: of the deletion if there is one, else the spec's.
func podGrace(pod *v1.Pod) int64 {
	if pod.DeletionGracePeriodSeconds != nil {
		return max(1, *pod.DeletionGracePeriodSeconds)
	}
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		return *pod.Spec.TerminationGracePeriodSeconds
	}
	return minGrace
}

// kill moves one container a step towards its end.
func (m *Machine) kill(in *Input, o *Output, c *podstate.Container, why killWhy) {
	k := m.kills[c.ID]
	spec := podstate.FindContainer(in.Pod, c.Name)
	if k == nil {
		if len(m.kills) > 256 {
			clear(m.kills)
		}
		k = &kill{since: in.Now, grace: why.grace, sent: -1, hookDone: true, resize: why.resize}
		m.kills[c.ID] = k
		msg := why.message
		if msg == "" {
			msg = "Stopping container " + c.Name
		}
		m.event(v1.EventTypeNormal, "Killing", msg, c.Name)
		if spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil && why.grace > 0 {
			k.hookDone = false
			m.do(o, Action{Kind: PreStop, Container: c.Name, ID: c.ID, Grace: why.grace})
		}
	}
	k.grace = min(k.grace, why.grace)
	end := k.since.Add(time.Duration(k.grace) * time.Second)
	if (!k.hookDone || why.wait) && in.Now.Before(end) {
		o.wake(end)
		return
	}
	if drained := k.since.Add(drain); in.Pod.DeletionTimestamp != nil && k.grace >= minGrace && in.Now.Before(drained) {
		o.wake(drained)
		return
	}
	if k.sent >= 0 && k.sent <= max(k.grace, minGrace) && !k.failed {
		return
	}
	if k.failed && !m.may(fmt.Sprintf("stop/%s/%d", c.ID, k.sent), in.Now, o) {
		return
	}
	left := max(k.grace-int64(in.Now.Sub(k.since)/time.Second), minGrace)
	k.sent, k.failed = left, false
	a := Action{Kind: Stop, Container: c.Name, ID: c.ID, Grace: left}
	delete(m.retry, a.Key())
	m.do(o, a)
}

// terminate takes the pod down: containers (sidecars last, in reverse order), sandboxes, volumes,
// and for a deleted pod its API object and every trace on the node.
func (m *Machine) terminate(in *Input, o *Output) {
	if m.inFlight(Start, CreateSandbox, Mount) && !m.cancelled {
		o.Actions = append(o.Actions, Action{Kind: CancelStart})
	}
	m.cancelled = true
	alive := m.killAll(in, o)
	if alive || m.inFlight(Start, CreateSandbox, Mount) {
		return
	}
	for _, s := range in.Runtime.Sandboxes {
		stop := Action{Kind: StopSandbox, ID: s.ID}
		if (s.Ready || !m.stopped[s.ID]) && !m.stopped[s.ID] && m.may(stop.Key(), in.Now, o) {
			m.do(o, stop)
		}
		if !m.stopped[s.ID] {
			alive = true
		}
	}
	if alive {
		return
	}
	step := Action{Kind: Cleanup}
	switch {
	case !m.cleaned:
	case in.Removed && !m.purged:
		step = Action{Kind: Purge}
	case in.Pod.DeletionTimestamp != nil && !m.deleted && !podstate.IsStatic(in.Pod):
		step = Action{Kind: DeletePod}
	default:
		return
	}
	if m.may(step.Key(), in.Now, o) {
		m.do(o, step)
	}
}

func (m *Machine) killAll(in *Input, o *Output) (alive bool) {
	grace := podGrace(in.Pod)
	if m.grace != nil {
		grace = min(grace, *m.grace)
	}
	running := map[string]*podstate.Container{}
	for i := range in.Runtime.Containers {
		c := &in.Runtime.Containers[i]
		if c.State == podstate.Running || c.State == podstate.Unknown {
			if running[c.Name] == nil {
				running[c.Name] = c
			}
			alive = true
		}
	}
	sidecarTurn := true
	for name, c := range running {
		if spec := podstate.FindContainer(in.Pod, name); spec == nil || !isSidecarOf(in.Pod, name) {
			_ = c
			sidecarTurn = false
		}
	}
	for i := range in.Runtime.Containers { // newest first: a stable order
		c := &in.Runtime.Containers[i]
		if running[c.Name] == c && !isSidecarOf(in.Pod, c.Name) {
			m.kill(in, o, c, killWhy{grace: grace})
		}
	}
	for i := len(in.Pod.Spec.InitContainers) - 1; i >= 0; i-- {
		c := running[in.Pod.Spec.InitContainers[i].Name]
		if c != nil && podstate.IsSidecar(&in.Pod.Spec.InitContainers[i]) {
			m.kill(in, o, c, killWhy{grace: grace, wait: !sidecarTurn})
			sidecarTurn = false
		}
	}
	return alive
}

func isSidecarOf(pod *v1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return podstate.IsSidecar(&pod.Spec.InitContainers[i])
		}
	}
	return false
}
