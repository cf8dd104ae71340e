// Package evict decides which pods must go because they use more of the node's disk than they
// were given.
package evict

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// Reason is the reason of the event and of the pod's status.
const Reason = "Evicted"

// Grace is how long an evicted pod gets, in seconds.
const Grace = 1

// systemCritical is the least priority that protects a pod from eviction.
const systemCritical = 2000000000

// Usage is what a pod uses of the node's disk, in bytes.
type Usage struct {
	Volumes    map[string]int64 // emptyDir volumes on disk, by name
	Containers map[string]int64 // logs and writable layer, by container
}

// Limited says whether anything bounds the pod's use of the disk: of others nothing need be measured.
func Limited(pod *v1.Pod) bool {
	if critical(pod) {
		return false
	}
	for i := range pod.Spec.Volumes {
		if e := pod.Spec.Volumes[i].EmptyDir; onDisk(e) && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			return true
		}
	}
	return slices.ContainsFunc(limited(pod), func(c *v1.Container) bool { return !c.Resources.Limits.StorageEphemeral().IsZero() })
}

// Over returns why a pod must be evicted, "" if it need not. The texts are upstream's.
func Over(pod *v1.Pod, u Usage) string {
	if critical(pod) {
		return ""
	}
	var total int64
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !onDisk(v.EmptyDir) {
			continue
		}
		used := u.Volumes[v.Name]
		total += used
		if l := v.EmptyDir.SizeLimit; l != nil && l.Sign() > 0 && used > l.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, l.String())
		}
	}
	for _, used := range u.Containers {
		total += used
	}
	if l, ok := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok && total > l.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", l.String())
	}
	for _, c := range limited(pod) {
		if l := c.Resources.Limits.StorageEphemeral(); !l.IsZero() && u.Containers[c.Name] > l.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, l.String())
		}
	}
	return ""
}

// onDisk: a volume in memory is bounded by the kernel.
func onDisk(e *v1.EmptyDirVolumeSource) bool {
	return e != nil && e.Medium != v1.StorageMediumMemory
}

// critical pods are never evicted; static ones would not be started again.
func critical(pod *v1.Pod) bool {
	p := pod.Spec.Priority
	return p != nil && *p >= systemCritical || podstate.IsStatic(pod) || podstate.IsMirror(pod)
}

// limited are the containers whose own limit counts: those that live as long as the pod.
func limited(pod *v1.Pod) []*v1.Container {
	var out []*v1.Container
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if podstate.IsSidecar(&pod.Spec.InitContainers[i]) {
			out = append(out, &pod.Spec.InitContainers[i])
		}
	}
	return out
}
