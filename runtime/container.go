package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skiff-project/skiff/runtime/cgroup"
	"github.com/skiff-project/skiff/runtime/image"
	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerRecord is what a container is on disk.
type containerRecord struct {
	ID        string
	SandboxID string
	Config    []byte // ContainerConfig, protobuf
	ImageID   string
	ImageRef  string
	Layers    []string
	CreatedAt int64
	LogPath   string // absolute; empty: no log
	Cgroup    string
	Process   processSpec
	// How it ended, once it has; before, the monitor's records tell.
	Done       bool
	StartedAt  int64
	FinishedAt int64
	ExitCode   int32
	Reason     string
	Message    string
}

// container is one container. Its record and state are guarded by Runtime.mu, its
// life cycle by op.
type container struct {
	op    sync.Mutex
	rec   containerRecord
	cfg   *runtimeapi.ContainerConfig
	dir   string
	group *cgroup.Group
	// root is the detached root mount between create and start, else -1.
	root int

	state     runtimeapi.ContainerState
	pid       int
	startTime uint64
	pidfd     int
	exited    chan struct{} // closed when state becomes EXITED
}

// Reasons of a container's end, as containerd names them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOM        = "OOMKilled"
	reasonUnknown    = "Unknown"
	reasonStartError = "StartError"

	exitUnknown    = 255
	exitStartError = 128
)

func (r *Runtime) newContainer(rec containerRecord, cfg *runtimeapi.ContainerConfig) (*container, error) {
	g, err := r.tree.Open(rec.Cgroup)
	if err != nil {
		return nil, err
	}
	return &container{rec: rec, cfg: cfg, dir: r.path("containers", rec.ID), group: g, root: -1, pidfd: -1,
		state: runtimeapi.ContainerState_CONTAINER_CREATED, exited: make(chan struct{})}, nil
}

func (c *container) closeFDs() {
	closeFDs([]int{c.root, c.pidfd})
	c.root, c.pidfd = -1, -1
}

func (c *container) security() *runtimeapi.LinuxContainerSecurityContext {
	return c.cfg.GetLinux().GetSecurityContext()
}

// pidMode: without options a container gets its own PID namespace.
func (c *container) pidMode() runtimeapi.NamespaceMode {
	if ns := c.security().GetNamespaceOptions(); ns != nil {
		return ns.GetPid()
	}
	return runtimeapi.NamespaceMode_CONTAINER
}

func (r *Runtime) container(id string) (*container, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c, ok := byPrefix(r.containers, id); ok {
		return c, nil
	}
	return nil, notFound("container", id)
}

// CreateContainer implements CRI.
func (r *Runtime) CreateContainer(_ context.Context, sandboxID string, config *runtimeapi.ContainerConfig, sandboxConfig *runtimeapi.PodSandboxConfig) (string, error) {
	s, err := r.sandbox(sandboxID)
	if err != nil {
		return "", err
	}
	if config.GetMetadata().GetName() == "" {
		return "", status.Error(codes.InvalidArgument, "container config must include metadata with a name")
	}
	s.op.Lock()
	defer s.op.Unlock()
	if s.rec.Stopped {
		return "", status.Errorf(codes.FailedPrecondition, "sandbox %q is not running", sandboxID)
	}
	img, err := r.images.Resolve(config.GetImage().GetImage())
	if err != nil {
		return "", status.Errorf(codes.NotFound, "failed to resolve image %q: %v", config.GetImage().GetImage(), err)
	}
	raw, err := proto.Marshal(config)
	if err != nil {
		return "", err
	}
	rec := containerRecord{ID: newID(), SandboxID: s.rec.ID, Config: raw, ImageID: img.ID, ImageRef: imageRef(img),
		Layers: img.Layers, CreatedAt: r.now()}
	rec.Cgroup = r.cgroupOf(s, rec.ID)
	if rec.LogPath, err = logPath(sandboxConfig, s.cfg, config); err != nil {
		return "", err
	}
	c, err := r.newContainer(rec, proto.Clone(config).(*runtimeapi.ContainerConfig))
	if err != nil {
		return "", err
	}
	if err := r.prepare(s, c, img); err != nil {
		c.closeFDs()
		return "", errors.Join(err, os.RemoveAll(c.dir))
	}
	r.mu.Lock()
	r.containers[rec.ID] = c
	r.mu.Unlock()
	r.emit(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, rec.ID, s.rec.ID)
	return rec.ID, nil
}

func imageRef(img image.Image) string {
	if len(img.Digests) > 0 {
		return img.Digests[0]
	}
	return img.ID
}

func (r *Runtime) cgroupOf(s *sandbox, id string) string {
	parent := s.cfg.GetLinux().GetCgroupParent()
	if parent == "" {
		parent = r.cfg.CgroupParent
	}
	return parent + "/" + id
}

// sandboxGroup holds the shared PID namespace's first process.
func (r *Runtime) sandboxGroup(s *sandbox) (*cgroup.Group, error) {
	return r.tree.Open(r.cgroupOf(s, s.rec.ID))
}

// logPath joins the pod's log folder and the container's relative path, which must
// stay below it.
func logPath(given, own *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (string, error) {
	dir := given.GetLogDirectory()
	if dir == "" {
		dir = own.GetLogDirectory()
	}
	if dir == "" || c.GetLogPath() == "" {
		return "", nil
	}
	if !filepath.IsLocal(c.GetLogPath()) {
		return "", status.Errorf(codes.InvalidArgument, "log path %q leaves the pod's log directory", c.GetLogPath())
	}
	return filepath.Join(dir, c.GetLogPath()), nil
}

// prepare mounts the root, resolves the command and the user in it, and writes the
// record.
func (r *Runtime) prepare(s *sandbox, c *container, img image.Image) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	conf, err := r.images.ReadConfig(img.ID)
	if err != nil {
		return err
	}
	if c.root, err = r.images.RootFS(c.rec.Layers, c.dir); err != nil {
		return err
	}
	if c.rec.Process, err = resolveProcess(s, c, conf); err != nil {
		return err
	}
	if c.rec.Process.Seccomp, err = r.seccompProfile(c.security()); err != nil {
		return err
	}
	if _, err := r.seccompFor(c.rec.Process); err != nil {
		return err
	}
	return c.save()
}

func (c *container) save() error {
	b, err := json.Marshal(&c.rec)
	if err != nil {
		return err
	}
	return replaceRecord(filepath.Join(c.dir, "record.json"), b)
}

// StartContainer implements CRI. A container that cannot start ends with exit code 128
// and reason StartError, and the error is returned too.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	c, err := r.container(id)
	if err != nil {
		return err
	}
	s, err := r.sandbox(c.rec.SandboxID)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return status.Errorf(codes.FailedPrecondition, "container %q is in %s state", c.rec.ID, c.state)
	}
	r.mu.RLock()
	stopped := s.rec.Stopped || s.stopping
	r.mu.RUnlock()
	if stopped {
		return status.Errorf(codes.FailedPrecondition, "sandbox container %q is not running", s.rec.ID)
	}
	if err := r.launch(ctx, s, c); err != nil {
		err = fmt.Errorf("failed to start container %q: %w", c.rec.ID, err)
		r.ended(c, wire.Proc{Code: exitStartError, ExitedAt: r.now()}, reasonStartError, err.Error())
		return err
	}
	r.emit(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, c.rec.ID, c.rec.SandboxID)
	return nil
}

func (r *Runtime) launch(_ context.Context, s *sandbox, c *container) error {
	if c.rec.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.rec.LogPath), 0o755); err != nil {
			return err
		}
	}
	l := newLaunch()
	defer l.close()
	if err := r.fillLaunch(s, c, l); err != nil {
		return err
	}
	r.mu.Lock()
	c.state = runtimeapi.ContainerState_CONTAINER_RUNNING // before the exit event can come
	c.rec.StartedAt = r.now()
	r.mu.Unlock()
	spawn := wire.Spawn{ID: c.rec.ID, Dir: c.dir, LogPath: c.rec.LogPath, TTY: c.cfg.GetTty(), Stdin: c.cfg.GetStdin(),
		NewNS: true, NewPID: l.newPID, JoinPID: l.pidNS >= 0}
	reply, err := r.spawn(s, &spawn, l, nil)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c.pid, c.startTime = reply.reply.PID, reply.reply.StartTime
	if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.rec.StartedAt = reply.reply.StartedAt
	}
	if len(reply.fds) > 0 {
		c.pidfd = reply.fds[0]
	}
	closeFDs([]int{c.root})
	c.root = -1
	return nil
}

// spawn sends a process to the sandbox's monitor, starting a new one if the old died.
func (r *Runtime) spawn(s *sandbox, spawn *wire.Spawn, l *launch, stdio []int) (*pendingCall, error) {
	m, err := r.monitorOf(s)
	if err != nil {
		return nil, err
	}
	blob, err := memfile("skiff-init", wire.Encode(&l.spec))
	if err != nil {
		return nil, err
	}
	defer unix.Close(blob)
	fds := []int{r.helper, blob}
	if l.pidNS >= 0 {
		fds = append(fds, l.pidNS)
	}
	fds = append(append(fds, stdio...), l.fds...)
	if len(fds) > 253 {
		return nil, fmt.Errorf("container needs %d descriptors for its mounts, at most 253 can be passed: use fewer mounts", len(fds))
	}
	return m.call(wire.KindSpawn, spawn, fds...)
}

func (r *Runtime) monitorOf(s *sandbox) (*monitor, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.mon != nil && s.mon.alive() {
		return s.mon, nil
	}
	m, err := r.startMonitor(s)
	if err != nil {
		return nil, err
	}
	s.mon = m
	return m, nil
}

// memfile is an unnamed file holding b.
func memfile(name string, b []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		b = b[n:]
	}
	return fd, nil
}

// onExit is a monitor's word that a process ended. It comes on the monitor's reading
// goroutine, so it hands long work on.
func (r *Runtime) onExit(sandboxID string, p wire.Proc) {
	r.mu.Lock()
	c, e := r.containers[p.ID], r.execs[p.ID]
	if e != nil {
		delete(r.execs, p.ID)
	}
	r.mu.Unlock()
	switch {
	case e != nil:
		e.code = p.Code
		close(e.done)
	case c != nil:
		go func() {
			c.op.Lock() // after StartContainer has said that it started
			defer c.op.Unlock()
			r.ended(c, p, "", "")
		}()
	}
}

// ended records a container's end, once. reason is empty for an ordinary one.
func (r *Runtime) ended(c *container, p wire.Proc, reason, message string) {
	if c.pidMode() != runtimeapi.NamespaceMode_CONTAINER {
		// No PID namespace died with it: its descendants may live on.
		if err := c.group.Kill(); err != nil {
			r.log.Warn("kill what a container left behind", "container", c.rec.ID, "err", err)
		}
	}
	if reason == "" {
		reason = reasonError
		if p.Code == 0 {
			reason = reasonCompleted
		}
		if c.group.OOMKills() > 0 {
			reason = reasonOOM
		}
	}
	// Before the end is seen: the pod's group may then shrink, below what this one had.
	if err := c.group.Destroy(); err != nil {
		r.log.Warn("a dead container's control group stays until the container is removed", "container", c.rec.ID, "err", err)
	}
	r.mu.Lock()
	if c.state == runtimeapi.ContainerState_CONTAINER_EXITED {
		r.mu.Unlock()
		return
	}
	c.state = runtimeapi.ContainerState_CONTAINER_EXITED
	c.rec.Done, c.rec.FinishedAt, c.rec.ExitCode = true, p.ExitedAt, int32(p.Code)
	c.rec.Reason, c.rec.Message = reason, message
	if p.StartedAt != 0 {
		c.rec.StartedAt = p.StartedAt
	}
	c.closeFDs()
	b, _ := json.Marshal(&c.rec)
	r.mu.Unlock()
	defer close(c.exited) // last: who waited finds the record written and the event sent
	if err := replaceFile(filepath.Join(c.dir, "record.json"), b, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.log.Warn("record a container's end", "container", c.rec.ID, "err", err)
	}
	r.emit(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, c.rec.ID, c.rec.SandboxID)
}

// killPatience bounds the wait for a killed container, which only the kernel can
// delay (a process in uninterruptible sleep).
const killPatience = 30 * time.Second

// StopContainer implements CRI: the stop signal, timeout seconds, then KILL.
// Idempotent; a container that is not there counts as stopped.
func (r *Runtime) StopContainer(ctx context.Context, id string, timeout int64) error {
	c, err := r.container(id)
	if err != nil {
		return nil
	}
	return r.stopContainer(ctx, c, timeout)
}

func (r *Runtime) stopContainer(ctx context.Context, c *container, timeout int64) error {
	r.mu.RLock()
	state := c.state
	sig := unix.Signal(c.rec.Process.StopSignal)
	r.mu.RUnlock()
	switch state {
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		<-c.exited
		return nil
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
	default:
		return nil
	}
	if timeout > 0 {
		if err := r.signal(c, sig); err != nil {
			return err
		}
		if r.waitTimeout(ctx, c.exited, time.Duration(timeout)*time.Second) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := r.signal(c, unix.SIGKILL); err != nil {
		return err
	}
	if c.pidMode() != runtimeapi.NamespaceMode_CONTAINER {
		c.group.Kill()
	}
	if !r.waitTimeout(ctx, c.exited, killPatience) {
		return fmt.Errorf("container %q does not die: process %d may hang in the kernel", c.rec.ID, c.pid)
	}
	return nil
}

// signal goes through the pidfd: a process number may have been given to another.
func (r *Runtime) signal(c *container, sig unix.Signal) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c.pidfd < 0 {
		return nil
	}
	if err := unix.PidfdSendSignal(c.pidfd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal container %q: %w", c.rec.ID, err)
	}
	return nil
}

// RemoveContainer implements CRI: a running one is killed first. Idempotent.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	c, err := r.container(id)
	if err != nil {
		return nil
	}
	return r.removeContainer(ctx, c)
}

func (r *Runtime) removeContainer(ctx context.Context, c *container) error {
	if err := r.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r.mu.RLock()
	known := r.containers[c.rec.ID] == c
	var m *monitor
	if s := r.sandboxes[c.rec.SandboxID]; s != nil {
		m = s.mon
	}
	r.mu.RUnlock()
	if !known {
		return nil
	}
	if m != nil && m.alive() {
		m.call(wire.KindForget, &wire.Target{ID: c.rec.ID}) // it may not know it: never started
	}
	if err := c.group.Destroy(); err != nil {
		return err
	}
	r.mu.Lock()
	c.closeFDs()
	r.mu.Unlock()
	if err := r.discard(c.dir); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.containers, c.rec.ID)
	r.mu.Unlock()
	r.emit(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, c.rec.ID, c.rec.SandboxID)
	return nil
}

// discard removes a container's folder; the record goes first, so that a crash leaves
// litter, which New sweeps, and not half a container.
func (r *Runtime) discard(dir string) error {
	if err := os.Remove(filepath.Join(dir, "record.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}

// status is the container's CRI status; the caller holds Runtime.mu.
func (c *container) status() *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{Id: c.rec.ID, Metadata: c.cfg.GetMetadata(), State: c.state, CreatedAt: c.rec.CreatedAt,
		Image: c.cfg.GetImage(), ImageRef: c.rec.ImageRef, ImageId: c.rec.ImageID, Labels: c.cfg.GetLabels(),
		Annotations: c.cfg.GetAnnotations(), Mounts: c.cfg.GetMounts(), LogPath: c.rec.LogPath, User: c.rec.Process.user(),
		StopSignal: stopSignalName(c.rec.Process.StopSignal),
		Resources:  &runtimeapi.ContainerResources{Linux: c.cfg.GetLinux().GetResources()}}
	if c.state != runtimeapi.ContainerState_CONTAINER_CREATED {
		st.StartedAt = c.rec.StartedAt
	}
	if c.state == runtimeapi.ContainerState_CONTAINER_EXITED {
		st.FinishedAt, st.ExitCode, st.Reason, st.Message = c.rec.FinishedAt, c.rec.ExitCode, c.rec.Reason, c.rec.Message
	}
	return st
}

// statusesOf is every container's status of a sandbox; the caller holds Runtime.mu.
func (r *Runtime) statusesOf(sandboxID string) []*runtimeapi.ContainerStatus {
	var out []*runtimeapi.ContainerStatus
	for _, c := range r.containers {
		if c.rec.SandboxID == sandboxID {
			out = append(out, c.status())
		}
	}
	return out
}

// ContainerStatus implements CRI.
func (r *Runtime) ContainerStatus(_ context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := r.container(id)
	if err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	resp := &runtimeapi.ContainerStatusResponse{Status: c.status()}
	if verbose {
		resp.Info = map[string]string{"info": fmt.Sprintf(`{"pid":%d,"sandboxID":%q,"cgroup":%q}`, c.pid, c.rec.SandboxID, c.rec.Cgroup)}
	}
	return resp, nil
}

// ListContainers implements CRI.
func (r *Runtime) ListContainers(_ context.Context, f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*runtimeapi.Container
	for id, c := range r.containers {
		if f.GetId() != "" && !strings.HasPrefix(id, f.GetId()) || f.GetState() != nil && f.GetState().State != c.state ||
			f.GetPodSandboxId() != "" && !strings.HasPrefix(c.rec.SandboxID, f.GetPodSandboxId()) ||
			!matches(c.cfg.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.Container{Id: id, PodSandboxId: c.rec.SandboxID, Metadata: c.cfg.GetMetadata(),
			Image: c.cfg.GetImage(), ImageRef: c.rec.ImageRef, ImageId: c.rec.ImageID, State: c.state, CreatedAt: c.rec.CreatedAt,
			Labels: c.cfg.GetLabels(), Annotations: c.cfg.GetAnnotations()})
	}
	return out, nil
}

// UpdateContainerResources implements CRI.
func (r *Runtime) UpdateContainerResources(_ context.Context, id string, res *runtimeapi.ContainerResources) error {
	c, err := r.container(id)
	if err != nil {
		return err
	}
	if res.GetLinux() == nil {
		return nil
	}
	c.op.Lock()
	defer c.op.Unlock()
	r.mu.RLock()
	state := c.state
	r.mu.RUnlock()
	if state == runtimeapi.ContainerState_CONTAINER_EXITED {
		return status.Errorf(codes.FailedPrecondition, "container %q has exited", id)
	}
	if state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := c.group.Set(r.resources(res.Linux)); err != nil {
			return fmt.Errorf("update resources of container %q: %w", id, err)
		}
	}
	cfg := withResources(c.cfg, res.Linux)
	raw, err := proto.Marshal(cfg)
	if err != nil {
		return err
	}
	r.mu.Lock()
	c.cfg, c.rec.Config = cfg, raw
	b, err := json.Marshal(&c.rec)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(c.dir, "record.json"), b, 0o600)
}

// withResources returns a copy with the non-zero fields of res taken over: readers of
// the old value may still hold it.
func withResources(cfg *runtimeapi.ContainerConfig, res *runtimeapi.LinuxContainerResources) *runtimeapi.ContainerConfig {
	out := proto.Clone(cfg).(*runtimeapi.ContainerConfig)
	if out.Linux == nil {
		out.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if out.Linux.Resources == nil {
		out.Linux.Resources = &runtimeapi.LinuxContainerResources{}
	}
	proto.Merge(out.Linux.Resources, res)
	return out
}

// ReopenContainerLog implements CRI.
func (r *Runtime) ReopenContainerLog(_ context.Context, id string) error {
	c, err := r.container(id)
	if err != nil {
		return err
	}
	s, err := r.sandbox(c.rec.SandboxID)
	if err != nil {
		return err
	}
	r.mu.RLock()
	running, m := c.state == runtimeapi.ContainerState_CONTAINER_RUNNING, s.mon
	r.mu.RUnlock()
	if !running {
		return status.Errorf(codes.FailedPrecondition, "container %q is not running", id)
	}
	if m == nil {
		return errMonitorGone
	}
	_, err = m.call(wire.KindReopenLog, &wire.Target{ID: c.rec.ID})
	return err
}

// CheckpointContainer implements CRI.
func (r *Runtime) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) error {
	return unsupported("checkpoints")
}
