package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/runtime/cgroup"
	"github.com/skiff-project/skiff/runtime/wire"
)

// launch collects what one helper process is given.
type launch struct {
	spec   wire.Init
	fds    []int // in the order the specification's indices mean
	owned  []int // of those, the ones to close here
	newPID bool
	pidNS  int // PID namespace to start in, or -1
}

func newLaunch() *launch { return &launch{pidNS: -1} }

func (l *launch) close() {
	closeFDs(l.owned)
	closeFDs([]int{l.pidNS})
}

// add passes a descriptor on and takes it over.
func (l *launch) add(fd int) int {
	l.owned = append(l.owned, fd)
	return l.lend(fd)
}

// lend passes a descriptor on that stays its owner's.
func (l *launch) lend(fd int) int {
	l.fds = append(l.fds, fd)
	return len(l.fds) - 1
}

func (l *launch) joinFile(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	l.spec.Joins = append(l.spec.Joins, wire.Join{FD: l.add(fd), Flags: flag})
	return nil
}

// enterGroup makes the control group, limits it, and passes its files.
func (r *Runtime) enterGroup(g *cgroup.Group, l *launch) error {
	files, err := g.ProcsFiles()
	if err != nil {
		return err
	}
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		f.Close()
		if err != nil {
			return err
		}
		l.spec.Procs = append(l.spec.Procs, l.add(fd))
	}
	return nil
}

func (r *Runtime) makeGroup(c *container) error {
	if err := c.group.Create(); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	if err := c.group.Set(r.resources(c.cfg.GetLinux().GetResources())); err != nil {
		return fmt.Errorf("set resources: %w", err)
	}
	if c.security().GetPrivileged() {
		return nil
	}
	rules := cgroup.DefaultDevices()
	for _, d := range c.cfg.GetDevices() {
		dev, err := hostDevice(d.HostPath)
		if err != nil {
			return err
		}
		kind := byte('c')
		if dev.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = 'b'
		}
		rules = append(rules, cgroup.Device{Type: kind, Major: int64(dev.Major), Minor: int64(dev.Minor), Access: access(d.Permissions)})
	}
	if err := c.group.AllowDevices(rules); err != nil {
		return fmt.Errorf("device rules: %w", err)
	}
	return nil
}

func access(p string) string {
	if p == "" {
		return "rwm"
	}
	return p
}

func (r *Runtime) resources(res *runtimeapi.LinuxContainerResources) cgroup.Resources {
	out := cgroup.Resources{}
	if res == nil {
		return out
	}
	out.CPUShares, out.CPUQuota, out.CPUPeriod = res.CpuShares, res.CpuQuota, res.CpuPeriod
	out.MemoryLimit, out.MemorySwap = res.MemoryLimitInBytes, res.MemorySwapLimitInBytes
	out.CpusetCpus, out.CpusetMems, out.Unified = res.CpusetCpus, res.CpusetMems, res.Unified
	if r.tree.V2 && out.MemoryLimit > 0 && out.MemorySwap == 0 {
		out.MemorySwap = out.MemoryLimit // no swap unless asked for
	}
	for _, h := range res.HugepageLimits {
		if out.Hugepages == nil {
			out.Hugepages = map[string]uint64{}
		}
		out.Hugepages[h.PageSize] = h.Limit
	}
	return out
}

// fillLaunch prepares everything a new container's first process needs.
func (r *Runtime) fillLaunch(s *sandbox, c *container, l *launch) error {
	var err error
	if l.spec, err = r.initOf(c.rec.Process); err != nil {
		return err
	}
	l.spec.Mode, l.spec.TTY, l.spec.NullIn = wire.ModeStart, c.cfg.GetTty(), !c.cfg.GetStdin()
	sec := c.security()
	if err := checkSecurity(sec); err != nil {
		return err
	}
	if err := r.makeGroup(c); err != nil {
		return err
	}
	if err := r.enterGroup(c.group, l); err != nil {
		return err
	}
	if err := r.joinNamespaces(s, c, l); err != nil {
		return err
	}
	if c.root < 0 { // created by an earlier agent
		if err := os.RemoveAll(filepath.Join(c.dir, "work")); err != nil {
			return err
		}
		if c.root, err = r.images.RootFS(c.rec.Layers, c.dir); err != nil {
			return err
		}
	}
	l.spec.RootFD = l.lend(c.root)
	l.spec.StageDir = c.dir
	l.spec.Readonly = sec.GetReadonlyRootfs()
	l.spec.Masked, l.spec.ReadOnly = sec.GetMaskedPaths(), sec.GetReadonlyPaths()
	if sec.GetPrivileged() {
		l.spec.Masked, l.spec.ReadOnly = nil, nil
	}
	if l.spec.Devices, err = devices(c); err != nil {
		return err
	}
	return r.mounts(s, c, l)
}

// checkSecurity refuses what is not understood, rather than running without it.
func checkSecurity(sec *runtimeapi.LinuxContainerSecurityContext) error {
	if err := checkUserNamespace(sec.GetNamespaceOptions().GetUsernsOptions()); err != nil {
		return err
	}
	if a := sec.GetApparmor(); a != nil && a.ProfileType == runtimeapi.SecurityProfile_Localhost && !sec.GetPrivileged() {
		return unsupported("AppArmor profiles of type Localhost")
	}
	return nil
}

func (r *Runtime) joinNamespaces(s *sandbox, c *container, l *launch) error {
	if !s.hostNetwork() {
		if err := l.joinFile(filepath.Join(s.run, "net"), unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := l.joinFile(filepath.Join(s.run, "uts"), unix.CLONE_NEWUTS); err != nil {
			return err
		}
	}
	if !s.hostIPC() {
		if err := l.joinFile(filepath.Join(s.run, "ipc"), unix.CLONE_NEWIPC); err != nil {
			return err
		}
	}
	l.spec.CgroupNS = !c.security().GetPrivileged() && r.tree.V2
	var err error
	switch c.pidMode() {
	case runtimeapi.NamespaceMode_CONTAINER:
		l.newPID = true
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_POD:
		if s.options().GetPid() == runtimeapi.NamespaceMode_NODE {
			return nil
		}
		l.pidNS, err = r.podPIDNamespace(s)
	case runtimeapi.NamespaceMode_TARGET:
		l.pidNS, err = r.targetPIDNamespace(s, c.security().GetNamespaceOptions().GetTargetId())
	}
	return err
}

func (r *Runtime) targetPIDNamespace(s *sandbox, id string) (int, error) {
	t, err := r.container(id)
	if err != nil {
		return -1, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if t.rec.SandboxID != s.rec.ID {
		return -1, status.Errorf(codes.InvalidArgument, "target container %q is in another pod", id)
	}
	if t.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return -1, status.Errorf(codes.FailedPrecondition, "target container %q is not running", id)
	}
	return openPIDNamespace(t.pid)
}

func openPIDNamespace(pid int) (int, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open PID namespace of process %d: %w", pid, err)
	}
	return fd, nil
}

// podInitID is the shared process 1's name at its monitor.
const podInitID = "podinit"

// podPIDNamespace starts the pod's process 1 when the first container wants to share.
func (r *Runtime) podPIDNamespace(s *sandbox) (int, error) {
	s.pids.Lock()
	defer s.pids.Unlock()
	if s.podInit != nil {
		if fd, err := openPIDNamespace(s.podInit.PID); err == nil {
			return fd, nil
		}
	}
	g, err := r.sandboxGroup(s)
	if err != nil {
		return -1, err
	}
	if err := g.Create(); err != nil {
		return -1, err
	}
	l := newLaunch()
	defer l.close()
	l.spec = wire.Init{Mode: wire.ModePodInit, RootFD: -1}
	if err := r.enterGroup(g, l); err != nil {
		return -1, err
	}
	reply, err := r.spawn(s, &wire.Spawn{ID: podInitID, Exec: true, NewPID: true}, l, nil)
	if err != nil {
		return -1, fmt.Errorf("start the pod's shared process 1: %w", err)
	}
	p := &procFD{Proc: wire.Proc{ID: podInitID, PID: reply.reply.PID}, fd: reply.fds[0]}
	r.mu.Lock()
	s.podInit = p
	r.mu.Unlock()
	return openPIDNamespace(p.PID)
}

func (r *Runtime) stopPodInit(s *sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.podInit == nil {
		return
	}
	unix.PidfdSendSignal(s.podInit.fd, unix.SIGKILL, nil, 0)
	closeFDs([]int{s.podInit.fd})
	s.podInit = nil
}

// devices lists the nodes of the container's /dev.
func devices(c *container) ([]wire.Device, error) {
	var out []wire.Device
	for name, num := range map[string][2]uint32{"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0}} {
		out = append(out, wire.Device{Path: "/dev/" + name, Mode: unix.S_IFCHR | 0o666, Major: num[0], Minor: num[1]})
	}
	if c.security().GetPrivileged() {
		out = append(out, hostDevices()...)
	}
	for _, d := range c.cfg.GetDevices() {
		dev, err := hostDevice(d.HostPath)
		if err != nil {
			return nil, err
		}
		dev.Path = filepath.Clean(d.ContainerPath)
		if !strings.HasPrefix(dev.Path, "/dev/") {
			return nil, status.Errorf(codes.InvalidArgument, "device path %q must be below /dev", d.ContainerPath)
		}
		out = append(out, dev)
	}
	slices.SortFunc(out, func(a, b wire.Device) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(out, func(a, b wire.Device) bool { return a.Path == b.Path }), nil
}

func hostDevice(path string) (wire.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return wire.Device{}, fmt.Errorf("device %s: %w", path, err)
	}
	if m := st.Mode & unix.S_IFMT; m != unix.S_IFCHR && m != unix.S_IFBLK {
		return wire.Device{}, status.Errorf(codes.InvalidArgument, "%s is not a device", path)
	}
	return wire.Device{Path: path, Mode: st.Mode, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), UID: st.Uid, GID: st.Gid}, nil
}

// maxHostDevices bounds what a privileged container is given of the host's /dev.
const maxHostDevices = 4096

func hostDevices() []wire.Device {
	var out []wire.Device
	filepath.WalkDir("/dev", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() {
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type()&os.ModeDevice == 0 || path == "/dev/console" || path == "/dev/ptmx" || len(out) >= maxHostDevices {
			return nil
		}
		if dev, err := hostDevice(path); err == nil {
			out = append(out, dev)
		}
		return nil
	})
	return out
}
