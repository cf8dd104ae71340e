package hollow

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// LabelGroup marks a simulated node with the Prefix it was made under.
const LabelGroup = "sim.skiff.dev/group"

// leaseSeconds is how long a kubelet's lease says it holds, upstream's 40 s.
const leaseSeconds = 40

// node is one simulated kubelet. What changes is guarded by Kubelets.mu.
type node struct {
	name string
	ip   string
	// reserve is where pod addresses come from in a cluster that gives nodes none.
	reserve netip.Prefix

	uid        types.UID
	registered atomic.Bool           // from here on the lease loop has the lease
	lease      *coordinationv1.Lease // as last seen
	cidr       netip.Prefix
	used       map[netip.Addr]types.UID
	last       netip.Addr
}

func (c *Config) node(i int) *node {
	return &node{
		name:    fmt.Sprintf("%s-%d", c.Prefix, i),
		ip:      at(netip.MustParseAddr("100.64.0.0"), uint32(i)+1).String(),
		reserve: netip.PrefixFrom(at(netip.MustParseAddr("10.128.0.0"), uint32(i%(1<<15))<<8), 24),
		used:    map[netip.Addr]types.UID{},
	}
}

// at is the n-th address after a.
func at(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += n
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// take gives a pod an address of the node: the one it has, else the next free
// one; the first is the gateway's. ok is false when none is left.
func (n *node) take(pod types.UID, has string) (addr netip.Addr, ok bool) {
	if a, err := netip.ParseAddr(has); err == nil && (n.used[a] == "" || n.used[a] == pod) {
		n.used[a] = pod
		return a, true
	}
	first := n.cidr.Masked().Addr().Next().Next()
	size := 1<<(n.cidr.Addr().BitLen()-n.cidr.Bits()) - 3 // network, gateway, broadcast
	a := n.last
	for range size {
		if a = a.Next(); !a.IsValid() || !n.cidr.Contains(a) || !n.cidr.Contains(a.Next()) {
			a = first
		}
		if n.used[a] == "" {
			n.used[a], n.last = pod, a
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (n *node) release(addr string, pod types.UID) {
	if a, err := netip.ParseAddr(addr); err == nil && n.used[a] == pod {
		delete(n.used, a)
	}
}

// defaultCapacity is that of a large machine.
func defaultCapacity() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("32"),
		corev1.ResourceMemory:           resource.MustParse("256Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
		corev1.ResourcePods:             resource.MustParse("110"),
	}
}

// object is the Node as the kubelet registers it, Ready from the start.
func (c *Config) object(n *node, now time.Time) *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname: n.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64", LabelGroup: c.Prefix,
	}
	for k, v := range c.Labels {
		labels[k] = v
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: labels},
		Spec:       corev1.NodeSpec{Taints: c.Taints},
		Status: corev1.NodeStatus{
			Capacity: c.Capacity, Allocatable: c.Capacity,
			Conditions: conditions(now),
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: n.ip},
				{Type: corev1.NodeHostName, Address: n.name},
			},
			NodeInfo: corev1.NodeSystemInfo{
				MachineID: n.name, SystemUUID: n.name, BootID: n.name, KernelVersion: "hollow", OSImage: "hollow",
				ContainerRuntimeVersion: "hollow://1", KubeletVersion: c.Version, OperatingSystem: "linux", Architecture: "amd64",
			},
		},
	}
}

func conditions(now time.Time) []corev1.NodeCondition {
	list := []struct {
		t               corev1.NodeConditionType
		status          corev1.ConditionStatus
		reason, message string
	}{
		{corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"},
		{corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"},
		{corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"},
		{corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"},
	}
	out := make([]corev1.NodeCondition, len(list))
	for i, c := range list {
		out[i] = corev1.NodeCondition{
			Type: c.t, Status: c.status, Reason: c.reason, Message: c.message,
			LastHeartbeatTime: metav1.Time{Time: now}, LastTransitionTime: metav1.Time{Time: now},
		}
	}
	return out
}

// newLease is the node's lease; it goes with its node.
func (n *node) newLease(now time.Time) *coordinationv1.Lease {
	seconds := int32(leaseSeconds)
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.name, Namespace: corev1.NamespaceNodeLease,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.name, UID: n.uid}},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &n.name, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: now}},
	}
}
