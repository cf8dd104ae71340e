package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reconcile compares disk, monitors and processes, and takes over what an earlier
// agent left: containers keep their ids, processes and logs; what ended meanwhile is
// found in the monitors' records.
func (r *Runtime) reconcile() error {
	if err := r.loadSandboxes(); err != nil {
		return err
	}
	if err := r.loadContainers(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, s := range r.sandboxes {
		wg.Go(func() { r.adopt(s) })
	}
	wg.Wait()
	r.sweepState()
	return r.images.Collect()
}

// readRecord reads one record; a folder without a readable one is litter of a crash
// between two steps, and removed.
func readRecord(dir string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func (r *Runtime) loadSandboxes() error {
	entries, err := os.ReadDir(r.path("sandboxes"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		var rec sandboxRecord
		cfg := &runtimeapi.PodSandboxConfig{}
		dir := r.path("sandboxes", e.Name())
		err := readRecord(dir, &rec)
		if err == nil {
			err = proto.Unmarshal(rec.Config, cfg)
		}
		if err != nil || rec.ID != e.Name() {
			r.log.Warn("removing an unreadable sandbox", "sandbox", e.Name(), "err", err)
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		r.sandboxes[rec.ID] = r.newSandbox(rec, cfg)
	}
	return nil
}

func (r *Runtime) loadContainers() error {
	entries, err := os.ReadDir(r.path("containers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		var rec containerRecord
		cfg := &runtimeapi.ContainerConfig{}
		dir := r.path("containers", e.Name())
		err := readRecord(dir, &rec)
		if err == nil {
			err = proto.Unmarshal(rec.Config, cfg)
		}
		if err != nil || rec.ID != e.Name() || r.sandboxes[rec.SandboxID] == nil {
			r.log.Warn("removing an unreadable container", "container", e.Name(), "err", err)
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		c, err := r.newContainer(rec, cfg)
		if err != nil {
			return err
		}
		if rec.Done {
			c.state = runtimeapi.ContainerState_CONTAINER_EXITED
			close(c.exited)
		}
		r.containers[rec.ID] = c
	}
	return nil
}

// adopt takes one pod over.
func (r *Runtime) adopt(s *sandbox) {
	live := map[string]procFD{}
	id := s.rec.ID
	m, err := adoptMonitor(s.run, func(p wire.Proc) { r.onExit(id, p) }, func() { r.onLost(id) })
	if err == nil {
		reply, lerr := m.call(wire.KindList, nil)
		if lerr != nil {
			m.close()
			err = lerr
		} else {
			m.pid = reply.reply.PID // the socket's own credentials are those of the agent that listened
			for _, p := range reply.procs {
				live[p.ID] = p
			}
		}
	}
	r.mu.Lock()
	if err == nil {
		s.mon = m
	}
	if !s.hostNetwork() && !pinned(s.netns()) && !s.rec.Stopped {
		// A reboot, or somebody unmounted it: the kubelet makes a new sandbox.
		s.rec.Stopped = true
		r.log.Info("sandbox did not survive", "sandbox", id)
	}
	if p, ok := live[podInitID]; ok {
		s.podInit = &p
		delete(live, podInitID)
	}
	r.mu.Unlock()
	for _, c := range r.containersOf(id) {
		if p, ok := live[c.rec.ID]; ok {
			r.adoptContainer(c, p)
			delete(live, c.rec.ID)
			continue
		}
		r.adoptOrphan(c)
	}
	for _, p := range live { // execs of the earlier agent: nobody listens to them
		if !p.Exec && p.fd >= 0 { // a container whose record is lost
			unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0)
		}
		closeFDs([]int{p.fd})
	}
	if s.rec.Stopped && !r.anyRunning(id) {
		r.endMonitor(s) // the earlier agent did not come to it
	}
}

func (r *Runtime) anyRunning(sandboxID string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, c := range r.containers {
		if c.rec.SandboxID == sandboxID && c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			return true
		}
	}
	return false
}

// adoptContainer takes over what the monitor knows.
func (r *Runtime) adoptContainer(c *container, p procFD) {
	if c.rec.Done {
		closeFDs([]int{p.fd})
		return
	}
	r.mu.Lock()
	c.state, c.pid, c.startTime, c.pidfd = runtimeapi.ContainerState_CONTAINER_RUNNING, p.PID, p.StartTime, p.fd
	c.rec.StartedAt = p.StartedAt
	r.mu.Unlock()
	if p.Exited {
		r.ended(c, p.Proc, "", "")
	}
}

// adoptOrphan judges a container no monitor knows, by the records on disk.
func (r *Runtime) adoptOrphan(c *container) {
	if c.rec.Done {
		return
	}
	var p wire.Proc
	if b, err := os.ReadFile(filepath.Join(c.dir, wire.ExitRecord)); err == nil && wire.Decode(b, &p) == nil {
		r.ended(c, p, "", "")
		return
	}
	b, err := os.ReadFile(filepath.Join(c.dir, wire.StartRecord))
	if err != nil || wire.Decode(b, &p) != nil {
		return // never started: still CREATED
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil || startTime(p.PID) != p.StartTime {
		if err == nil {
			unix.Close(fd)
		}
		p.Code, p.ExitedAt = exitUnknown, r.now()
		r.ended(c, p, reasonUnknown, "the container ended while nobody watched")
		return
	}
	r.mu.Lock()
	c.state, c.pid, c.startTime, c.pidfd = runtimeapi.ContainerState_CONTAINER_RUNNING, p.PID, p.StartTime, fd
	c.rec.StartedAt = p.StartedAt
	r.mu.Unlock()
	r.watchOrphan(c, p)
}

// onLost is told that a monitor's connection ended. If it died, its containers go on
// without a parent, and are watched from here.
func (r *Runtime) onLost(sandboxID string) {
	if r.closed.Load() {
		return
	}
	for _, c := range r.containersOf(sandboxID) {
		r.mu.RLock()
		p := wire.Proc{ID: c.rec.ID, PID: c.pid, StartTime: c.startTime, StartedAt: c.rec.StartedAt}
		orphan := c.state == runtimeapi.ContainerState_CONTAINER_RUNNING && c.pidfd >= 0
		r.mu.RUnlock()
		if orphan {
			r.log.Warn("a pod's monitor died: its containers lose their output", "sandbox", sandboxID, "container", c.rec.ID)
			r.watchOrphan(c, p)
		}
	}
}

// watchOrphan waits for a container whose monitor died. Only a parent learns an exit
// code, or who holds a pidfd on Linux 6.15 and later.
func (r *Runtime) watchOrphan(c *container, p wire.Proc) {
	r.mu.RLock()
	fd := -1
	if c.pidfd >= 0 {
		fd, _ = unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 3)
	}
	r.mu.RUnlock()
	if fd < 0 {
		return
	}
	go func() {
		defer unix.Close(fd)
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		p.Code, p.ExitedAt = exitUnknown, r.now()
		reason, message := reasonUnknown, "the pod's monitor had died: exit code unknown"
		if code, ok := pidfdExitCode(fd); ok {
			p.Code, reason, message = code, "", ""
		}
		c.op.Lock()
		defer c.op.Unlock()
		r.ended(c, p, reason, message)
	}()
}

func startTime(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// sweepState removes state folders without a sandbox.
func (r *Runtime) sweepState() {
	entries, err := os.ReadDir(r.cfg.StateDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if r.sandboxes[e.Name()] != nil || len(e.Name()) != 64 {
			continue
		}
		dir := filepath.Join(r.cfg.StateDir, e.Name())
		if m, err := adoptMonitor(dir, func(wire.Proc) {}, func() {}); err == nil {
			m.shutdown()
		}
		for _, name := range []string{"net", "ipc", "uts", "shm"} {
			unpin(filepath.Join(dir, name))
		}
		if err := os.RemoveAll(dir); err != nil {
			r.log.Warn("state of a forgotten sandbox stays", "dir", dir, "err", err)
		}
	}
}

// StopAll stops every sandbox, killing its containers; nothing is removed.
func (r *Runtime) StopAll(ctx context.Context) error {
	return r.forAll(func(id string) error { return r.StopPodSandbox(ctx, id) })
}

// Purge ends every container and monitor and removes every mount, namespace and
// control group below this runtime's root, then its folders. The runtime is closed
// afterwards. It goes on past errors and returns them all.
func (r *Runtime) Purge(ctx context.Context) error {
	err := r.forAll(func(id string) error { return r.RemovePodSandbox(ctx, id) })
	r.Close(ctx)
	var errs []error
	if g, gerr := r.tree.Open(r.cfg.CgroupParent); gerr == nil {
		errs = append(errs, g.Destroy())
	}
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, os.RemoveAll(r.cfg.StateDir), os.RemoveAll(r.cfg.Root))...)
}

// purgers bounds how many sandboxes are taken down at once.
const purgers = 8

func (r *Runtime) forAll(f func(id string) error) error {
	r.mu.RLock()
	ids := make([]string, 0, len(r.sandboxes))
	for id := range r.sandboxes {
		ids = append(ids, id)
	}
	r.mu.RUnlock()
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, purgers)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := f(id); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("sandbox %s: %w", id, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
