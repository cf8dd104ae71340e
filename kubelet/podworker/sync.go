package podworker

import (
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/status"
)

// errImagePullShown is how long the reason of a failed pull is shown before ImagePullBackOff.
const errImagePullShown = 2 * time.Second

func (m *Machine) sync(in *Input, o *Output) {
	mount := Action{Kind: Mount}
	if !m.mounted {
		if m.may(mount.Key(), in.Now, o) {
			m.do(o, mount)
		}
		return
	}
	if needed, attempt, _ := in.Runtime.SandboxNeeded(in.Pod); needed {
		m.replaceSandbox(in, o, attempt)
		return
	}
	m.hold = m.resize(in, o)
	m.startEphemeral(in, o)
	if !m.initContainers(in, o) {
		return
	}
	ended := true
	for i := range in.Pod.Spec.Containers {
		c := &in.Pod.Spec.Containers[i]
		latest := in.Runtime.Latest(c.Name)
		if latest != nil && latest.State == podstate.Running {
			ended = false
			m.checkRunning(in, o, c, latest, "Container "+c.Name, true)
		} else if podstate.NeedsStart(c, in.Pod, latest) {
			ended = false
			m.start(in, o, c, latest)
		}
	}
	if ended { // sidecars alone do not keep a pod alive
		m.terminating, m.since = true, in.Now
		m.terminate(in, o)
	}
}

// replaceSandbox gets the pod from no (usable) sandbox to a new one: what is left of the old one
// is stopped first.
func (m *Machine) replaceSandbox(in *Input, o *Output, attempt uint32) {
	if len(in.Runtime.Sandboxes) > 0 {
		if !m.wantsSandbox(in) {
			return
		}
		m.once("sandbox/"+strconv.Itoa(int(attempt)), v1.EventTypeNormal, "SandboxChanged",
			"Pod sandbox changed, it will be killed and re-created.", "")
	}
	alive := false
	for i := range in.Runtime.Containers {
		if c := &in.Runtime.Containers[i]; c.State == podstate.Running || c.State == podstate.Unknown {
			alive = true
			m.kill(in, o, c, killWhy{grace: podGrace(in.Pod)})
		}
	}
	if alive {
		return
	}
	for _, s := range in.Runtime.Sandboxes {
		stop := Action{Kind: StopSandbox, ID: s.ID}
		if s.Ready && m.may(stop.Key(), in.Now, o) {
			m.do(o, stop)
		}
	}
	create := Action{Kind: CreateSandbox, Attempt: attempt}
	if !m.inFlight(StopSandbox, Start) && m.may(create.Key(), in.Now, o) {
		m.do(o, create)
	}
}

// wantsSandbox says whether a pod that lost its sandbox still has something to run in a new one.
func (m *Machine) wantsSandbox(in *Input) bool {
	if len(in.Runtime.Containers) == 0 {
		return true
	}
	started := false
	for i := range in.Pod.Spec.Containers {
		c := &in.Pod.Spec.Containers[i]
		latest := in.Runtime.Latest(c.Name)
		started = started || latest != nil
		if latest != nil && (latest.State == podstate.Running || podstate.NeedsStart(c, in.Pod, latest)) {
			return true
		}
	}
	return !started && in.Pod.Spec.RestartPolicy != v1.RestartPolicyNever
}

func (m *Machine) startEphemeral(in *Input, o *Output) {
	for i := range in.Pod.Spec.EphemeralContainers {
		c := v1.Container(in.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if in.Runtime.Latest(c.Name) == nil {
			m.start(in, o, &c, nil)
		}
	}
}

// initContainers drives the init containers and sidecars; true means regular ones may run.
func (m *Machine) initContainers(in *Input, o *Output) bool {
	inits := in.Pod.Spec.InitContainers
	if len(inits) == 0 {
		return true
	}
	sandbox := in.Runtime.Sandboxes[0].ID
	frontier := -1 // the furthest init container that got going in this sandbox
	for i := range inits {
		if in.Runtime.LatestIn(sandbox, inits[i].Name) != nil {
			frontier = i
		}
	}
	initialized := false
	for i := range in.Pod.Spec.Containers {
		initialized = initialized || in.Runtime.LatestIn(sandbox, in.Pod.Spec.Containers[i].Name) != nil
	}
	if initialized {
		frontier = len(inits)
	}
	for i := 0; i < frontier && i < len(inits); i++ {
		if podstate.IsSidecar(&inits[i]) {
			m.keepSidecar(in, o, &inits[i], sandbox)
		}
	}
	switch {
	case initialized:
		return true
	case frontier < 0:
		m.start(in, o, &inits[0], nil)
		return false
	case !m.initDone(in, o, &inits[frontier], sandbox):
		return false
	case frontier == len(inits)-1:
		return true
	}
	m.start(in, o, &inits[frontier+1], nil)
	return false
}

// initDone works on the init container whose turn it is; true means the next may start.
func (m *Machine) initDone(in *Input, o *Output, c *v1.Container, sandbox string) bool {
	if podstate.IsSidecar(c) {
		return m.keepSidecar(in, o, c, sandbox)
	}
	st := in.Runtime.LatestIn(sandbox, c.Name)
	switch st.State {
	case podstate.Exited:
		if st.ExitCode == 0 {
			return true
		}
		if podstate.ShouldRestart(c, in.Pod, st.ExitCode) {
			m.start(in, o, c, st)
		}
	case podstate.Created:
		m.start(in, o, c, st)
	case podstate.Unknown:
		m.kill(in, o, st, killWhy{grace: podGrace(in.Pod),
			message: fmt.Sprintf("Init container is in %q state, try killing it before restart", st.State)})
	}
	return false
}

// keepSidecar keeps a restartable init container up; true means it has started.
func (m *Machine) keepSidecar(in *Input, o *Output, c *v1.Container, sandbox string) bool {
	st := in.Runtime.LatestIn(sandbox, c.Name)
	if st == nil || st.State == podstate.Exited || st.State == podstate.Created {
		m.start(in, o, c, st)
		return false
	}
	if st.State == podstate.Unknown {
		m.kill(in, o, st, killWhy{grace: podGrace(in.Pod),
			message: fmt.Sprintf("Init container is in %q state, try killing it before restart", st.State)})
		return false
	}
	if m.Starting() == c.Name {
		return false
	}
	started := c.StartupProbe == nil
	if p := in.Probes[st.ID].Startup; p != nil {
		started = started || *p
	} else if !started {
		for i := range m.old.InitContainerStatuses {
			s := &m.old.InitContainerStatuses[i]
			started = started || s.Name == c.Name && status.RawID(s.ContainerID) == st.ID && s.Started != nil && *s.Started
		}
	}
	m.checkRunning(in, o, c, st, "Init container "+c.Name, false)
	return started
}

// checkRunning kills a running container that must be restarted: changed definition, or a failed
// startup or liveness probe. The restart follows once it is seen down.
func (m *Machine) checkRunning(in *Input, o *Output, c *v1.Container, st *podstate.Container, name string, regular bool) {
	if m.Starting() == c.Name {
		return
	}
	p := in.Probes[st.ID]
	why := killWhy{grace: podGrace(in.Pod)}
	restart := podstate.ShouldRestart(c, in.Pod, 1)
	switch {
	case st.Hash != podstate.ContainerHash(c):
		why.message, restart = name+" definition changed", true
	case p.Liveness != nil && !*p.Liveness:
		why.message = name + " failed liveness probe"
		why.probeGrace(c.LivenessProbe)
	case p.Startup != nil && !*p.Startup:
		why.message = name + " failed startup probe"
		why.probeGrace(c.StartupProbe)
	default:
		return
	}
	if restart && regular {
		why.message += ", will be restarted"
	}
	m.kill(in, o, st, why)
}

// start asks for a container to be started unless a start is in flight or a back-off holds it.
func (m *Machine) start(in *Input, o *Output, c *v1.Container, latest *podstate.Container) {
	crashed := m.crashed(in, latest)
	if crashed != nil {
		key := c.Name + "/" + strconv.FormatUint(podstate.ContainerHash(c), 16)
		b := m.crash[key]
		if hold, end := b.since(crashed.FinishedAt, in.Now, m.limits.CrashMax); hold {
			m.waiting[c.Name] = status.Waiting{Reason: "CrashLoopBackOff", Message: fmt.Sprintf(
				"back-off %s restarting failed container=%s pod=%s", b.wait, c.Name, podstate.Format(in.Pod))}
			m.once("crash/"+latest.ID, v1.EventTypeWarning, "BackOff", fmt.Sprintf(
				"Back-off restarting failed container %s in pod %s", c.Name, podstate.Format(in.Pod)), c.Name)
			o.wake(end)
			return
		}
	}
	if m.hold || m.inFlight(Start) || m.imageHeld(in, o, c) || !m.may("start/"+c.Name, in.Now, o) {
		return
	}
	if crashed != nil {
		key := c.Name + "/" + strconv.FormatUint(podstate.ContainerHash(c), 16)
		m.crash[key] = next(m.crash[key], crashed.FinishedAt, in.Now, m.limits.CrashInitial, m.limits.CrashMax)
	}
	m.do(o, Action{Kind: Start, Container: c.Name, ID: c.Image})
}

// imageHeld says whether the container's image failed to be pulled a short while ago.
func (m *Machine) imageHeld(in *Input, o *Output, c *v1.Container) bool {
	b := m.image[c.Image]
	hold, end := b.since(b.last(), in.Now, m.limits.ImageMax)
	if !hold {
		return false
	}
	o.wake(end)
	if shown := b.updated.Add(errImagePullShown); in.Now.Before(shown) {
		o.wake(shown)
		return true
	}
	msg := fmt.Sprintf("Back-off pulling image %q", c.Image)
	m.waiting[c.Name] = status.Waiting{Reason: "ImagePullBackOff", Message: msg + ": " + b.message}
	key := "image/" + c.Name + "/" + b.updated.String()
	m.once(key, v1.EventTypeNormal, "BackOff", msg, c.Name)
	m.once(key+"/error", v1.EventTypeWarning, "Failed", "Error: ImagePullBackOff", c.Name)
	return true
}

func (b *backoff) last() time.Time {
	if b == nil {
		return time.Time{}
	}
	return b.updated
}

func (m *Machine) startDone(a Action, r Result, now time.Time) {
	key := "start/" + a.Container
	if m.cancelled {
		return
	}
	if r.Reason == "" {
		delete(m.waiting, a.Container)
		delete(m.retry, key)
		delete(m.image, a.ID)
		return
	}
	m.waiting[a.Container] = status.Waiting{Reason: r.Reason, Message: r.Message}
	switch r.Reason {
	case "ErrImagePull", "RegistryUnavailable", "SignatureValidationFailed":
		b := next(m.image[a.ID], now, now, m.limits.ImageInitial, m.limits.ImageMax)
		b.message = r.Reason + ": " + r.Message
		m.image[a.ID] = b
	case "PostStartHookError":
		// The container was killed: the crash back-off paces the next try.
	default:
		rt := m.retry[key]
		m.retry[key] = retry{at: now.Add(min(time.Second<<min(rt.fails, 4), retryMax)), fails: rt.fails + 1}
	}
}
