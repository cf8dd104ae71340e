package runtime

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/skiff-project/skiff/runtime/cgroup"
	"github.com/skiff-project/skiff/runtime/image"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func number(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

func (r *Runtime) statsOf(c *container) *runtimeapi.ContainerStats {
	now := r.now()
	st := c.group.Stats()
	out := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: c.rec.ID, Metadata: c.cfg.GetMetadata(),
		Labels: c.cfg.GetLabels(), Annotations: c.cfg.GetAnnotations()}}
	out.Cpu, out.Memory = usage(now, st)
	out.Swap = &runtimeapi.SwapUsage{Timestamp: now, SwapUsageBytes: number(st.SwapUsage)}
	if b, n, err := image.DiskUsage(filepath.Join(c.dir, "upper")); err == nil {
		out.WritableLayer = &runtimeapi.FilesystemUsage{Timestamp: now, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.path("containers")},
			UsedBytes: number(b), InodesUsed: number(n)}
	}
	return out
}

func usage(now int64, st cgroup.Stats) (*runtimeapi.CpuUsage, *runtimeapi.MemoryUsage) {
	m := &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: number(st.WorkingSet), UsageBytes: number(st.MemoryUsage),
		RssBytes: number(st.RSS), PageFaults: number(st.PageFaults), MajorPageFaults: number(st.MajorPageFaults)}
	if st.MemoryLimit > 0 {
		m.AvailableBytes = number(st.MemoryLimit - min(st.WorkingSet, st.MemoryLimit))
	}
	return &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: number(st.CPUUsage)}, m
}

// ContainerStats implements CRI.
func (r *Runtime) ContainerStats(_ context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := r.container(id)
	if err != nil {
		return nil, err
	}
	return r.statsOf(c), nil
}

// ListContainerStats implements CRI: running containers only.
func (r *Runtime) ListContainerStats(_ context.Context, f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	var out []*runtimeapi.ContainerStats
	for _, c := range r.runningContainers() {
		if f.GetId() != "" && !strings.HasPrefix(c.rec.ID, f.GetId()) || f.GetPodSandboxId() != "" && !strings.HasPrefix(c.rec.SandboxID, f.GetPodSandboxId()) ||
			!matches(c.cfg.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		out = append(out, r.statsOf(c))
	}
	return out, nil
}

func (r *Runtime) runningContainers() []*container {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*container
	for _, c := range r.containers {
		if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out = append(out, c)
		}
	}
	return out
}

// PodSandboxStats implements CRI.
func (r *Runtime) PodSandboxStats(_ context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	s, err := r.sandbox(id)
	if err != nil {
		return nil, err
	}
	return r.podStats(s), nil
}

// ListPodSandboxStats implements CRI: ready sandboxes only.
func (r *Runtime) ListPodSandboxStats(_ context.Context, f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	var list []*sandbox
	r.mu.RLock()
	for id, s := range r.sandboxes {
		if !s.rec.Stopped && strings.HasPrefix(id, f.GetId()) && matches(s.cfg.GetLabels(), f.GetLabelSelector()) {
			list = append(list, s)
		}
	}
	r.mu.RUnlock()
	var out []*runtimeapi.PodSandboxStats
	for _, s := range list {
		out = append(out, r.podStats(s))
	}
	return out, nil
}

// podStats: the pod's own group if the kubelet made one, else the sum.
func (r *Runtime) podStats(s *sandbox) *runtimeapi.PodSandboxStats {
	now := r.now()
	l := &runtimeapi.LinuxPodSandboxStats{}
	var sum cgroup.Stats
	for _, c := range r.runningContainers() {
		if c.rec.SandboxID != s.rec.ID {
			continue
		}
		l.Containers = append(l.Containers, r.statsOf(c))
		st := c.group.Stats()
		sum.CPUUsage += st.CPUUsage
		sum.MemoryUsage += st.MemoryUsage
		sum.WorkingSet += st.WorkingSet
		sum.RSS += st.RSS
		sum.Pids += st.Pids
	}
	if parent := s.cfg.GetLinux().GetCgroupParent(); parent != "" {
		if g, err := r.tree.Open(parent); err == nil {
			pids := sum.Pids
			sum = g.Stats()
			sum.Pids = max(sum.Pids, pids)
		}
	}
	l.Cpu, l.Memory = usage(now, sum)
	l.Process = &runtimeapi.ProcessUsage{Timestamp: now, ProcessCount: number(sum.Pids)}
	if !s.hostNetwork() {
		l.Network = networkUsage(s.netns(), now)
	}
	return &runtimeapi.PodSandboxStats{Linux: l, Attributes: &runtimeapi.PodSandboxAttributes{Id: s.rec.ID, Metadata: s.cfg.GetMetadata(),
		Labels: s.cfg.GetLabels(), Annotations: s.cfg.GetAnnotations()}}
}

// networkUsage reads /proc/net/dev as the pod sees it.
func networkUsage(netns string, now int64) *runtimeapi.NetworkUsage {
	var b []byte
	err := onThread(func() error {
		fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		b, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil
	}
	u := &runtimeapi.NetworkUsage{Timestamp: now}
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		name, rest, ok := strings.Cut(string(line), ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || len(f) < 11 || name == "lo" {
			continue
		}
		at := func(i int) *runtimeapi.UInt64Value {
			n, _ := strconv.ParseUint(f[i], 10, 64)
			return number(n)
		}
		i := &runtimeapi.NetworkInterfaceUsage{Name: name, RxBytes: at(0), RxErrors: at(2), TxBytes: at(8), TxErrors: at(10)}
		if name == "eth0" {
			u.DefaultInterface = i
			continue
		}
		u.Interfaces = append(u.Interfaces, i)
	}
	return u
}

// ListMetricDescriptors implements CRI: metrics are the kubelet's, from the stats.
func (r *Runtime) ListMetricDescriptors(context.Context) ([]*runtimeapi.MetricDescriptor, error) {
	return nil, nil
}

// ListPodSandboxMetrics implements CRI.
func (r *Runtime) ListPodSandboxMetrics(context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	return nil, nil
}
