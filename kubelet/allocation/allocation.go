// Package allocation holds the cpu and memory a pod was granted, apart from what its spec asks for:
// in-place resize (KEP-1287) changes the spec at once, the grant when the node has room, and the
// cgroups after that. It is pure.
package allocation

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Set is the resources of a pod's regular and init containers by name, and of the pod as a whole.
type Set struct {
	Pod        *v1.ResourceRequirements           `json:"pod,omitempty"`
	Containers map[string]v1.ResourceRequirements `json:"containers,omitempty"`
}

// Of is what a pod's spec says. It shares no memory with the pod.
func Of(pod *v1.Pod) Set {
	s := Set{Pod: pod.Spec.Resources.DeepCopy(), Containers: map[string]v1.ResourceRequirements{}}
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			s.Containers[list[i].Name] = *list[i].Resources.DeepCopy()
		}
	}
	return s
}

// Empty says that nothing was granted yet.
func (s Set) Empty() bool { return s.Containers == nil }

// Apply returns the pod with the set's resources in its spec: the same object if they are there
// already (then differs is false), else a copy. An empty set changes nothing.
func (s Set) Apply(pod *v1.Pod) (out *v1.Pod, differs bool) {
	if s.Empty() || equality.Semantic.DeepEqual(s, Of(pod)) {
		return pod, false
	}
	out = pod.DeepCopy()
	out.Spec.Resources = s.Pod.DeepCopy()
	for _, list := range [][]v1.Container{out.Spec.Containers, out.Spec.InitContainers} {
		for i := range list {
			if r, ok := s.Containers[list[i].Name]; ok {
				list[i].Resources = *r.DeepCopy()
			}
		}
	}
	return out, true
}

// Same says whether two sets give a container the same cpu and memory.
func Same(a, b Set, container string) bool {
	return !Differ(a, b, container, v1.ResourceCPU) && !Differ(a, b, container, v1.ResourceMemory)
}

// Differ says whether two sets give a container another request or limit of a resource. The pod's
// limit is that of a container without one.
func Differ(a, b Set, container string, name v1.ResourceName) bool {
	x, y := a.Containers[container], b.Containers[container]
	return x.Requests.Name(name, "").Cmp(*y.Requests.Name(name, "")) != 0 || a.limit(x, name).Cmp(*b.limit(y, name)) != 0
}

func (s Set) limit(c v1.ResourceRequirements, name v1.ResourceName) *resource.Quantity {
	if own := c.Limits.Name(name, ""); !own.IsZero() {
		return own
	}
	pod := whole(s)
	return pod.Limits.Name(name, "")
}

// SamePod says whether two sets give the pod as a whole the same cpu and memory.
func SamePod(a, b Set) bool {
	return !changed(whole(a), whole(b), v1.ResourceCPU) && !changed(whole(a), whole(b), v1.ResourceMemory)
}

func whole(s Set) v1.ResourceRequirements {
	if s.Pod == nil {
		return v1.ResourceRequirements{}
	}
	return *s.Pod
}

// changed says whether a resource's request or limit differs; none and zero are the same.
func changed(a, b v1.ResourceRequirements, name v1.ResourceName) bool {
	return a.Requests.Name(name, "").Cmp(*b.Requests.Name(name, "")) != 0 || a.Limits.Name(name, "").Cmp(*b.Limits.Name(name, "")) != 0
}
