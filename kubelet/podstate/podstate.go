// Package podstate holds the values the kubelet's pure parts exchange: what the container runtime
// says about one pod, and small questions about a pod's specification that several parts ask.
// Nothing in this package does I/O.
package podstate

import (
	"encoding/json"
	"hash/fnv"
	"time"

	v1 "k8s.io/api/core/v1"
)

// ContainerState is the state of one container as the runtime reports it.
type ContainerState string

// The states of a container.
const (
	Created ContainerState = "created"
	Running ContainerState = "running"
	Exited  ContainerState = "exited"
	Unknown ContainerState = "unknown"
)

// Container is one container of a pod as observed at the runtime.
type Container struct {
	ID           string // runtime's id, without scheme
	Name         string // container name in the pod spec
	SandboxID    string
	Image        string // as the user wrote it
	ImageRef     string // digest reference reported as imageID
	Hash         uint64 // ContainerHash at creation
	RestartCount int32
	State        ContainerState
	CreatedAt    time.Time
	StartedAt    time.Time
	FinishedAt   time.Time
	ExitCode     int32
	Reason       string
	Message      string
	LogPath      string
	Resources    *Resources
	User         *v1.ContainerUser
}

// Resources are the limits in force for a running container, in the kernel's units; nil fields
// mean the runtime did not report them.
type Resources struct {
	CPUShares   *int64
	CPUQuota    *int64 // microseconds per CPUPeriod; -1 = none
	CPUPeriod   *int64
	MemoryLimit *int64 // bytes
}

// Sandbox is one sandbox of a pod as observed at the runtime.
type Sandbox struct {
	ID          string
	Ready       bool
	Attempt     uint32
	CreatedAt   time.Time
	IPs         []string
	HostNetwork bool
}

// Runtime is everything the runtime knows about one pod. Both lists are newest first.
type Runtime struct {
	Sandboxes  []Sandbox
	Containers []Container
}

// Latest returns the newest container of that name, or nil.
func (r *Runtime) Latest(name string) *Container {
	for i := range r.Containers {
		if r.Containers[i].Name == name {
			return &r.Containers[i]
		}
	}
	return nil
}

// LatestIn returns the newest container of that name in one sandbox, or nil.
func (r *Runtime) LatestIn(sandboxID, name string) *Container {
	for i := range r.Containers {
		c := &r.Containers[i]
		if c.Name == name && c.SandboxID == sandboxID {
			return c
		}
	}
	return nil
}

// IPs returns the addresses of the newest ready sandbox, or of the newest one.
func (r *Runtime) IPs() []string {
	for _, s := range r.Sandboxes {
		if s.Ready {
			return s.IPs
		}
	}
	return nil
}

// AnyRunning says whether a container of the pod is alive (running or in an unknown state).
func (r *Runtime) AnyRunning() bool {
	for _, c := range r.Containers {
		if c.State == Running || c.State == Unknown {
			return true
		}
	}
	return false
}

// SandboxNeeded decides whether a new sandbox must be made, which attempt number it gets, and
// why (upstream's messages of the PodReadyToStartContainers condition).
func (r *Runtime) SandboxNeeded(pod *v1.Pod) (needed bool, attempt uint32, reason string) {
	if len(r.Sandboxes) == 0 {
		return true, 0, "no pod sandbox exists"
	}
	ready := 0
	for _, s := range r.Sandboxes {
		if s.Ready {
			ready++
		}
	}
	newest := r.Sandboxes[0]
	next := newest.Attempt + 1
	switch {
	case ready > 1:
		return true, next, "multiple pod sandboxes are ready and need to be reconciled"
	case !newest.Ready:
		return true, next, "pod sandbox is not ready"
	case newest.HostNetwork != pod.Spec.HostNetwork:
		return true, next, "network namespace mode changed and sandbox needs to be recreated"
	case !pod.Spec.HostNetwork && len(newest.IPs) == 0:
		return true, next, "pod sandbox has no IP address"
	}
	return false, newest.Attempt, ""
}

// ContainerHash identifies the parts of a container whose change restarts it: name and image.
func ContainerHash(c *v1.Container) uint64 {
	b, _ := json.Marshal(map[string]string{"name": c.Name, "image": c.Image})
	h := fnv.New32a()
	_, _ = h.Write(b)
	return uint64(h.Sum32())
}

// IsSidecar says whether an init container is restartable (a sidecar).
func IsSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// FindContainer returns the spec of the container with that name, of whatever kind, or nil.
func FindContainer(pod *v1.Pod, name string) *v1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			c := v1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			return &c
		}
	}
	return nil
}

// ShouldRestart applies the container's restart rules, then its own restart policy, then the
// pod's, to an exit code (KEP-5307).
func ShouldRestart(c *v1.Container, pod *v1.Pod, exitCode int32) bool {
	if c.RestartPolicy != nil {
		if matchesRestartRule(c, exitCode) {
			return true
		}
		switch *c.RestartPolicy {
		case v1.ContainerRestartPolicyAlways:
			return true
		case v1.ContainerRestartPolicyOnFailure:
			return exitCode != 0
		case v1.ContainerRestartPolicyNever:
			return false
		}
	}
	switch pod.Spec.RestartPolicy {
	case v1.RestartPolicyOnFailure:
		return exitCode != 0
	case v1.RestartPolicyNever:
		return false
	}
	return true
}

func matchesRestartRule(c *v1.Container, exitCode int32) bool {
	for _, rule := range c.RestartPolicyRules {
		if rule.ExitCodes == nil || rule.Action != v1.ContainerRestartRuleActionRestart {
			continue
		}
		in := false
		for _, code := range rule.ExitCodes.Values {
			in = in || code == exitCode
		}
		if in == (rule.ExitCodes.Operator == v1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	return false
}

// NeedsStart says whether a container is absent or down and its policy wants it up.
func NeedsStart(c *v1.Container, pod *v1.Pod, latest *Container) bool {
	switch {
	case pod.DeletionTimestamp != nil:
		return false
	case latest == nil:
		return true
	case latest.State == Running:
		return false
	case latest.State == Unknown || latest.State == Created:
		return true
	}
	return ShouldRestart(c, pod, latest.ExitCode)
}

// Terminal says whether a phase is final.
func Terminal(p v1.PodPhase) bool { return p == v1.PodFailed || p == v1.PodSucceeded }

// The annotations of pods that come from a file and of their mirrors at the API.
const (
	ConfigSource = "kubernetes.io/config.source"
	ConfigHash   = "kubernetes.io/config.hash"
	ConfigMirror = "kubernetes.io/config.mirror"
	ConfigSeen   = "kubernetes.io/config.seen"
)

// IsStatic says whether the pod comes from a file on this node.
func IsStatic(pod *v1.Pod) bool {
	src, ok := pod.Annotations[ConfigSource]
	return ok && src != "api"
}

// IsMirror says whether the pod is the API's picture of a static pod.
func IsMirror(pod *v1.Pod) bool {
	_, ok := pod.Annotations[ConfigMirror]
	return ok
}

// Format names a pod as upstream's messages do: name_namespace(uid).
func Format(pod *v1.Pod) string {
	return pod.Name + "_" + pod.Namespace + "(" + string(pod.UID) + ")"
}
