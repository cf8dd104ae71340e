package core

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// requests is how much of each resource is asked for: CPU in thousandths of a
// core, everything else in its own unit.
type requests struct {
	cpu, memory, ephemeral int64
	scalars                map[v1.ResourceName]int64
}

// defaultRequests is what a container that asks for no CPU or memory counts as
// when nodes are scored.
var defaultRequests = requests{cpu: 100, memory: 200 << 20}

func fromList(list v1.ResourceList) requests {
	r := requests{cpu: milli(*list.Cpu()), memory: list.Memory().Value(), ephemeral: list.StorageEphemeral().Value()}
	for name, q := range list {
		if isScalar(name) {
			r.add(requests{scalars: map[v1.ResourceName]int64{name: q.Value()}})
		}
	}
	return r
}

func (r *requests) add(o requests) {
	r.cpu += o.cpu
	r.memory += o.memory
	r.ephemeral += o.ephemeral
	for name, n := range o.scalars {
		if r.scalars == nil {
			r.scalars = map[v1.ResourceName]int64{}
		}
		r.scalars[name] += n
	}
}

// raise makes r at least o.
func (r *requests) raise(o requests) {
	r.cpu = max(r.cpu, o.cpu)
	r.memory = max(r.memory, o.memory)
	r.ephemeral = max(r.ephemeral, o.ephemeral)
	for name, n := range o.scalars {
		if r.scalars == nil {
			r.scalars = map[v1.ResourceName]int64{}
		}
		r.scalars[name] = max(r.scalars[name], n)
	}
}

// podRequests sums what a pod needs at its peak. Containers run together;
// init containers run before them, one at a time, beside the sidecars started
// so far (init containers with restartPolicy Always). Requests for the pod as a
// whole replace the sum; overhead comes on top. def stands in for a container's
// missing CPU and memory requests.
func podRequests(pod *v1.Pod, def requests) requests {
	var sum, sidecars, initPeak requests
	for i := range pod.Spec.Containers {
		sum.add(containerRequests(pod, &pod.Spec.Containers[i], pod.Status.ContainerStatuses, def))
	}
	for i := range pod.Spec.InitContainers {
		ctr := &pod.Spec.InitContainers[i]
		req := containerRequests(pod, ctr, pod.Status.InitContainerStatuses, def)
		if ctr.RestartPolicy != nil && *ctr.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sum.add(req)
			sidecars.add(req)
			initPeak.raise(sidecars)
			continue
		}
		peak := requests{}
		peak.add(sidecars)
		peak.add(req)
		initPeak.raise(peak)
	}
	sum.raise(initPeak)
	if pod.Spec.Resources != nil {
		sum.replace(pod.Spec.Resources.Requests)
	}
	sum.add(fromList(pod.Spec.Overhead))
	return sum
}

// replace takes the resources a pod asks for as a whole: CPU, memory and huge
// pages are the only ones.
func (r *requests) replace(list v1.ResourceList) {
	whole := fromList(list)
	if _, ok := list[v1.ResourceCPU]; ok {
		r.cpu = whole.cpu
	}
	if _, ok := list[v1.ResourceMemory]; ok {
		r.memory = whole.memory
	}
	for name, n := range whole.scalars {
		if r.scalars == nil {
			r.scalars = map[v1.ResourceName]int64{}
		}
		r.scalars[name] = n
	}
}

// containerRequests is what a container asks for, or holds if that is more:
// while it is resized in place both count.
func containerRequests(pod *v1.Pod, ctr *v1.Container, statuses []v1.ContainerStatus, def requests) requests {
	r := fromList(withDefaults(ctr.Resources.Requests, def))
	for i := range statuses {
		st := &statuses[i]
		if st.Name != ctr.Name {
			continue
		}
		r.raise(fromList(st.AllocatedResources))
		if st.Resources != nil {
			r.raise(fromList(st.Resources.Requests))
		}
	}
	return r
}

func withDefaults(list v1.ResourceList, def requests) v1.ResourceList {
	_, hasCPU := list[v1.ResourceCPU]
	_, hasMemory := list[v1.ResourceMemory]
	if (hasCPU || def.cpu == 0) && (hasMemory || def.memory == 0) {
		return list
	}
	out := list.DeepCopy()
	if out == nil {
		out = v1.ResourceList{}
	}
	if !hasCPU {
		out[v1.ResourceCPU] = *resource.NewMilliQuantity(def.cpu, resource.DecimalSI)
	}
	if !hasMemory {
		out[v1.ResourceMemory] = *resource.NewQuantity(def.memory, resource.BinarySI)
	}
	return out
}
