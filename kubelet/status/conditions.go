package status

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// owned are the conditions only the kubelet writes.
var owned = []v1.PodConditionType{v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady,
	v1.PodScheduled, v1.PodResizeInProgress, v1.PodResizePending, "AllContainersRestarting"}

// Owned says whether a condition belongs to the kubelet alone.
func Owned(t v1.PodConditionType) bool { return slices.Contains(owned, t) }

func setConditions(in *Input, old, s *v1.PodStatus) {
	pod := in.Pod
	for _, c := range pod.Status.Conditions {
		if !Owned(c.Type) {
			s.Conditions = append(s.Conditions, c)
		}
	}
	all := append(slices.Clone(s.InitContainerStatuses), s.ContainerStatuses...)
	cr := containersReady(pod, all, s.Phase)
	s.Conditions = append(s.Conditions,
		readyToStart(pod, in.Runtime), podInitialized(pod, all, s.Phase), podReady(pod, cr, s.Conditions), cr,
		v1.PodCondition{Type: v1.PodScheduled, Status: v1.ConditionTrue})
	for i := range s.Conditions {
		c := &s.Conditions[i]
		if !Owned(c.Type) {
			continue
		}
		c.ObservedGeneration = pod.Generation
		c.LastTransitionTime = metav1.NewTime(in.Now).Rfc3339Copy()
		for j := range old.Conditions {
			if o := &old.Conditions[j]; o.Type == c.Type && o.Status == c.Status && !o.LastTransitionTime.IsZero() {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
	}
	for _, c := range in.Resize {
		if c != nil && !Terminal(s.Phase) {
			s.Conditions = append(s.Conditions, *c)
		}
	}
}

func readyToStart(pod *v1.Pod, rt *podstate.Runtime) v1.PodCondition {
	needed, _, why := rt.SandboxNeeded(pod)
	if !needed {
		return v1.PodCondition{Type: v1.PodReadyToStartContainers, Status: v1.ConditionTrue}
	}
	return v1.PodCondition{Type: v1.PodReadyToStartContainers, Status: v1.ConditionFalse, Reason: "PodSandboxNotReady", Message: why}
}

func containersReady(pod *v1.Pod, all []v1.ContainerStatus, phase v1.PodPhase) v1.PodCondition {
	c := v1.PodCondition{Type: v1.ContainersReady, Status: v1.ConditionFalse}
	var unknown, unready []string
	check := func(name string) {
		if st := find(all, name); st == nil {
			unknown = append(unknown, name)
		} else if !st.Ready {
			unready = append(unready, name)
		}
	}
	for i := range pod.Spec.InitContainers {
		if podstate.IsSidecar(&pod.Spec.InitContainers[i]) {
			check(pod.Spec.InitContainers[i].Name)
		}
	}
	for i := range pod.Spec.Containers {
		check(pod.Spec.Containers[i].Name)
	}
	switch {
	case phase == v1.PodSucceeded && len(unknown) == 0:
		c.Reason = "PodCompleted"
	case phase == v1.PodFailed:
		c.Reason = "PodFailed"
	case len(unknown)+len(unready) > 0:
		c.Reason, c.Message = "ContainersNotReady", listing(unknown, "unknown", unready, "unready")
	default:
		c.Status = v1.ConditionTrue
	}
	return c
}

func listing(a []string, aWord string, b []string, bWord string) string {
	var m []string
	if len(a) > 0 {
		m = append(m, fmt.Sprintf("containers with %s status: %s", aWord, a))
	}
	if len(b) > 0 {
		m = append(m, fmt.Sprintf("containers with %s status: %s", bWord, b))
	}
	return strings.Join(m, ", ")
}

func podInitialized(pod *v1.Pod, all []v1.ContainerStatus, phase v1.PodPhase) v1.PodCondition {
	c := v1.PodCondition{Type: v1.PodInitialized, Status: v1.ConditionTrue}
	var unknown, incomplete []string
	for i := range pod.Spec.InitContainers {
		ic := &pod.Spec.InitContainers[i]
		st := find(all, ic.Name)
		switch {
		case st == nil:
			unknown = append(unknown, ic.Name)
		case podstate.IsSidecar(ic) && (st.Started == nil || !*st.Started), !podstate.IsSidecar(ic) && !st.Ready:
			incomplete = append(incomplete, ic.Name)
		}
	}
	if phase == v1.PodSucceeded && len(unknown) == 0 {
		c.Reason = "PodCompleted"
		return c
	}
	for i := range pod.Spec.Containers {
		if st := find(all, pod.Spec.Containers[i].Name); st != nil && (st.State.Running != nil || st.State.Terminated != nil) {
			return c
		}
	}
	if len(unknown)+len(incomplete) > 0 {
		c.Status, c.Reason = v1.ConditionFalse, "ContainersNotInitialized"
		c.Message = listing(unknown, "unknown", incomplete, "incomplete")
	}
	return c
}

func podReady(pod *v1.Pod, containersReady v1.PodCondition, others []v1.PodCondition) v1.PodCondition {
	c := containersReady
	c.Type = v1.PodReady
	if c.Status != v1.ConditionTrue {
		return c
	}
	var unmet []string
	for _, g := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(others, func(o v1.PodCondition) bool { return o.Type == g.ConditionType })
		if i < 0 {
			unmet = append(unmet, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(g.ConditionType)))
		} else if others[i].Status != v1.ConditionTrue {
			unmet = append(unmet, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(g.ConditionType), others[i].Status))
		}
	}
	if len(unmet) > 0 {
		c.Status, c.Reason, c.Message = v1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(unmet, ", ")
	}
	return c
}
