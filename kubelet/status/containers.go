package status

import (
	"sort"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/kubelet/allocation"
	"github.com/skiff-project/skiff/kubelet/podstate"
)

// ContainerID forms the API's id of a container: "<runtime name>://<id>".
func ContainerID(scheme, id string) string { return scheme + "://" + id }

// RawID strips the runtime's name from an API container id.
func RawID(apiID string) string {
	if _, id, ok := strings.Cut(apiID, "://"); ok {
		return id
	}
	return apiID
}

func setContainerStatuses(in *Input, old, s *v1.PodStatus) {
	pod := in.Pod
	eph := make([]v1.Container, 0, len(pod.Spec.EphemeralContainers))
	for i := range pod.Spec.EphemeralContainers {
		eph = append(eph, v1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	s.ContainerStatuses = containerStatuses(in, old.ContainerStatuses, pod.Spec.Containers, false)
	s.InitContainerStatuses = containerStatuses(in, old.InitContainerStatuses, pod.Spec.InitContainers, true)
	s.EphemeralContainerStatuses = containerStatuses(in, old.EphemeralContainerStatuses, eph, false)
	sort.Slice(s.ContainerStatuses, func(i, j int) bool { return s.ContainerStatuses[i].Name < s.ContainerStatuses[j].Name })
}

func containerStatuses(in *Input, oldList []v1.ContainerStatus, specs []v1.Container, isInit bool) []v1.ContainerStatus {
	olds := map[string]*v1.ContainerStatus{}
	for i := range oldList {
		olds[oldList[i].Name] = &oldList[i]
	}
	var out []v1.ContainerStatus
	for i := range specs {
		st := oneStatus(in, olds[specs[i].Name], &specs[i])
		applyWaiting(in, &specs[i], &st, isInit)
		out = append(out, st)
	}
	return out
}

func oneStatus(in *Input, old *v1.ContainerStatus, c *v1.Container) v1.ContainerStatus {
	var found []*podstate.Container
	for i := range in.Runtime.Containers {
		if in.Runtime.Containers[i].Name == c.Name && len(found) < 2 {
			found = append(found, &in.Runtime.Containers[i])
		}
	}
	if len(found) == 0 {
		return absent(in, old, c)
	}
	st := convert(in, found[0], old, c)
	st.VolumeMounts = mountStatuses(c, in.RRO)
	if st.State.Waiting != nil && found[0].State == podstate.Created {
		// Seen between its creation and its start: it waits as it did before.
		st.State.Waiting.Reason = waitingReason(in.Pod)
	}
	if old != nil && old.ContainerID != "" && old.ContainerID != st.ContainerID && old.State.Terminated != nil {
		st.LastTerminationState.Terminated = old.State.Terminated
	} else if old != nil && old.LastTerminationState.Terminated != nil {
		st.LastTerminationState.Terminated = old.LastTerminationState.Terminated
	}
	if len(found) == 2 {
		st.LastTerminationState = convert(in, found[1], nil, c).State
		st.LastTerminationState.Waiting, st.LastTerminationState.Running = nil, nil
	}
	return st
}

// waitingReason is why a container waits that nothing is known to be wrong with.
func waitingReason(pod *v1.Pod) string {
	if len(pod.Spec.InitContainers) > 0 {
		return "PodInitializing"
	}
	return "ContainerCreating"
}

// absent is the status of a container the runtime knows nothing of.
func absent(in *Input, old *v1.ContainerStatus, c *v1.Container) v1.ContainerStatus {
	st := v1.ContainerStatus{Name: c.Name, Image: c.Image, VolumeMounts: mountStatuses(c, in.RRO),
		State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: waitingReason(in.Pod)}}}
	if old == nil {
		return st
	}
	if old.State.Terminated != nil {
		return *old
	}
	st.RestartCount = old.RestartCount
	st.LastTerminationState = old.LastTerminationState
	if old.State.Running != nil && st.LastTerminationState.Terminated == nil {
		// It ran before and vanished: saying "waiting" alone would put the pod back to Pending.
		st.LastTerminationState.Terminated = &v1.ContainerStateTerminated{
			Reason:   "ContainerStatusUnknown",
			Message:  "The container could not be located when the pod was deleted.  The container used to be Running",
			ExitCode: 137,
		}
		if in.Pod.DeletionTimestamp == nil {
			st.RestartCount++
		}
	}
	return st
}

func convert(in *Input, rc *podstate.Container, old *v1.ContainerStatus, c *v1.Container) v1.ContainerStatus {
	id := ContainerID(in.Scheme, rc.ID)
	st := v1.ContainerStatus{
		Name: rc.Name, RestartCount: rc.RestartCount, Image: rc.Image, ImageID: rc.ImageRef, ContainerID: id,
		AllocatedResources: c.Resources.DeepCopy().Requests, Resources: actualResources(rc, c, in.Actuated), User: rc.User,
	}
	switch {
	case rc.State == podstate.Running:
		st.State.Running = &v1.ContainerStateRunning{StartedAt: metav1.NewTime(rc.StartedAt).Rfc3339Copy()}
	case rc.State == podstate.Exited:
		st.State.Terminated = &v1.ContainerStateTerminated{
			ExitCode: rc.ExitCode, Reason: rc.Reason, Message: rc.Message, ContainerID: id,
			StartedAt: metav1.NewTime(rc.StartedAt).Rfc3339Copy(), FinishedAt: metav1.NewTime(rc.FinishedAt).Rfc3339Copy(),
		}
	case rc.State == podstate.Unknown && old != nil && old.State.Running != nil:
		st.State.Terminated = &v1.ContainerStateTerminated{
			Reason: "ContainerStatusUnknown", ExitCode: 137,
			Message: "The container could not be located when the pod was terminated",
		}
		st.RestartCount = old.RestartCount + 1
	default:
		st.State.Waiting = &v1.ContainerStateWaiting{}
	}
	return st
}

// actualResources reports the resources in force: those last applied, overlaid with what the runtime
// says.
func actualResources(rc *podstate.Container, c *v1.Container, actuated allocation.Set) *v1.ResourceRequirements {
	r := c.Resources.DeepCopy()
	if a, ok := actuated.Containers[c.Name]; ok && rc.State == podstate.Running {
		r = a.DeepCopy()
	}
	rt := rc.Resources
	if rc.State != podstate.Running || rt == nil {
		return r
	}
	if r.Limits != nil {
		if rt.CPUQuota != nil && rt.CPUPeriod != nil && *rt.CPUQuota > 0 && *rt.CPUPeriod > 0 {
			overlay(r.Limits, v1.ResourceCPU, *resource.NewMilliQuantity(*rt.CPUQuota*1000 / *rt.CPUPeriod, resource.DecimalSI), 10)
		}
		if rt.MemoryLimit != nil && *rt.MemoryLimit > 0 {
			overlay(r.Limits, v1.ResourceMemory, *resource.NewQuantity(*rt.MemoryLimit, resource.BinarySI), 0)
		}
	}
	if r.Requests != nil && rt.CPUShares != nil && *rt.CPUShares > 0 {
		// Shares are coarser than milli-CPU: a request that maps to the same shares is the same.
		if q, ok := r.Requests[v1.ResourceCPU]; !ok || q.MilliValue()*1024/1000 != *rt.CPUShares {
			milli := (*rt.CPUShares*1000 + 1023) / 1024
			overlay(r.Requests, v1.ResourceCPU, *resource.NewMilliQuantity(milli, resource.DecimalSI), 2)
		}
	}
	return r
}

// overlay replaces an entry that is there and differs, unless both are at or below a floor (milli)
// under which the kernel cannot tell values apart.
func overlay(l v1.ResourceList, name v1.ResourceName, q resource.Quantity, floorMilli int64) {
	have, ok := l[name]
	if !ok || have.Cmp(q) == 0 {
		return
	}
	if floorMilli > 0 && have.MilliValue() <= floorMilli && q.MilliValue() <= floorMilli {
		return
	}
	l[name] = q
}

func mountStatuses(c *v1.Container, rro bool) []v1.VolumeMountStatus {
	var out []v1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		st := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			if m.RecursiveReadOnly != nil && rro && *m.RecursiveReadOnly != v1.RecursiveReadOnlyDisabled {
				mode = v1.RecursiveReadOnlyEnabled
			}
			st.RecursiveReadOnly = &mode
		}
		out = append(out, st)
	}
	return out
}

// applyWaiting turns the status of a container that should be (re)started, but could not be, into
// Waiting with the reason of the last failure.
func applyWaiting(in *Input, c *v1.Container, st *v1.ContainerStatus, isInit bool) {
	latest := in.Runtime.Latest(c.Name)
	if isInit {
		if latest != nil && latest.State == podstate.Exited && latest.ExitCode == 0 && !podstate.IsSidecar(c) {
			return
		}
		if latest == nil && !podstate.IsSidecar(c) && st.State.Waiting != nil && initialized(in.Pod, in.Runtime) {
			st.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: "Completed",
				Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally"}}
			return
		}
	}
	w, ok := in.Waiting[c.Name]
	if !ok || in.Terminal || !podstate.NeedsStart(c, in.Pod, latest) {
		return
	}
	if st.State.Terminated != nil {
		st.LastTerminationState = st.State
	}
	st.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}}
}

// applyProbes sets started and ready from the probes' verdicts. A container seen ready before a
// restart of the kubelet stays ready until its probe says otherwise.
func applyProbes(in *Input, old, s *v1.PodStatus) {
	for i := range s.ContainerStatuses {
		st := &s.ContainerStatuses[i]
		if c := podstate.FindContainer(in.Pod, st.Name); c != nil {
			started, ready := verdict(in, c, st, find(old.ContainerStatuses, st.Name))
			st.Started, st.Ready = &started, ready
		}
	}
	for i := range s.InitContainerStatuses {
		st := &s.InitContainerStatuses[i]
		c := podstate.FindContainer(in.Pod, st.Name)
		if c == nil {
			continue
		}
		if podstate.IsSidecar(c) {
			started, ready := verdict(in, c, st, find(old.InitContainerStatuses, st.Name))
			st.Started, st.Ready = &started, ready
			continue
		}
		started := st.State.Running != nil
		st.Started = &started
		st.Ready = st.State.Terminated != nil && st.State.Terminated.ExitCode == 0
	}
}

func find(list []v1.ContainerStatus, name string) *v1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func verdict(in *Input, c *v1.Container, st, old *v1.ContainerStatus) (started, ready bool) {
	if st.State.Running == nil {
		return false, false
	}
	p := in.Probes[RawID(st.ContainerID)]
	same := old != nil && old.ContainerID == st.ContainerID
	started = c.StartupProbe == nil || (p.Startup != nil && *p.Startup) ||
		(p.Startup == nil && same && old.Started != nil && *old.Started)
	if !started {
		return false, false
	}
	switch {
	case in.Settle && Settles(c):
		late := in.Now.Sub(st.State.Running.StartedAt.Time) >= SettleTime
		return true, p.Readiness != nil || late || same && old.Ready
	case c.ReadinessProbe == nil:
		return true, true
	case p.Readiness != nil:
		return true, *p.Readiness
	}
	return true, same && old.Ready
}
