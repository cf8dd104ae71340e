package podworker

import (
	"encoding/json"
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/kubelet/allocation"
	"github.com/skiff-project/skiff/kubelet/podstate"
)

// Pending is why the resources a spec asks for were not granted: Reason is upstream's, Infeasible or
// Deferred.
type Pending struct{ Reason, Message string }

// Actuated is what was last applied to the pod's containers; empty before the first step.
func (m *Machine) Actuated() allocation.Set { return m.actuated }

// resize applies granted cpu and memory to the pod's cgroup and running containers when they differ
// from those last applied. Containers whose policy wants a restart are taken down first. True means
// that nothing may start meanwhile: it would run under the pod's old limits.
func (m *Machine) resize(in *Input, o *Output) (hold bool) {
	if !m.resizing(in) {
		return false
	}
	want, restarting := allocation.Of(in.Pod), false
	for c := range containers(in.Pod) {
		st := in.Runtime.Latest(c.Name)
		if st != nil && st.State == podstate.Running && m.Starting() != c.Name && restartOnResize(c, m.actuated, want) {
			restarting = true
			m.kill(in, o, st, killWhy{grace: podGrace(in.Pod), resize: true,
				message: fmt.Sprintf("Container %s resize requires restart", c.Name)})
		}
	}
	a := Action{Kind: Resize}
	if !restarting && !m.inFlight(Resize, Start) && m.may(a.Key(), in.Now, o) {
		m.target = want
		m.do(o, a)
	}
	return true
}

// resizing says whether what was granted is not applied everywhere it counts: to containers that
// run or will, and to the pod as a whole.
func (m *Machine) resizing(in *Input) bool {
	want := allocation.Of(in.Pod)
	for c := range containers(in.Pod) {
		st := in.Runtime.Latest(c.Name)
		alive := st != nil && st.State == podstate.Running || podstate.NeedsStart(c, in.Pod, st)
		if alive && !allocation.Same(m.actuated, want, c.Name) {
			return true
		}
	}
	return !allocation.SamePod(m.actuated, want)
}

// crashed is the end that the next start of a container backs off from, or nil. latest does not count
// if it was ended for a resize, but the one before it does, as upstream has it.
func (m *Machine) crashed(in *Input, latest *podstate.Container) *podstate.Container {
	if latest == nil || latest.State != podstate.Exited {
		return nil
	}
	if k := m.kills[latest.ID]; k == nil || !k.resize {
		return latest
	}
	for i := range in.Runtime.Containers {
		if c := &in.Runtime.Containers[i]; c.Name == latest.Name && c.ID != latest.ID && c.State == podstate.Exited {
			return c
		}
	}
	return nil
}

func containers(pod *v1.Pod) func(func(*v1.Container) bool) {
	return func(yield func(*v1.Container) bool) {
		for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
	}
}

func restartOnResize(c *v1.Container, have, want allocation.Set) bool {
	for _, p := range c.ResizePolicy {
		if p.RestartPolicy == v1.RestartContainer && allocation.Differ(have, want, c.Name, p.ResourceName) {
			return true
		}
	}
	return false
}

func (m *Machine) resizeDone(r Result) {
	if r.Reason == "" {
		m.actuated = m.target
		return
	}
	m.resizeError = r.Message
}

// grant notes that the spec's resources were granted, or why not, and tells so once.
func (m *Machine) grant(in *Input) {
	gen := in.Pod.Generation
	if m.actuated.Empty() {
		m.actuated = allocation.Of(in.Pod)
	}
	switch p, was := in.Pending, m.pending; {
	case p == nil:
		m.pending = nil
	case was == nil || was.Reason != p.Reason || was.ObservedGeneration != gen:
		m.event(v1.EventTypeWarning, "Resize"+p.Reason, resizeMessage("Pod resize "+p.Reason, in.Asked, gen, p.Message), "")
		fallthrough
	default:
		m.pending = resizeCondition(v1.PodResizePending, was, in, p.Reason, p.Message)
	}
	if in.Granted {
		m.progress, m.resizeError = resizeCondition(v1.PodResizeInProgress, m.progress, in, "", ""), ""
		m.event(v1.EventTypeNormal, "ResizeStarted", resizeMessage("Pod resize started", in.Pod, gen, ""), "")
		delete(m.retry, Action{Kind: Resize}.Key())
	}
}

// settle brings the condition PodResizeInProgress up to date. Its generation stays the one of the
// grant while retries go on.
func (m *Machine) settle(in *Input) {
	was := m.progress
	switch {
	case m.terminating:
		m.pending, m.progress = nil, nil
	case m.resizing(in):
		reason := ""
		if m.resizeError != "" {
			reason = v1.PodReasonError
		}
		m.progress = resizeCondition(v1.PodResizeInProgress, was, in, reason, m.resizeError)
		if was != nil {
			m.progress.ObservedGeneration = was.ObservedGeneration
		}
		if reason != "" && (was == nil || was.Reason != reason || was.Message != m.resizeError) {
			m.event(v1.EventTypeWarning, "ResizeError", resizeMessage("Pod resize error", in.Pod, m.progress.ObservedGeneration, m.resizeError), "")
		}
	case was != nil:
		m.progress, m.resizeError = nil, ""
		m.event(v1.EventTypeNormal, "ResizeCompleted", resizeMessage("Pod resize completed", in.Pod, was.ObservedGeneration, ""), "")
	}
}

func resizeCondition(t v1.PodConditionType, was *v1.PodCondition, in *Input, reason, message string) *v1.PodCondition {
	c := &v1.PodCondition{Type: t, Status: v1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: in.Pod.Generation,
		LastTransitionTime: metav1.NewTime(in.Now).Rfc3339Copy()}
	if was != nil && was.Reason == reason {
		c.LastTransitionTime = was.LastTransitionTime
	}
	return c
}

// resizeMessage is the text of an event: upstream's prefix and its JSON summary.
func resizeMessage(prefix string, pod *v1.Pod, generation int64, problem string) string {
	type container struct {
		Name      string                  `json:"name"`
		Resources v1.ResourceRequirements `json:"resources,omitempty"`
	}
	list := func(in []v1.Container) (out []container) {
		for i := range in {
			out = append(out, container{in[i].Name, in[i].Resources})
		}
		return out
	}
	b, err := json.Marshal(struct {
		InitContainers []container `json:"initContainers,omitempty"`
		Containers     []container `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{list(pod.Spec.InitContainers), list(pod.Spec.Containers), generation, problem})
	if err != nil {
		return prefix
	}
	return prefix + ": " + string(b)
}
