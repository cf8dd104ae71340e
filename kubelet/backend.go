package kubelet

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/skiff-project/skiff/kubelet/cri"
	"github.com/skiff-project/skiff/kubelet/logs"
	"github.com/skiff-project/skiff/kubelet/node"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/server"
	"github.com/skiff-project/skiff/kubelet/status"
)

// newServer binds the node API's port and returns what serves it.
func (k *Kubelet) newServer() (func(context.Context) error, error) {
	if k.cfg.ServerAddr == "-" {
		return func(ctx context.Context) error { <-ctx.Done(); return nil }, nil
	}
	s, err := server.New(server.Config{Addr: k.cfg.ServerAddr, NodeName: k.cfg.NodeName, Version: k.cfg.Version, Flags: k.cfg.Flags, Metrics: k.cfg.Metrics, Cert: k.cfg.ServerCert,
		ClientCA: k.cfg.ClientCA, Client: k.cfg.Client, Backend: backend{k}, Certificates: k.certs.States, Log: k.cfg.Log, Clock: k.cfg.Clock})
	if err != nil {
		return nil, err
	}
	l, err := s.Listen()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return s.Serve(ctx, l) }, nil
}

// backend is the kubelet as the node API sees it.
type backend struct{ k *Kubelet }

func (b backend) Streams() server.Streams { return b.k.cfg.Runtime }

// Healthy says whether this process works; whether the node does is its Ready condition.
func (b backend) Healthy() error { return b.k.ctx.Err() }

func (b backend) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, error) {
	return b.k.execSync(ctx, id, cmd, timeout)
}

func (b backend) Pods() []*v1.Pod {
	var out []*v1.Pod
	for _, w := range b.k.allWorkers() {
		p := w.current().DeepCopy()
		p.Status = w.status()
		out = append(out, p)
	}
	return out
}

// find looks a pod up by name; a mirror's UID finds its static pod.
func (b backend) find(namespace, name string, uid types.UID) (*worker, error) {
	var found *worker
	for _, w := range b.k.allWorkers() {
		p := w.current()
		if p.Namespace != namespace || p.Name != name {
			continue
		}
		if m := b.k.mirror(namespace, name); uid != "" && uid != p.UID && (m == nil || m.UID != uid || !podstate.IsStatic(p)) {
			continue
		}
		if _, active := w.active(); found == nil || active {
			found = w
		}
	}
	if found == nil {
		return nil, &server.Error{Code: http.StatusNotFound, Err: fmt.Errorf("pod %q does not exist", name)}
	}
	return found, nil
}

func (b backend) Container(ctx context.Context, namespace, name string, uid types.UID, container string) (string, error) {
	w, err := b.find(namespace, name, uid)
	if err != nil {
		return "", err
	}
	rt := w.runtime()
	c := rt.Latest(container)
	if c == nil || c.State != podstate.Running { // perhaps the news has not arrived yet
		if rt, err = b.k.inspector.Pod(ctx, w.uid); err != nil {
			return "", err
		}
		c = rt.Latest(container)
	}
	if c == nil {
		return "", &server.Error{Code: http.StatusNotFound, Err: fmt.Errorf("container not found (%q)", container)}
	}
	return c.ID, nil
}

func (b backend) Sandbox(_ context.Context, namespace, name string, uid types.UID) (string, error) {
	w, err := b.find(namespace, name, uid)
	if err != nil {
		return "", err
	}
	for _, s := range w.runtime().Sandboxes {
		if s.Ready {
			return s.ID, nil
		}
	}
	return "", &server.Error{Code: http.StatusNotFound, Err: fmt.Errorf("pod not found (%q)", name)}
}

func (b backend) LogFile(namespace, name, container string, previous bool) (string, logs.Alive, error) {
	w, err := b.find(namespace, name, "")
	if err != nil {
		return "", nil, err
	}
	if podstate.FindContainer(w.current(), container) == nil {
		return "", nil, &server.Error{Code: http.StatusNotFound, Err: fmt.Errorf("container %q not found in pod %q", container, name)}
	}
	st := w.status()
	id, err := logContainer(&st, name, container, previous)
	if err != nil {
		return "", nil, &server.Error{Code: http.StatusBadRequest, Err: err}
	}
	for _, c := range w.runtime().Containers {
		if c.ID == id && c.LogPath != "" {
			return c.LogPath, func() bool { return running(w, id) }, nil
		}
	}
	return "", nil, &server.Error{Code: http.StatusBadRequest, Err: fmt.Errorf("unable to retrieve container logs for %s", status.ContainerID(b.k.runtimeName, id))}
}

func running(w *worker, id string) bool {
	for _, c := range w.runtime().Containers {
		if c.ID == id {
			return c.State == podstate.Running || c.State == podstate.Created
		}
	}
	return false
}

// logContainer picks the container whose log is meant; the errors are upstream's.
func logContainer(st *v1.PodStatus, pod, container string, previous bool) (string, error) {
	var cs *v1.ContainerStatus
	for _, list := range [][]v1.ContainerStatus{st.ContainerStatuses, st.InitContainerStatuses, st.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container && cs == nil {
				cs = &list[i]
			}
		}
	}
	if cs == nil {
		return "", fmt.Errorf("container %q in pod %q is not available", container, pod)
	}
	last, id := cs.LastTerminationState.Terminated, ""
	where := fmt.Sprintf("container %q in pod %q", container, pod)
	switch {
	case previous:
		if last == nil || last.ContainerID == "" {
			return "", fmt.Errorf("previous terminated %s not found", where)
		}
		id = last.ContainerID
	case cs.State.Running != nil:
		id = cs.ContainerID
	case cs.State.Terminated != nil && cs.State.Terminated.ContainerID != "":
		id = cs.State.Terminated.ContainerID
	case last != nil && last.ContainerID != "":
		id = last.ContainerID
	case cs.State.Terminated != nil || last != nil:
		return "", fmt.Errorf("%s is terminated", where)
	case cs.State.Waiting != nil:
		switch cs.State.Waiting.Reason {
		case "ErrImagePull":
			return "", fmt.Errorf("%s is waiting to start: image can't be pulled", where)
		case "ImagePullBackOff":
			return "", fmt.Errorf("%s is waiting to start: trying and failing to pull image", where)
		}
		return "", fmt.Errorf("%s is waiting to start: %v", where, cs.State.Waiting.Reason)
	default:
		return "", fmt.Errorf("%s is waiting to start - no logs yet", where)
	}
	return status.RawID(id), nil
}

// Summary gathers what the runtime and the machine report of cpu, memory and disk.
func (b backend) Summary(ctx context.Context, only bool) (*statsapi.Summary, error) {
	k := b.k
	facts, err := node.Read(k.cfg.RootDir)
	if err != nil {
		return nil, err
	}
	now := metav1.NewTime(k.cfg.Clock.Now())
	avail, total := uint64(facts.MemoryFree), uint64(facts.MemoryBytes)
	used := total - avail
	cpu := nodeCPU()
	sum := &statsapi.Summary{Node: statsapi.NodeStats{NodeName: k.cfg.NodeName,
		CPU:    &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &cpu},
		Memory: &statsapi.MemoryStats{Time: now, AvailableBytes: &avail, UsageBytes: &used, WorkingSetBytes: &used}}}
	if !only {
		sum.Node.Fs = fsStats(now, facts)
	}
	list, err := k.cfg.Runtime.ListContainerStats(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("the runtime's container stats: %w", err)
	}
	pods := map[string]*statsapi.PodStats{}
	started := map[string]metav1.Time{} // by the pod's UID and the container's name
	for _, w := range k.allWorkers() {
		p := w.current()
		st := w.status()
		ps := &statsapi.PodStats{PodRef: statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}}
		if st.StartTime != nil {
			ps.StartTime = *st.StartTime
		}
		pods[string(p.UID)] = ps
		for i := range st.ContainerStatuses {
			if c := &st.ContainerStatuses[i]; c.State.Running != nil {
				started[string(p.UID)+c.Name] = c.State.Running.StartedAt
			}
		}
	}
	for _, c := range list {
		l := c.GetAttributes().GetLabels()
		if p := pods[l[cri.LabelPodUID]]; p != nil {
			name := l[cri.LabelContainerName]
			addContainerStats(p, c, name, started[p.PodRef.UID+name])
		}
	}
	for _, p := range pods {
		sum.Pods = append(sum.Pods, *p)
	}
	return sum, nil
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

func addContainerStats(p *statsapi.PodStats, c *runtimeapi.ContainerStats, name string, started metav1.Time) {
	cs := statsapi.ContainerStats{Name: name, StartTime: started}
	at := func(ns int64) metav1.Time { return metav1.NewTime(time.Unix(0, ns)) }
	if x := c.GetCpu(); x != nil {
		cs.CPU = &statsapi.CPUStats{Time: at(x.Timestamp), UsageCoreNanoSeconds: value(x.UsageCoreNanoSeconds), UsageNanoCores: value(x.UsageNanoCores)}
		p.CPU = addCPU(p.CPU, cs.CPU)
	}
	if x := c.GetMemory(); x != nil {
		cs.Memory = &statsapi.MemoryStats{Time: at(x.Timestamp), WorkingSetBytes: value(x.WorkingSetBytes), UsageBytes: value(x.UsageBytes),
			RSSBytes: value(x.RssBytes), AvailableBytes: value(x.AvailableBytes), PageFaults: value(x.PageFaults), MajorPageFaults: value(x.MajorPageFaults)}
		p.Memory = addMemory(p.Memory, cs.Memory)
	}
	if x := c.GetWritableLayer(); x != nil {
		cs.Rootfs = &statsapi.FsStats{Time: at(x.Timestamp), UsedBytes: value(x.UsedBytes), InodesUsed: value(x.InodesUsed)}
	}
	p.Containers = append(p.Containers, cs)
}

func plus(a, b *uint64) *uint64 {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	s := *a + *b
	return &s
}

func addCPU(a, b *statsapi.CPUStats) *statsapi.CPUStats {
	if a == nil {
		a = &statsapi.CPUStats{}
	}
	return &statsapi.CPUStats{Time: b.Time, UsageCoreNanoSeconds: plus(a.UsageCoreNanoSeconds, b.UsageCoreNanoSeconds), UsageNanoCores: plus(a.UsageNanoCores, b.UsageNanoCores)}
}

func addMemory(a, b *statsapi.MemoryStats) *statsapi.MemoryStats {
	if a == nil {
		a = &statsapi.MemoryStats{}
	}
	return &statsapi.MemoryStats{Time: b.Time, WorkingSetBytes: plus(a.WorkingSetBytes, b.WorkingSetBytes),
		UsageBytes: plus(a.UsageBytes, b.UsageBytes), RSSBytes: plus(a.RSSBytes, b.RSSBytes)}
}

func fsStats(now metav1.Time, f node.Facts) *statsapi.FsStats {
	free, total, used := uint64(f.DiskFree), uint64(f.DiskBytes), uint64(f.DiskBytes-f.DiskFree)
	inodes, inodesFree, inodesUsed := uint64(f.InodesTotal), uint64(f.InodesFree), uint64(f.InodesTotal-f.InodesFree)
	return &statsapi.FsStats{Time: now, AvailableBytes: &free, CapacityBytes: &total, UsedBytes: &used,
		Inodes: &inodes, InodesFree: &inodesFree, InodesUsed: &inodesUsed}
}

// nodeCPU is the machine's cpu time used since boot, in nanoseconds.
func nodeCPU() uint64 {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks uint64
	for i, f := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // name, idle, iowait, guest (counted in user)
			continue
		}
		n, _ := strconv.ParseUint(f, 10, 64)
		ticks += n
	}
	return ticks * uint64(time.Second) / 100
}
