package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Input is what the node's status depends on.
type Input struct {
	Facts    Facts
	Name     string
	IPs      []string
	MaxPods  int64
	Port     int32
	Version  string // kubelet version, e.g. v1.37.2
	Runtime  string // name://version
	Images   []v1.ContainerImage
	Handlers []v1.NodeRuntimeHandler
	// GroupsPolicy: the runtime supports fine-grained supplemental groups.
	GroupsPolicy *bool
	Problems     []string // why the node is not ready; none = ready
	Eviction     Thresholds
	Now          time.Time
}

// Thresholds below which the node is under pressure. Zero fields take upstream's defaults.
type Thresholds struct {
	MemoryBytes   int64   // default 100 MiB available
	DiskFraction  float64 // default 0.10 free
	InodeFraction float64 // default 0.05 free
	PIDFraction   float64 // default 0: never
}

// Defaults fills in what is zero.
func (t Thresholds) Defaults() Thresholds {
	if t.MemoryBytes == 0 {
		t.MemoryBytes = 100 << 20
	}
	if t.DiskFraction == 0 {
		t.DiskFraction = 0.10
	}
	if t.InodeFraction == 0 {
		t.InodeFraction = 0.05
	}
	return t
}

// Status computes the node's status from facts and its status so far. Resources the kubelet does not
// know (extended ones, patched in by others) are kept.
func Status(in Input, old v1.NodeStatus) v1.NodeStatus {
	s := *old.DeepCopy()
	f := in.Facts
	s.Capacity = keepForeign(s.Capacity)
	s.Capacity[v1.ResourceCPU] = *resource.NewQuantity(f.CPUs, resource.DecimalSI)
	s.Capacity[v1.ResourceMemory] = *resource.NewQuantity(f.MemoryBytes, resource.BinarySI)
	s.Capacity[v1.ResourceEphemeralStorage] = *resource.NewQuantity(f.DiskBytes, resource.BinarySI)
	s.Capacity[v1.ResourcePods] = *resource.NewQuantity(in.MaxPods, resource.DecimalSI)
	var huge int64
	for name, bytes := range f.HugePages {
		s.Capacity[v1.ResourceName(name)] = *resource.NewQuantity(bytes, resource.BinarySI)
		huge += bytes
	}
	t := in.Eviction.Defaults()
	s.Allocatable = s.Capacity.DeepCopy()
	s.Allocatable[v1.ResourceMemory] = *resource.NewQuantity(max(0, f.MemoryBytes-t.MemoryBytes-huge), resource.BinarySI)
	s.Allocatable[v1.ResourceEphemeralStorage] = *resource.NewQuantity(f.DiskBytes-int64(float64(f.DiskBytes)*t.DiskFraction), resource.BinarySI)
	s.Addresses = nil
	for _, ip := range in.IPs {
		s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: in.Name})
	s.DaemonEndpoints.KubeletEndpoint.Port = in.Port
	s.NodeInfo = v1.NodeSystemInfo{
		MachineID: f.MachineID, SystemUUID: f.SystemUUID, BootID: f.BootID, KernelVersion: f.Kernel, OSImage: f.OSImage,
		ContainerRuntimeVersion: in.Runtime, KubeletVersion: in.Version, OperatingSystem: f.OS, Architecture: f.Arch,
	}
	if f.SwapBytes > 0 {
		s.NodeInfo.Swap = &v1.NodeSwapStatus{Capacity: &f.SwapBytes}
	}
	s.Images = topImages(in.Images)
	s.RuntimeHandlers = in.Handlers
	if in.GroupsPolicy != nil {
		s.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: in.GroupsPolicy}
	}
	// Those of upstream's features that the API server asks a node for and this kubelet has, sorted.
	s.DeclaredFeatures = []string{"InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"}
	for _, c := range conditions(in, t) {
		setCondition(&s, c, in.Now)
	}
	return s
}

// keepForeign drops nothing but is never nil.
func keepForeign(l v1.ResourceList) v1.ResourceList {
	out := v1.ResourceList{}
	maps.Copy(out, l)
	return out
}

const maxImages, maxNames = 50, 5

func topImages(images []v1.ContainerImage) []v1.ContainerImage {
	out := slices.Clone(images)
	slices.SortStableFunc(out, func(a, b v1.ContainerImage) int {
		if a.SizeBytes != b.SizeBytes {
			return int(min(max(b.SizeBytes-a.SizeBytes, -1), 1))
		}
		return strings.Compare(strings.Join(a.Names, ","), strings.Join(b.Names, ","))
	})
	if len(out) > maxImages {
		out = out[:maxImages]
	}
	for i := range out {
		if len(out[i].Names) > maxNames {
			out[i].Names = out[i].Names[:maxNames]
		}
	}
	return out
}

func conditions(in Input, t Thresholds) []v1.NodeCondition {
	f := in.Facts
	memory := f.MemoryFree < t.MemoryBytes
	disk := float64(f.DiskFree) < float64(f.DiskBytes)*t.DiskFraction ||
		f.InodesTotal > 0 && float64(f.InodesFree) < float64(f.InodesTotal)*t.InodeFraction
	pid := t.PIDFraction > 0 && f.PIDMax > 0 && float64(f.PIDMax-f.PIDs) < float64(f.PIDMax)*t.PIDFraction
	out := []v1.NodeCondition{
		pressure(v1.NodeMemoryPressure, memory, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available",
			"KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		pressure(v1.NodeDiskPressure, disk, "KubeletHasDiskPressure", "kubelet has disk pressure",
			"KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		pressure(v1.NodePIDPressure, pid, "KubeletHasInsufficientPID", "kubelet has insufficient PID available",
			"KubeletHasSufficientPID", "kubelet has sufficient PID available"),
	}
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	if len(in.Problems) > 0 {
		ready.Status, ready.Reason = v1.ConditionFalse, "KubeletNotReady"
		ready.Message = in.Problems[0]
		if len(in.Problems) > 1 {
			ready.Message = "[" + strings.Join(in.Problems, ", ") + "]"
		}
	}
	return append(out, ready)
}

func pressure(typ v1.NodeConditionType, on bool, reasonOn, msgOn, reasonOff, msgOff string) v1.NodeCondition {
	if on {
		return v1.NodeCondition{Type: typ, Status: v1.ConditionTrue, Reason: reasonOn, Message: msgOn}
	}
	return v1.NodeCondition{Type: typ, Status: v1.ConditionFalse, Reason: reasonOff, Message: msgOff}
}

func setCondition(s *v1.NodeStatus, c v1.NodeCondition, now time.Time) {
	t := metav1.NewTime(now).Rfc3339Copy()
	c.LastHeartbeatTime, c.LastTransitionTime = t, t
	for i := range s.Conditions {
		if o := &s.Conditions[i]; o.Type == c.Type {
			if o.Status == c.Status {
				c.LastTransitionTime = o.LastTransitionTime
			}
			*o = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}

// Same compares two statuses apart from heartbeat times.
func Same(a, b v1.NodeStatus) bool {
	strip := func(s v1.NodeStatus) v1.NodeStatus {
		s = *s.DeepCopy()
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
		return s
	}
	return equality.Semantic.DeepEqual(strip(a), strip(b))
}

// Labels are those the kubelet itself keeps on its node.
func Labels(name, os, arch string) map[string]string {
	return map[string]string{
		v1.LabelHostname: name, v1.LabelOSStable: os, v1.LabelArchStable: arch,
		"beta.kubernetes.io/os": os, "beta.kubernetes.io/arch": arch,
	}
}

// Object is the Node to register.
func Object(name string, labels map[string]string, taints []v1.Taint, s v1.NodeStatus) *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels,
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
		Spec: v1.NodeSpec{Taints: taints}, Status: s,
	}
}

// Events are the reasons of events worth recording between two statuses.
func Events(old, now v1.NodeStatus) []string {
	reasons := map[v1.NodeConditionType][2]string{ // true, false
		v1.NodeMemoryPressure: {"NodeHasInsufficientMemory", "NodeHasSufficientMemory"},
		v1.NodeDiskPressure:   {"NodeHasDiskPressure", "NodeHasNoDiskPressure"},
		v1.NodePIDPressure:    {"NodeHasInsufficientPID", "NodeHasSufficientPID"},
		v1.NodeReady:          {"NodeReady", "NodeNotReady"},
	}
	var out []string
	for _, c := range now.Conditions {
		i := slices.IndexFunc(old.Conditions, func(o v1.NodeCondition) bool { return o.Type == c.Type })
		if r, ok := reasons[c.Type]; ok && (i < 0 || old.Conditions[i].Status != c.Status) {
			if c.Status == v1.ConditionTrue {
				out = append(out, r[0])
			} else {
				out = append(out, r[1])
			}
		}
	}
	return out
}

// EventMessage is the text of a node status event.
func EventMessage(name, reason string) string {
	return fmt.Sprintf("Node %s status is now: %s", name, reason)
}
