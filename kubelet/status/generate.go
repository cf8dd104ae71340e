// Package status derives a pod's API status from what is desired and what was observed. It is
// pure: the same Input always gives the same PodStatus.
package status

import (
	"net/netip"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubectl/pkg/util/qos"

	"github.com/skiff-project/skiff/kubelet/allocation"
	"github.com/skiff-project/skiff/kubelet/podstate"
)

// SettleTime bounds how long a container without a readiness probe may take to listen on the TCP
// ports it declares before it counts as ready all the same, as upstream would count it at once.
// Upstream's own latency, from start to Service rules, hides the time a server needs to bind; ours
// would send it the first connections too early.
const SettleTime = time.Second

// Settles says whether a container's readiness waits for its ports.
func Settles(c *v1.Container) bool {
	if c.ReadinessProbe != nil {
		return false
	}
	return slices.ContainsFunc(c.Ports, func(p v1.ContainerPort) bool { return p.Protocol == v1.ProtocolTCP || p.Protocol == "" })
}

// Waiting is why a container is not running although it should.
type Waiting struct{ Reason, Message string }

// Probes is what the probes of one container have concluded so far; nil means no verdict yet.
type Probes struct {
	Startup, Liveness, Readiness *bool
}

// Input is everything a pod's status depends on.
type Input struct {
	Pod     *v1.Pod
	Old     v1.PodStatus // last status this kubelet produced, or the API's
	Runtime *podstate.Runtime
	Waiting map[string]Waiting // by container name: last failure to start
	Probes  map[string]Probes  // by container id
	// Actuated is what was last applied to running containers; Pod carries what is granted.
	Actuated allocation.Set
	Resize   []*v1.PodCondition // of a resize; nil ones are left out
	// Terminal: the pod's containers will not be restarted whatever the restart policy says.
	Terminal bool
	// Forced is a final verdict from outside the containers (rejected, deadline, evicted).
	Forced  *Verdict
	NodeIPs []string
	Scheme  string // the runtime's name, prefix of container ids
	RRO     bool   // the runtime can make mounts recursively read-only
	// Settle: a container without a readiness probe is ready once a probe verdict says that it
	// listens on the ports it declares, or SettleTime after its start.
	Settle bool
	Now    time.Time
}

// Verdict forces a pod's phase to Failed.
type Verdict struct{ Reason, Message string }

// Generate computes the pod's status. The result shares no memory with the input.
func Generate(in Input) v1.PodStatus {
	pod := in.Pod
	old := in.Old.DeepCopy()
	s := v1.PodStatus{
		StartTime: old.StartTime, QOSClass: qos.GetPodQOS(pod), ObservedGeneration: pod.Generation,
		ResourceClaimStatuses: old.ResourceClaimStatuses, NominatedNodeName: old.NominatedNodeName,
		ExtendedResourceClaimStatus: old.ExtendedResourceClaimStatus,
	}
	if s.StartTime == nil {
		t := metav1.NewTime(in.Now.Truncate(time.Second))
		s.StartTime = &t
	}
	if pod.Spec.Resources != nil {
		s.AllocatedResources, s.Resources = pod.Spec.Resources.DeepCopy().Requests, in.Actuated.Pod.DeepCopy()
	}
	setContainerStatuses(&in, old, &s)
	setPhase(&in, old, &s)
	setAddresses(&in, old, &s)
	applyProbes(&in, old, &s)
	setConditions(&in, old, &s)
	return s
}

func setPhase(in *Input, old, s *v1.PodStatus) {
	pod := in.Pod
	all := append(append([]v1.ContainerStatus{}, s.ContainerStatuses...), s.InitContainerStatuses...)
	s.Phase = phase(pod, all, in.Terminal, initialized(pod, in.Runtime))
	if !podstate.Terminal(s.Phase) && podstate.Terminal(old.Phase) {
		s.Phase = old.Phase
	}
	if s.Phase == old.Phase {
		s.Reason, s.Message = old.Reason, old.Message
	}
	if in.Forced != nil {
		s.Phase, s.Reason, s.Message = v1.PodFailed, in.Forced.Reason, in.Forced.Message
	}
	if podstate.Terminal(pod.Status.Phase) {
		s.Phase = pod.Status.Phase // the API's final phase is never left
	}
}

// initialized says whether a regular container exists in the newest sandbox, which proves that
// the init containers are done.
func initialized(pod *v1.Pod, rt *podstate.Runtime) bool {
	if len(rt.Sandboxes) == 0 {
		return false
	}
	for i := range pod.Spec.Containers {
		if rt.LatestIn(rt.Sandboxes[0].ID, pod.Spec.Containers[i].Name) != nil {
			return true
		}
	}
	return false
}

// SortIPs picks one address per family, the node's primary family first.
func SortIPs(podIPs, nodeIPs []string) []string {
	primary6 := len(nodeIPs) > 0 && is6(nodeIPs[0])
	var out []string
	for _, want6 := range []bool{primary6, !primary6} {
		for _, ip := range podIPs {
			if a, err := netip.ParseAddr(ip); err == nil && is6(ip) == want6 {
				out = append(out, a.String())
				break
			}
		}
	}
	return out
}

func is6(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && a.Is6() && !a.Is4In6()
}

func setAddresses(in *Input, old, s *v1.PodStatus) {
	ips := SortIPs(in.Runtime.IPs(), in.NodeIPs)
	if len(ips) == 0 && !in.Pod.Spec.HostNetwork && podstate.Terminal(s.Phase) {
		s.PodIP, s.PodIPs = old.PodIP, old.PodIPs // a finished pod keeps showing its address
	}
	if len(in.NodeIPs) > 0 {
		s.HostIP = in.NodeIPs[0]
		for i, ip := range in.NodeIPs {
			if i < 2 {
				s.HostIPs = append(s.HostIPs, v1.HostIP{IP: ip})
			}
		}
	}
	if in.Pod.Spec.HostNetwork {
		ips = in.NodeIPs
		if len(ips) > 2 {
			ips = ips[:2]
		}
	}
	if len(ips) > 0 {
		s.PodIP, s.PodIPs = ips[0], nil
		for _, ip := range ips {
			s.PodIPs = append(s.PodIPs, v1.PodIP{IP: ip})
		}
	}
}

type tally struct{ unknown, running, waiting, stopped, final, succeeded int }

func phase(pod *v1.Pod, info []v1.ContainerStatus, terminal, hasInitialized bool) v1.PodPhase {
	byName := map[string]*v1.ContainerStatus{}
	for i := range info {
		byName[info[i].Name] = &info[i]
	}
	pendingInit, pendingSidecar, failed := initPhase(pod, byName)
	var n tally
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if !podstate.IsSidecar(c) {
			continue
		}
		switch st := byName[c.Name]; {
		case st == nil:
			n.unknown++
		case st.State.Running != nil:
			n.running++
		case st.State.Waiting != nil && st.LastTerminationState.Terminated == nil:
			n.waiting++
		}
	}
	for i := range pod.Spec.Containers {
		countContainer(pod, &pod.Spec.Containers[i], byName[pod.Spec.Containers[i].Name], &n)
	}
	switch {
	case failed:
		return v1.PodFailed
	case pendingInit > 0 || (pendingSidecar > 0 && !hasInitialized) || n.waiting > 0:
		return v1.PodPending
	case n.running > 0 && n.unknown == 0:
		return v1.PodRunning
	case n.running == 0 && n.stopped > 0 && n.unknown == 0:
		if !(terminal && !podstate.IsStatic(pod)) && n.stopped != n.final {
			return v1.PodRunning // being restarted
		}
		if n.stopped == n.succeeded {
			return v1.PodSucceeded
		}
		return v1.PodFailed
	}
	return v1.PodPending
}

func initPhase(pod *v1.Pod, byName map[string]*v1.ContainerStatus) (pending, sidecars int, failed bool) {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		st := byName[c.Name]
		if podstate.IsSidecar(c) {
			if st != nil && (st.State.Running != nil && (st.Started == nil || !*st.Started) ||
				st.State.Waiting != nil && st.LastTerminationState.Terminated == nil) {
				sidecars++
			}
			continue
		}
		var term *v1.ContainerStateTerminated
		switch {
		case st == nil:
		case st.State.Terminated != nil:
			term = st.State.Terminated
		case st.State.Waiting != nil:
			term = st.LastTerminationState.Terminated
		}
		if term == nil {
			pending++
		} else if term.ExitCode != 0 && !podstate.ShouldRestart(c, pod, term.ExitCode) {
			failed = true
		}
	}
	return pending, sidecars, failed
}

func countContainer(pod *v1.Pod, c *v1.Container, st *v1.ContainerStatus, n *tally) {
	if st == nil {
		n.unknown++
		return
	}
	term := st.State.Terminated
	if st.State.Waiting != nil {
		term = st.LastTerminationState.Terminated
	}
	switch {
	case st.State.Running != nil:
		n.running++
	case term != nil:
		n.stopped++
		if !podstate.ShouldRestart(c, pod, term.ExitCode) {
			n.final++
		}
		if st.State.Terminated != nil && term.ExitCode == 0 {
			n.succeeded++
		}
	case st.State.Waiting != nil:
		n.waiting++
	default:
		n.unknown++
	}
}

// Finish makes a status final: every container that should have run and is not known to have ended
// is reported as lost, and the phase becomes Failed unless it is final already. Containers a pod
// never came to, because its initialization failed, stay as they are.
func Finish(s *v1.PodStatus, static bool) {
	lost := func(list []v1.ContainerStatus) {
		for i := range list {
			if list[i].State.Terminated == nil {
				list[i].State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: "ContainerStatusUnknown",
					Message: "The container could not be located when the pod was terminated", ExitCode: 137}}
			}
		}
	}
	inits := s.InitContainerStatuses
	reached := 0 // init containers up to the last that shows signs of life
	for i := range inits {
		if evidence(&inits[i]) {
			reached = i + 1
		}
	}
	initialized := len(inits) == 0 || reached == len(inits) && (inits[reached-1].Ready || inits[reached-1].State.Running != nil)
	for i := range s.ContainerStatuses {
		initialized = initialized || evidence(&s.ContainerStatuses[i])
		s.ContainerStatuses[i].Ready = false
	}
	if initialized {
		lost(s.ContainerStatuses)
		reached = len(inits)
	}
	lost(inits[:reached])
	if !Terminal(s.Phase) && !static {
		s.Phase = v1.PodFailed
	}
	for i := range s.Conditions {
		c := &s.Conditions[i]
		if (c.Type == v1.PodReady || c.Type == v1.ContainersReady) && c.Status == v1.ConditionTrue {
			c.Status, c.Message = v1.ConditionFalse, ""
			c.Reason = "PodFailed"
			if s.Phase == v1.PodSucceeded {
				c.Reason = "PodCompleted"
			}
		}
	}
}

// evidence says whether a container ever got going.
func evidence(c *v1.ContainerStatus) bool {
	return c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
}

// Terminal says whether a phase is final.
func Terminal(p v1.PodPhase) bool { return podstate.Terminal(p) }
