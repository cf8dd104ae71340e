package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/skiff-project/skiff/runtime/sysctl"
	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxRecord is what a sandbox is on disk.
type sandboxRecord struct {
	ID        string
	Config    []byte // PodSandboxConfig, protobuf
	CreatedAt int64
	IPs       []netip.Addr
	Stopped   bool
}

// sandbox is a pod. Its record and state are guarded by Runtime.mu, its life cycle by
// op: start, stop and remove of one sandbox never overlap.
type sandbox struct {
	op  sync.Mutex
	rec sandboxRecord
	cfg *runtimeapi.PodSandboxConfig
	dir string // persistent
	run string // state
	mon *monitor
	// podInit is process 1 of the shared PID namespace; nil until a container needs it.
	podInit *procFD
	// pids lets one container at a time start it.
	pids sync.Mutex
	// stopping refuses container starts, from before the running ones are killed.
	stopping bool
}

func (s *sandbox) options() *runtimeapi.NamespaceOption {
	return s.cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (s *sandbox) hostNetwork() bool {
	return s.options().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func (s *sandbox) hostIPC() bool { return s.options().GetIpc() == runtimeapi.NamespaceMode_NODE }

func (s *sandbox) netns() string { return filepath.Join(s.run, "net") }

// network is what the Network is told.
func (s *sandbox) network() Sandbox {
	m := s.cfg.GetMetadata()
	n := Sandbox{ID: s.rec.ID, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), NetnsPath: s.netns(),
		Labels: s.cfg.GetLabels(), Annotations: s.cfg.GetAnnotations()}
	for _, p := range s.cfg.GetPortMappings() {
		if p.HostPort > 0 {
			n.PortMappings = append(n.PortMappings, PortMapping{Protocol: p.Protocol.String(), ContainerPort: p.ContainerPort,
				HostPort: p.HostPort, HostIP: p.HostIp})
		}
	}
	return n
}

func (r *Runtime) newSandbox(rec sandboxRecord, cfg *runtimeapi.PodSandboxConfig) *sandbox {
	return &sandbox{rec: rec, cfg: cfg, dir: r.path("sandboxes", rec.ID), run: filepath.Join(r.cfg.StateDir, rec.ID)}
}

// RunPodSandbox implements CRI.
func (r *Runtime) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, runtimeHandler string) (string, error) {
	if err := checkSandbox(config, runtimeHandler); err != nil {
		return "", err
	}
	raw, err := proto.Marshal(config)
	if err != nil {
		return "", err
	}
	s := r.newSandbox(sandboxRecord{ID: newID(), Config: raw, CreatedAt: r.now()}, proto.Clone(config).(*runtimeapi.PodSandboxConfig))
	s.op.Lock()
	defer s.op.Unlock()
	if err := r.startSandbox(ctx, s); err != nil {
		return "", errors.Join(err, r.undoSandbox(context.WithoutCancel(ctx), s))
	}
	r.mu.Lock()
	r.sandboxes[s.rec.ID] = s
	r.mu.Unlock()
	r.emit(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, s.rec.ID, s.rec.ID)
	r.emit(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, s.rec.ID, s.rec.ID)
	return s.rec.ID, nil
}

func checkSandbox(c *runtimeapi.PodSandboxConfig, handler string) error {
	if err := checkHandler(handler); err != nil {
		return err
	}
	m := c.GetMetadata()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return status.Error(codes.InvalidArgument, "sandbox config must include metadata with name, namespace and uid")
	}
	sec := c.GetLinux().GetSecurityContext()
	ns := sec.GetNamespaceOptions()
	if err := checkUserNamespace(ns.GetUsernsOptions()); err != nil {
		return err
	}
	if err := sysctl.Check(c.GetLinux().GetSysctls(), ns.GetNetwork() == runtimeapi.NamespaceMode_NODE, ns.GetIpc() == runtimeapi.NamespaceMode_NODE); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

func checkUserNamespace(u *runtimeapi.UserNamespace) error {
	if u != nil && u.Mode == runtimeapi.NamespaceMode_POD {
		return unsupported("user namespaces (set hostUsers: true)")
	}
	return nil
}

// startSandbox does what can be done at once side by side: the monitor needs nothing
// of the namespaces, nor the files of either.
func (r *Runtime) startSandbox(ctx context.Context, s *sandbox) error {
	for _, d := range []string{s.dir, s.run} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	// The record comes first: whatever exists of a sandbox can be found and undone.
	if err := s.save(); err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error {
		var err error
		s.mon, err = r.startMonitor(s)
		return err
	})
	g.Go(func() error {
		if err := s.writeFiles(); err != nil {
			return err
		}
		return s.mountShm()
	})
	g.Go(func() error {
		if err := r.sandboxNamespaces(s).make(s.run); err != nil {
			return err
		}
		if s.hostNetwork() {
			return nil
		}
		ips, err := r.cfg.Network.Setup(ctx, s.network())
		if err != nil {
			return fmt.Errorf("failed to setup network for sandbox %q: %w", s.rec.ID, err)
		}
		s.rec.IPs = ips
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return s.save()
}

func (r *Runtime) startMonitor(s *sandbox) (*monitor, error) {
	id := s.rec.ID
	m, err := startMonitor(r.monitorPath, s.run, func(p wire.Proc) { r.onExit(id, p) }, func() { r.onLost(id) })
	if err != nil {
		return nil, err
	}
	go func() {
		// Outside the agent's and the pod's group, so that neither's end takes it along.
		if err := r.moveMonitor(m.pid); err != nil {
			r.log.Warn("monitor stays in the agent's control group", "sandbox", id, "err", err)
		}
	}()
	return m, nil
}

func (r *Runtime) moveMonitor(pid int) error {
	g, err := r.tree.Open(r.cfg.CgroupParent + "/monitors")
	if err != nil {
		return err
	}
	if err := g.Create(); err != nil {
		return err
	}
	return g.Add(pid)
}

func (r *Runtime) sandboxNamespaces(s *sandbox) namespaces {
	n := namespaces{net: !s.hostNetwork(), ipc: !s.hostIPC(), uts: !s.hostNetwork(), hostname: s.cfg.GetHostname(), sysctls: map[string]string{}}
	if n.net {
		// As containerd: an unprivileged container may use low ports and ping in its own
		// network.
		n.sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
		n.sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range s.cfg.GetLinux().GetSysctls() {
		n.sysctls[k] = v
	}
	return n
}

func (s *sandbox) save() error {
	b, err := json.Marshal(&s.rec)
	if err != nil {
		return err
	}
	return replaceRecord(filepath.Join(s.dir, "record.json"), b)
}

// writeFiles makes the files every container of the pod sees unless its own mounts
// say otherwise.
func (s *sandbox) writeFiles() error {
	hostname := s.cfg.GetHostname()
	if hostname == "" {
		hostname, _ = os.Hostname()
	}
	resolv, err := resolvConf(s.cfg.GetDnsConfig())
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil || !s.hostNetwork() {
		hosts = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	for name, b := range map[string][]byte{"hostname": []byte(hostname + "\n"), "resolv.conf": resolv, "hosts": hosts} {
		if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// resolvConf is the pod's resolv.conf; without a DNS configuration, the node's.
func resolvConf(d *runtimeapi.DNSConfig) ([]byte, error) {
	if d == nil {
		b, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	for _, v := range append(append(append([]string{}, d.Servers...), d.Searches...), d.Options...) {
		if strings.ContainsAny(v, "\n\r\x00") {
			return nil, status.Error(codes.InvalidArgument, "DNS configuration holds a line break")
		}
	}
	var b strings.Builder
	if len(d.Searches) > 0 {
		b.WriteString("search " + strings.Join(d.Searches, " ") + "\n")
	}
	for _, v := range d.Servers {
		b.WriteString("nameserver " + v + "\n")
	}
	if len(d.Options) > 0 {
		b.WriteString("options " + strings.Join(d.Options, " ") + "\n")
	}
	return []byte(b.String()), nil
}

func (s *sandbox) shmPath() string {
	if s.hostIPC() {
		return "/dev/shm"
	}
	return filepath.Join(s.run, "shm")
}

func (s *sandbox) mountShm() error {
	if s.hostIPC() {
		return nil
	}
	if err := os.Mkdir(s.shmPath(), 0o700); err != nil {
		return err
	}
	err := unix.Mount("shm", s.shmPath(), "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=65536k")
	if err != nil {
		return fmt.Errorf("mount /dev/shm of the pod: %w", err)
	}
	return nil
}

// undoSandbox takes away whatever exists of a sandbox, at any stage. It reports what
// it could not, and can be called again.
func (r *Runtime) undoSandbox(ctx context.Context, s *sandbox) error {
	var errs []error
	r.endMonitor(s)
	errs = append(errs, r.teardown(ctx, s))
	if s.podInit != nil {
		closeFDs([]int{s.podInit.fd})
		s.podInit = nil
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(s.run), os.RemoveAll(s.dir))
}

// teardown ends the network and the namespaces. Idempotent.
func (r *Runtime) teardown(ctx context.Context, s *sandbox) error {
	if !s.hostNetwork() {
		if err := r.cfg.Network.Teardown(ctx, s.network()); err != nil {
			return fmt.Errorf("failed to destroy network for sandbox %q: %w", s.rec.ID, err)
		}
	}
	var errs []error
	for _, name := range []string{"net", "ipc", "uts", "shm"} {
		errs = append(errs, unpin(filepath.Join(s.run, name)))
	}
	return errors.Join(errs...)
}

func (r *Runtime) sandbox(id string) (*sandbox, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s, ok := byPrefix(r.sandboxes, id); ok {
		return s, nil
	}
	return nil, notFound("sandbox", id)
}

// StopPodSandbox implements CRI: it kills what still runs and frees the network.
// Idempotent; a sandbox that is not there counts as stopped.
func (r *Runtime) StopPodSandbox(ctx context.Context, id string) error {
	s, err := r.sandbox(id)
	if err != nil {
		return nil
	}
	s.op.Lock()
	defer s.op.Unlock()
	return r.stopSandbox(ctx, s)
}

func (r *Runtime) stopSandbox(ctx context.Context, s *sandbox) error {
	r.mu.Lock()
	s.stopping = true
	r.mu.Unlock()
	var g errgroup.Group
	for _, c := range r.containersOf(s.rec.ID) {
		g.Go(func() error {
			c.op.Lock()
			//lint:ignore SA2001 waits for a start that was not refused any more
			c.op.Unlock()
			return r.stopContainer(ctx, c, 0)
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("stop containers of sandbox %q: %w", s.rec.ID, err)
	}
	r.stopPodInit(s)
	r.mu.RLock()
	was := s.rec.Stopped
	r.mu.RUnlock()
	if err := r.teardown(ctx, s); err != nil {
		return err
	}
	r.endMonitor(s)
	if was {
		return nil
	}
	r.mu.Lock()
	s.rec.Stopped = true
	r.mu.Unlock()
	if err := s.save(); err != nil {
		return err
	}
	r.emit(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, s.rec.ID, s.rec.ID)
	return nil
}

// endMonitor ends the monitor of a sandbox without processes: what it knew is on disk,
// and a stopped sandbox starts nothing any more.
func (r *Runtime) endMonitor(s *sandbox) {
	r.mu.Lock()
	m := s.mon
	s.mon = nil
	r.mu.Unlock()
	if m != nil && m.alive() {
		m.shutdown()
	}
}

func (r *Runtime) containersOf(sandboxID string) []*container {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*container
	for _, c := range r.containers {
		if c.rec.SandboxID == sandboxID {
			out = append(out, c)
		}
	}
	return out
}

// RemovePodSandbox implements CRI. Idempotent.
func (r *Runtime) RemovePodSandbox(ctx context.Context, id string) error {
	s, err := r.sandbox(id)
	if err != nil {
		return nil
	}
	s.op.Lock()
	defer s.op.Unlock()
	if err := r.stopSandbox(ctx, s); err != nil {
		return err
	}
	for _, c := range r.containersOf(s.rec.ID) {
		if err := r.removeContainer(ctx, c); err != nil {
			return err
		}
	}
	if err := r.undoSandbox(ctx, s); err != nil {
		return err
	}
	if g, err := r.sandboxGroup(s); err == nil {
		if err := g.Destroy(); err != nil {
			r.log.Warn("control group of a removed sandbox stays", "err", err)
		}
	}
	r.mu.Lock()
	delete(r.sandboxes, s.rec.ID)
	r.mu.Unlock()
	r.emit(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, s.rec.ID, s.rec.ID)
	return nil
}

// status is the sandbox's CRI status; the caller holds Runtime.mu.
func (s *sandbox) status() *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{Id: s.rec.ID, Metadata: s.cfg.GetMetadata(), State: s.state(), CreatedAt: s.rec.CreatedAt,
		Labels: s.cfg.GetLabels(), Annotations: s.cfg.GetAnnotations(), Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: s.options()}}}
	if st.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		for i, ip := range s.rec.IPs {
			if i == 0 {
				st.Network.Ip = ip.String()
				continue
			}
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
		}
	}
	return st
}

func (s *sandbox) state() runtimeapi.PodSandboxState {
	if s.rec.Stopped {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimeapi.PodSandboxState_SANDBOX_READY
}

// PodSandboxStatus implements CRI.
func (r *Runtime) PodSandboxStatus(_ context.Context, id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	s, err := r.sandbox(id)
	if err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	resp := &runtimeapi.PodSandboxStatusResponse{Status: s.status(), ContainersStatuses: r.statusesOf(s.rec.ID), Timestamp: r.now()}
	if verbose {
		pid := 0
		if s.mon != nil {
			pid = s.mon.pid
		}
		resp.Info = map[string]string{"info": fmt.Sprintf(`{"monitorPid":%d,"netns":%q}`, pid, s.netns())}
	}
	return resp, nil
}

// ListPodSandbox implements CRI.
func (r *Runtime) ListPodSandbox(_ context.Context, f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*runtimeapi.PodSandbox
	for id, s := range r.sandboxes {
		if f.GetId() != "" && !strings.HasPrefix(id, f.GetId()) || f.GetState() != nil && f.GetState().State != s.state() ||
			!matches(s.cfg.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.PodSandbox{Id: id, Metadata: s.cfg.GetMetadata(), State: s.state(), CreatedAt: s.rec.CreatedAt,
			Labels: s.cfg.GetLabels(), Annotations: s.cfg.GetAnnotations()})
	}
	return out, nil
}

// UpdatePodSandboxResources implements CRI; the kubelet has set the pod's group itself.
func (r *Runtime) UpdatePodSandboxResources(_ context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if _, err := r.sandbox(req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// CheckpointPod implements CRI.
func (r *Runtime) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) error {
	return unsupported("checkpoints")
}

// RestorePod implements CRI.
func (r *Runtime) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, unsupported("checkpoints")
}
