package cri

import (
	"math"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubectl/pkg/util/qos"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// The kernel's bounds and defaults of CPU control.
const (
	minShares      = 2
	maxShares      = 262144
	sharesPerCPU   = 1024
	QuotaPeriod    = 100000 // microseconds
	minQuota       = 1000   // microseconds
	oomGuaranteed  = -997
	oomBestEffort  = 1000
	oomCritical    = -997
	systemCritical = 2000000000
)

// Shares converts milli-CPU to cgroup v1 cpu.shares.
func Shares(milli int64) int64 {
	if milli == 0 {
		return minShares
	}
	return min(max(milli*sharesPerCPU/1000, minShares), maxShares)
}

// Quota converts milli-CPU to a CFS quota in microseconds per QuotaPeriod; 0 means no limit.
func Quota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*QuotaPeriod/1000, minQuota)
}

// ContainerResources are the cgroup settings of one container. memoryBytes is the node's memory.
func ContainerResources(pod *v1.Pod, c *v1.Container, memoryBytes int64) *runtimeapi.LinuxContainerResources {
	limits := c.Resources.Limits
	cpuLimit, memLimit := limits.Cpu().MilliValue(), limits.Memory().Value()
	if pod.Spec.Resources != nil {
		if cpuLimit == 0 {
			cpuLimit = pod.Spec.Resources.Limits.Cpu().MilliValue()
		}
		if memLimit == 0 {
			memLimit = pod.Spec.Resources.Limits.Memory().Value()
		}
	}
	cpuRequest := cpuLimit
	if q, ok := c.Resources.Requests[v1.ResourceCPU]; ok {
		cpuRequest = q.MilliValue()
	}
	return &runtimeapi.LinuxContainerResources{
		CpuPeriod: QuotaPeriod, CpuQuota: Quota(cpuLimit), CpuShares: Shares(cpuRequest),
		MemoryLimitInBytes: memLimit, OomScoreAdj: OOMScore(pod, c, memoryBytes),
	}
}

// OOMScore is the oom_score_adj of a container: the less of its request a Burstable container
// could possibly exceed, the lower.
func OOMScore(pod *v1.Pod, c *v1.Container, memoryBytes int64) int64 {
	if p := pod.Spec.Priority; (p != nil && *p >= systemCritical) || podstate.IsStatic(pod) || podstate.IsMirror(pod) {
		return oomCritical
	}
	switch qos.GetPodQOS(pod) {
	case v1.PodQOSGuaranteed:
		return oomGuaranteed
	case v1.PodQOSBestEffort:
		return oomBestEffort
	}
	if memoryBytes <= 0 {
		return oomBestEffort - 1
	}
	request := c.Resources.Requests.Memory().Value()
	adj := 1000 - int64(math.Floor(1000*float64(request)/float64(memoryBytes)))
	if adj < 1000+oomGuaranteed {
		return 1000 + oomGuaranteed
	}
	if adj == oomBestEffort {
		return adj - 1
	}
	return adj
}
