package hollow

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations with which a pod says how its simulated containers behave.
const (
	// AnnotationExitCode is what the containers of a pod that completes exit
	// with; default 0.
	AnnotationExitCode = "sim.skiff.dev/exit-code"
	// AnnotationRunFor is how long they run first, a Go duration; it makes a
	// pod of any restart policy but Always complete. Default Timing.RunFor.
	AnnotationRunFor = "sim.skiff.dev/run-for"
)

// Timing is how long a simulated pod's phases last.
type Timing struct {
	// Start is how long containers take from the binding of the pod until they
	// run. Default 0: they run at once, and the pod is never shown creating them.
	Start time.Duration
	// Stop is how long containers take to end once they are told to; a pod's
	// grace period bounds it. Default 0.
	Stop time.Duration
	// RunFor is how long containers of pods that complete run. Default 1 s.
	RunFor time.Duration
}

// memory is what a kubelet knows of a pod besides what the API shows it.
type memory struct {
	seen     time.Time // when it was first seen bound here
	deleting time.Time // when its deletion was first seen; zero: not
	hostIP   string
	podIP    string
}

// step is what a kubelet does next for a pod.
type step struct {
	status *corev1.PodStatus // write this, if set
	remove bool              // delete the pod, it has ended
	after  time.Duration     // nothing yet: look again then; 0: when the pod changes
}

// next is a pod's life as its kubelet drives it: creating, running, complete,
// or, once its deletion is asked for, stopping, stopped, gone. It is decided
// by the pod alone, so that a simulator started anew goes on where the last
// one ended.
func next(pod *corev1.Pod, m memory, now time.Time, t Timing) step {
	old := &pod.Status
	ended := old.Phase == corev1.PodSucceeded || old.Phase == corev1.PodFailed
	started := old.Phase == corev1.PodRunning
	switch {
	case pod.DeletionTimestamp != nil && (ended || !started):
		return step{remove: true}
	case pod.DeletionTimestamp != nil:
		return stopping(pod, m, now, t)
	case ended:
		return step{}
	case pastDeadline(pod, now):
		s := completed(pod, m, now, 137)
		s.Phase, s.Reason, s.Message = corev1.PodFailed, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
		return step{status: s}
	case started:
		return running(pod, m, now, t)
	}
	if wait := m.seen.Add(t.Start).Sub(now); wait > 0 {
		if old.StartTime != nil {
			return step{after: wait}
		}
		return step{status: creating(pod, m, now)}
	}
	return step{status: run(pod, m, now)}
}

func pastDeadline(pod *corev1.Pod, now time.Time) bool {
	limit, start := pod.Spec.ActiveDeadlineSeconds, pod.Status.StartTime
	return limit != nil && start != nil && now.Sub(start.Time) >= time.Duration(*limit)*time.Second
}

// running decides when a running pod completes, keeps Ready in step with the
// readiness gates, and wakes for the deadline.
func running(pod *corev1.Pod, m memory, now time.Time, t Timing) step {
	var wake []time.Duration
	if limit, start := pod.Spec.ActiveDeadlineSeconds, pod.Status.StartTime; limit != nil && start != nil {
		wake = append(wake, start.Add(time.Duration(*limit)*time.Second).Sub(now))
	}
	if pod.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		wait := startedAt(pod, m).Add(runFor(pod, t)).Sub(now)
		if wait <= 0 {
			return step{status: completed(pod, m, now, exitCode(pod))}
		}
		wake = append(wake, wait)
	}
	ready := readyCondition(pod)
	if have := condition(pod.Status.Conditions, corev1.PodReady); have == nil || have.Status != ready.Status {
		s := base(pod, m, now)
		setCondition(&s.Conditions, ready, now)
		return step{status: s}
	}
	if len(wake) == 0 {
		return step{}
	}
	return step{after: slices.Min(wake)}
}

func stopping(pod *corev1.Pod, m memory, now time.Time, t Timing) step {
	stop := t.Stop
	code := int32(0)
	if g := pod.DeletionGracePeriodSeconds; g != nil && time.Duration(*g)*time.Second < stop {
		stop, code = time.Duration(*g)*time.Second, 137 // killed
	}
	if wait := m.deleting.Add(stop).Sub(now); wait > 0 {
		return step{after: wait}
	}
	return step{status: completed(pod, m, now, code)}
}

func runFor(pod *corev1.Pod, t Timing) time.Duration {
	if d, err := time.ParseDuration(pod.Annotations[AnnotationRunFor]); err == nil {
		return d
	}
	return t.RunFor
}

func exitCode(pod *corev1.Pod) int32 {
	n, _ := strconv.ParseInt(pod.Annotations[AnnotationExitCode], 10, 32)
	return int32(n)
}

// startedAt is when the containers started. The API keeps whole seconds, so
// what is remembered more exactly goes first.
func startedAt(pod *corev1.Pod, m memory) time.Time {
	for _, c := range pod.Status.ContainerStatuses {
		if r := c.State.Running; r != nil && r.StartedAt.After(m.seen) {
			return r.StartedAt.Time
		}
	}
	return m.seen
}

// base is the pod's status with what every write of a kubelet carries.
func base(pod *corev1.Pod, m memory, now time.Time) *corev1.PodStatus {
	s := pod.Status.DeepCopy()
	s.ObservedGeneration = pod.Generation
	s.HostIP, s.HostIPs = m.hostIP, []corev1.HostIP{{IP: m.hostIP}}
	if s.StartTime == nil {
		s.StartTime = &metav1.Time{Time: now}
	}
	s.QOSClass = "" // settled when the pod was made; not a kubelet's to write
	return s
}

func creating(pod *corev1.Pod, m memory, now time.Time) *corev1.PodStatus {
	s := base(pod, m, now)
	s.Phase = corev1.PodPending
	s.ContainerStatuses = containers(pod.Spec.Containers, func(c *corev1.ContainerStatus) {
		c.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	})
	initialized(pod, s, now, false)
	unready(pod, s, now, "ContainersNotReady")
	setCondition(&s.Conditions, corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}, now)
	return s
}

func run(pod *corev1.Pod, m memory, now time.Time) *corev1.PodStatus {
	s := base(pod, m, now)
	s.Phase = corev1.PodRunning
	s.PodIP, s.PodIPs = m.podIP, []corev1.PodIP{{IP: m.podIP}}
	s.ContainerStatuses = containers(pod.Spec.Containers, func(c *corev1.ContainerStatus) { runs(pod, c, now) })
	initialized(pod, s, now, true)
	for _, t := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.ContainersReady} {
		setCondition(&s.Conditions, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue}, now)
	}
	setCondition(&s.Conditions, readyCondition(pod), now)
	return s
}

// completed is the pod after its containers ended with a code.
func completed(pod *corev1.Pod, m memory, now time.Time, code int32) *corev1.PodStatus {
	s := base(pod, m, now)
	s.Phase = corev1.PodSucceeded
	reason := "Completed"
	if code != 0 {
		s.Phase, reason = corev1.PodFailed, "Error"
	}
	end := func(list []corev1.ContainerStatus) {
		for i := range list {
			c := &list[i]
			if c.State.Running == nil {
				continue
			}
			c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: code, Reason: reason, StartedAt: c.State.Running.StartedAt, FinishedAt: metav1.Time{Time: now}, ContainerID: c.ContainerID,
			}}
			no := false
			c.Ready, c.Started = false, &no
		}
	}
	end(s.ContainerStatuses)
	end(s.InitContainerStatuses)
	why := "PodCompleted"
	if code != 0 {
		why = "PodFailed"
	}
	unready(pod, s, now, why)
	setCondition(&s.Conditions, corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}, now)
	return s
}

func containers(list []corev1.Container, state func(*corev1.ContainerStatus)) []corev1.ContainerStatus {
	out := make([]corev1.ContainerStatus, len(list))
	for i, c := range list {
		out[i] = corev1.ContainerStatus{Name: c.Name, Image: c.Image}
		state(&out[i])
	}
	return out
}

func runs(pod *corev1.Pod, c *corev1.ContainerStatus, now time.Time) {
	yes := true
	c.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.Time{Time: now}}
	c.Ready, c.Started = true, &yes
	c.ImageID = c.Image
	c.ContainerID = fmt.Sprintf("hollow://%s/%s", pod.UID, c.Name)
}

// initialized fills in the init containers: waiting, or, once the pod runs,
// done; those that restart always are sidecars, and run.
func initialized(pod *corev1.Pod, s *corev1.PodStatus, now time.Time, done bool) {
	s.InitContainerStatuses = containers(pod.Spec.InitContainers, func(c *corev1.ContainerStatus) {
		switch {
		case !done:
			c.State.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
		case sidecar(pod, c.Name):
			runs(pod, c, now)
		default:
			runs(pod, c, now)
			no := false
			c.Started = &no
			c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: metav1.Time{Time: now}, FinishedAt: metav1.Time{Time: now}, ContainerID: c.ContainerID,
			}}
		}
	})
	cond := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if !done && len(pod.Spec.InitContainers) > 0 {
		names := make([]string, len(pod.Spec.InitContainers))
		for i, c := range pod.Spec.InitContainers {
			names[i] = c.Name
		}
		cond.Status, cond.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		cond.Message = fmt.Sprintf("containers with incomplete status: %v", names)
	}
	setCondition(&s.Conditions, cond, now)
}

func sidecar(pod *corev1.Pod, name string) bool {
	for _, c := range pod.Spec.InitContainers {
		if c.Name == name {
			return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}
	}
	return false
}

// readyCondition is Ready of a pod whose containers all are: its readiness
// gates decide.
func readyCondition(pod *corev1.Pod) corev1.PodCondition {
	var missing []string
	for _, g := range pod.Spec.ReadinessGates {
		c := condition(pod.Status.Conditions, g.ConditionType)
		switch {
		case c == nil:
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(g.ConditionType)))
		case c.Status != corev1.ConditionTrue:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(g.ConditionType), c.Status))
		}
	}
	if len(missing) > 0 {
		return corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "ReadinessGatesNotReady", Message: strings.Join(missing, ", ")}
	}
	return corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue}
}

func unready(pod *corev1.Pod, s *corev1.PodStatus, now time.Time, reason string) {
	message := ""
	if reason == "ContainersNotReady" {
		names := make([]string, len(pod.Spec.Containers))
		for i, c := range pod.Spec.Containers {
			names[i] = c.Name
		}
		message = fmt.Sprintf("containers with unready status: %v", names)
	}
	for _, t := range []corev1.PodConditionType{corev1.ContainersReady, corev1.PodReady} {
		setCondition(&s.Conditions, corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message}, now)
	}
}

func condition(list []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

// setCondition keeps the transition time of a condition whose status stays.
func setCondition(list *[]corev1.PodCondition, c corev1.PodCondition, now time.Time) {
	c.LastTransitionTime = metav1.Time{Time: now}
	have := condition(*list, c.Type)
	if have == nil {
		*list = append(*list, c)
		return
	}
	if have.Status == c.Status {
		c.LastTransitionTime = have.LastTransitionTime
	}
	*have = c
}
