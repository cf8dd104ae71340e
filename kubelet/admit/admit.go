// Package admit decides whether a pod bound to this node may run here, as a pure function of the
// pod, the node and the pods already here. Reasons and messages are upstream's.
package admit

import (
	"fmt"
	"runtime"
	"strings"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// Rejection is why a pod may not run; it becomes the pod's status reason and message.
type Rejection struct{ Reason, Message string }

// Check returns nil if the pod fits. others are the active pods already admitted.
func Check(pod *v1.Pod, node *v1.Node, others []*v1.Pod) *Rejection {
	if node == nil {
		return nil // not registered yet: nothing is known against the pod
	}
	if os, ok := pod.Labels[v1.LabelOSStable]; ok && os != runtime.GOOS {
		return &Rejection{"PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if pod.Spec.OS != nil && string(pod.Spec.OS.Name) != runtime.GOOS {
		return &Rejection{"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if r := sysctls(pod); r != nil {
		return r
	}
	if r := groupsPolicy(pod, node); r != nil {
		return r
	}
	if r := resources(pod, node, others); r != nil {
		return r
	}
	if ok, _ := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); !ok {
		return predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
	}
	if pod.Spec.NodeName != "" && pod.Spec.NodeName != node.Name {
		return predicate("NodeName", "node(s) didn't match the requested node name")
	}
	if portConflict(pod, others) {
		return predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")
	}
	if !podstate.IsStatic(pod) {
		for i := range node.Spec.Taints {
			if t := &node.Spec.Taints[i]; t.Effect == v1.TaintEffectNoExecute && !tolerated(pod, t) {
				return predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate")
			}
		}
	}
	return nil
}

func predicate(name, text string) *Rejection {
	return &Rejection{name, fmt.Sprintf("Predicate %s failed: %s", name, text)}
}

func groupsPolicy(pod *v1.Pod, node *v1.Node) *Rejection {
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.SupplementalGroupsPolicy == nil || *sc.SupplementalGroupsPolicy != v1.SupplementalGroupsPolicyStrict {
		return nil
	}
	if f := node.Status.Features; f != nil && f.SupplementalGroupsPolicy != nil && *f.SupplementalGroupsPolicy {
		return nil
	}
	return &Rejection{"SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"}
}

func tolerated(pod *v1.Pod, t *v1.Taint) bool {
	for i := range pod.Spec.Tolerations {
		tol := &pod.Spec.Tolerations[i]
		if tol.Effect != "" && tol.Effect != t.Effect || tol.Key != "" && tol.Key != t.Key {
			continue
		}
		if tol.Operator == v1.TolerationOpExists || (tol.Operator == "" || tol.Operator == v1.TolerationOpEqual) && tol.Key != "" && tol.Value == t.Value {
			return true
		}
	}
	return false
}

func resources(pod *v1.Pod, node *v1.Node, others []*v1.Pod) *Rejection {
	alloc := node.Status.Allocatable
	if q, ok := alloc[v1.ResourcePods]; ok && int64(len(others)+1) > q.Value() {
		return short(v1.ResourcePods, 1, int64(len(others)), q.Value())
	}
	opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	want := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	used := map[v1.ResourceName]int64{}
	for _, p := range others {
		for name, q := range resourcehelper.PodRequests(p, opts) {
			used[name] += amount(name, q.MilliValue(), q.Value())
		}
	}
	for _, name := range order(want) {
		q := want[name]
		need := amount(name, q.MilliValue(), q.Value())
		have, ok := alloc[name]
		if need == 0 || !ok && strings.Contains(string(name), "/") {
			continue // resources the node does not know may be the cluster's
		}
		if free := amount(name, have.MilliValue(), have.Value()); need > free-used[name] {
			return short(name, need, used[name], free)
		}
	}
	return nil
}

// order puts the base resources first, as their shortage is reported first.
func order(l v1.ResourceList) []v1.ResourceName {
	out := []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}
	for name := range l {
		if name != out[0] && name != out[1] && name != out[2] {
			out = append(out, name)
		}
	}
	return out
}

func amount(name v1.ResourceName, milli, value int64) int64 {
	if name == v1.ResourceCPU {
		return milli
	}
	return value
}

func short(name v1.ResourceName, requested, used, capacity int64) *Rejection {
	return &Rejection{"OutOf" + string(name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
		name, requested, used, capacity)}
}

type port struct {
	ip, proto string
	n         int32
}

func hostPorts(pod *v1.Pod) []port {
	var out []port
	add := func(c *v1.Container) {
		for _, p := range c.Ports {
			if p.HostPort <= 0 {
				continue
			}
			h := port{p.HostIP, string(p.Protocol), p.HostPort}
			if h.ip == "" {
				h.ip = "0.0.0.0"
			}
			if h.proto == "" {
				h.proto = "TCP"
			}
			out = append(out, h)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if podstate.IsSidecar(&pod.Spec.InitContainers[i]) {
			add(&pod.Spec.InitContainers[i])
		}
	}
	return out
}

func portConflict(pod *v1.Pod, others []*v1.Pod) bool {
	want := hostPorts(pod)
	if len(want) == 0 {
		return false
	}
	any := func(ip string) bool { return ip == "0.0.0.0" || ip == "::" }
	for _, o := range others {
		for _, h := range hostPorts(o) {
			for _, w := range want {
				if w.n == h.n && w.proto == h.proto && (w.ip == h.ip || any(w.ip) || any(h.ip)) {
					return true
				}
			}
		}
	}
	return false
}
