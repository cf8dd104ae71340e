package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NODEV
)

// mounts lists what is mounted below the root, parents before children. The pod's own
// mounts replace the default at the same place.
func (r *Runtime) mounts(s *sandbox, c *container, l *launch) error {
	own := map[string]bool{}
	for _, m := range c.cfg.GetMounts() {
		own[filepath.Clean(m.ContainerPath)] = true
	}
	privileged := c.security().GetPrivileged()
	var list []wire.Mount
	fs := func(kind int, typ, target string, attr uint64, options ...string) {
		if !own[target] {
			list = append(list, wire.Mount{Kind: kind, Type: typ, Target: target, Attr: attr, Options: options, FD: -1})
		}
	}
	sysAttr := uint64(safe)
	if !privileged {
		sysAttr |= unix.MOUNT_ATTR_RDONLY
	}
	fs(wire.MountFS, "proc", "/proc", safe)
	fs(wire.MountFS, "sysfs", "/sys", sysAttr)
	fs(wire.MountDev, "tmpfs", "/dev", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_STRICTATIME, "mode=755", "size=65536k")
	fs(wire.MountFS, "devpts", "/dev/pts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
	fs(wire.MountFS, "mqueue", "/dev/mqueue", safe)
	if !own["/sys/fs/cgroup"] && !own["/sys"] {
		m, err := r.cgroupMounts(c, l, sysAttr)
		if err != nil {
			return err
		}
		list = append(list, m...)
	}
	for target, host := range map[string]string{"/dev/shm": s.shmPath(), "/etc/hosts": filepath.Join(s.dir, "hosts"),
		"/etc/hostname": filepath.Join(s.dir, "hostname"), "/etc/resolv.conf": filepath.Join(s.dir, "resolv.conf")} {
		if own[target] {
			continue
		}
		m, err := bind(l, bindMount{host: host, target: target, readonly: target != "/dev/shm" && c.security().GetReadonlyRootfs()})
		if err != nil {
			return err
		}
		list = append(list, m)
	}
	for _, m := range c.cfg.GetMounts() {
		w, err := r.criMount(l, m)
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.HostPath, m.ContainerPath, err)
		}
		list = append(list, w)
	}
	slices.SortStableFunc(list, func(a, b wire.Mount) int { return depth(a.Target) - depth(b.Target) })
	l.spec.Mounts = list
	return nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// cgroupMounts shows the container its own control groups, read-only unless
// privileged.
func (r *Runtime) cgroupMounts(c *container, l *launch, attr uint64) ([]wire.Mount, error) {
	if r.tree.V2 {
		return []wire.Mount{{Kind: wire.MountFS, Type: "cgroup2", Target: "/sys/fs/cgroup", Attr: attr, FD: -1}}, nil
	}
	list := []wire.Mount{{Kind: wire.MountFS, Type: "tmpfs", Target: "/sys/fs/cgroup", Attr: safe, Options: []string{"mode=755", "size=64k"}, FD: -1}}
	for controller, path := range c.group.Paths() {
		if controller == "" {
			continue // v2 beside v1 holds no limits: seen inside, programs take it for v2 alone
		}
		rel, err := filepath.Rel("/sys/fs/cgroup", path)
		if err != nil {
			return nil, err
		}
		name, _, _ := strings.Cut(rel, "/")
		m, err := bind(l, bindMount{host: path, target: "/sys/fs/cgroup/" + name, readonly: !c.security().GetPrivileged(), attr: safe})
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// criMount is one mount the pod asks for.
func (r *Runtime) criMount(l *launch, m *runtimeapi.Mount) (wire.Mount, error) {
	switch {
	case !filepath.IsAbs(m.ContainerPath):
		return wire.Mount{}, status.Error(codes.InvalidArgument, "container path must be absolute")
	case len(m.UidMappings) > 0 || len(m.GidMappings) > 0:
		return wire.Mount{}, unsupported("mounts with id mappings")
	case len(m.MountOptions) > 0:
		return wire.Mount{}, unsupported("mount options")
	case m.RecursiveReadOnly && !m.Readonly:
		return wire.Mount{}, status.Error(codes.InvalidArgument, "recursive_read_only needs readonly")
	case m.RecursiveReadOnly && m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return wire.Mount{}, status.Error(codes.InvalidArgument, "recursive_read_only needs private propagation")
	}
	if m.GetImage().GetImage() != "" {
		return r.imageMount(l, m)
	}
	b := bindMount{host: m.HostPath, target: filepath.Clean(m.ContainerPath), readonly: m.Readonly, recursive: m.RecursiveReadOnly, makeDir: true}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		b.propagation = unix.MS_SLAVE
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		b.propagation = unix.MS_SHARED
	}
	return bind(l, b)
}

// imageMount shows an image's content as a read-only volume.
func (r *Runtime) imageMount(l *launch, m *runtimeapi.Mount) (wire.Mount, error) {
	img, err := r.images.Resolve(m.Image.Image)
	if err != nil {
		return wire.Mount{}, status.Error(codes.NotFound, err.Error())
	}
	fd, err := r.images.RootFS(img.Layers, "")
	if err != nil {
		return wire.Mount{}, err
	}
	if m.ImageSubPath != "" {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
		sub, err := unix.Openat2(fd, m.ImageSubPath, &how)
		if err == nil {
			var tree int
			tree, err = unix.OpenTree(sub, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
			unix.Close(sub)
			if err == nil {
				unix.Close(fd)
				fd = tree
			}
		}
		if err != nil {
			unix.Close(fd)
			return wire.Mount{}, fmt.Errorf("image sub-path %q: %w", m.ImageSubPath, err)
		}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return wire.Mount{}, err
	}
	return wire.Mount{Kind: wire.MountBind, FD: l.add(fd), Target: filepath.Clean(m.ContainerPath)}, nil
}

type bindMount struct {
	host, target string
	readonly     bool
	recursive    bool // readonly below too
	propagation  uint64
	attr         uint64
	makeDir      bool // make a missing host path, as containerd does
}

// bind opens a host path once and clones what was opened: what is checked is what is
// mounted (CVE-2021-25741).
func bind(l *launch, b bindMount) (wire.Mount, error) {
	src, err := unix.Open(b.host, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) && b.makeDir {
		if err = os.MkdirAll(b.host, 0o755); err == nil {
			src, err = unix.Open(b.host, unix.O_PATH|unix.O_CLOEXEC, 0)
		}
	}
	if err != nil {
		return wire.Mount{}, fmt.Errorf("failed to open %q: %w", b.host, err)
	}
	defer unix.Close(src)
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return wire.Mount{}, err
	}
	tree, err := unix.OpenTree(src, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return wire.Mount{}, fmt.Errorf("clone mount of %q: %w", b.host, err)
	}
	if err := setAttributes(tree, b); err != nil {
		unix.Close(tree)
		return wire.Mount{}, fmt.Errorf("mount %q: %w", b.host, err)
	}
	return wire.Mount{Kind: wire.MountBind, FD: l.add(tree), Target: b.target, File: st.Mode&unix.S_IFMT != unix.S_IFDIR}, nil
}

func setAttributes(tree int, b bindMount) error {
	prop := b.propagation
	if prop == 0 {
		prop = unix.MS_PRIVATE
	}
	if prop != unix.MS_SHARED { // the clone of a shared mount is its peer already
		attr := unix.MountAttr{Propagation: prop}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return err
		}
	} else if err := checkShared(b.host); err != nil {
		return err
	}
	set := b.attr
	if b.readonly {
		set |= unix.MOUNT_ATTR_RDONLY
	}
	if set == 0 {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if b.recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(tree, "", flags, &unix.MountAttr{Attr_set: set})
}

// checkShared: mounts made in the container reach the host only through a shared one.
func checkShared(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	best, shared := "", false
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 7 {
			continue
		}
		at := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
		if at != "/" && real != at && !strings.HasPrefix(real, at+"/") || len(at) < len(best) {
			continue
		}
		best, shared = at, strings.Contains(strings.SplitN(line, " - ", 2)[0], " shared:")
	}
	if !shared {
		return fmt.Errorf("path %q is mounted on %q but it is not a shared mount: run mount --make-rshared %s", path, best, best)
	}
	return nil
}
