//go:build linux

package main

import (
	"strings"

	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
)

// setupRoot builds the container's file system and pivots into it.
//
// Every mount is made detached and attached by descriptor; every target is resolved
// with openat2(RESOLVE_IN_ROOT), so no symbolic link of an image leads outside
// (CVE-2021-30465, CVE-2025-31133, -52565, -52881).
func setupRoot(s *wire.Init) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return wrap("make mounts private", err)
	}
	stage, err := unix.Open(s.StageDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return wrap("open stage "+s.StageDir, err)
	}
	root := wire.FirstFD + s.RootFD
	if err := attach(root, stage); err != nil {
		return wrap("attach root", err)
	}
	for i := range s.Mounts {
		if err := mountOne(s, root, &s.Mounts[i]); err != nil {
			return wrap("mount "+quote(s.Mounts[i].Target), err)
		}
	}
	if err := makeDir(root, s.Cwd); err != nil && err != unix.EROFS {
		return wrap("mkdir "+s.Cwd, err)
	}
	for _, p := range s.ReadOnly {
		if err := readOnlyPath(root, p); err != nil {
			return wrap("make "+quote(p)+" read-only", err)
		}
	}
	if err := maskPaths(root, s.Masked); err != nil {
		return err
	}
	if s.Readonly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return wrap("make root read-only", err)
		}
	}
	return pivot(root)
}

func pivot(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return wrap("enter root", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return wrap("pivot_root", err)
	}
	// The old root is now stacked on ".": take it away.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return wrap("leave old root", err)
	}
	return wrap("chdir /", unix.Chdir("/"))
}

func attach(tree, target int) error {
	return unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// inRoot opens path below root as a descriptor that only names it.
func inRoot(root int, path string, flags uint64) (int, error) {
	path = strings.TrimLeft(path, "/")
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 32 { // EAGAIN: a rename raced with the walk
		fd, err := unix.Openat2(root, path, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// makeDir makes path and its parents below root.
func makeDir(root int, path string) error {
	fd, err := makeTarget(root, path, false)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// makeTarget opens path below root, making what is missing: folders, and as the last
// part a file if asked.
func makeTarget(root int, path string, file bool) (int, error) {
	if fd, err := inRoot(root, path, 0); err != unix.ENOENT {
		return fd, err
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	at := ""
	for i, part := range parts {
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			return -1, unix.EINVAL
		}
		parent := at
		at += "/" + part
		fd, err := inRoot(root, at, 0)
		if err == nil {
			unix.Close(fd)
			continue
		}
		if err != unix.ENOENT {
			return -1, err
		}
		if err := makePart(root, parent, part, file && i == len(parts)-1); err != nil {
			return -1, err
		}
	}
	return inRoot(root, path, 0)
}

func makePart(root int, parent, name string, file bool) error {
	dir, err := inRoot(root, parent, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if !file {
		err = unix.Mkdirat(dir, name, 0o755)
	} else {
		err = unix.Mknodat(dir, name, unix.S_IFREG|0o644, 0)
	}
	if err == unix.EEXIST {
		return nil // a dangling link: the caller's next look-up says so
	}
	return err
}

func mountOne(s *wire.Init, root int, m *wire.Mount) error {
	tree := wire.FirstFD + m.FD
	var err error
	switch m.Kind {
	case wire.MountFS, wire.MountDev:
		if tree, err = newFS(m); err != nil {
			return err
		}
		defer unix.Close(tree)
	}
	if m.Kind == wire.MountDev {
		if err := fillDev(tree, s.Devices); err != nil {
			return err
		}
	}
	target, err := makeTarget(root, m.Target, m.File)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(target, &fs); err != nil {
		return err
	}
	if fs.Type == unix.PROC_SUPER_MAGIC {
		return failure("refused: inside /proc")
	}
	return attach(tree, target)
}

// newFS makes a detached file system.
func newFS(m *wire.Mount) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wrap("fsopen "+m.Type, err)
	}
	defer unix.Close(fs)
	for _, o := range m.Options {
		k, v, has := strings.Cut(o, "=")
		if has {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, k)
		}
		if err != nil {
			return -1, wrap("option "+o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wrap("make "+m.Type, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.Attr))
}

// fillDev fills a detached tmpfs nobody else can reach yet.
func fillDev(dev int, devices []wire.Device) error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, d := range devices {
		name := strings.TrimPrefix(d.Path, "/dev/")
		if i := strings.LastIndexByte(name, '/'); i > 0 {
			if err := makeDir(dev, name[:i]); err != nil {
				return wrap("mkdir for device "+d.Path, err)
			}
		}
		if err := unix.Mknodat(dev, name, d.Mode, int(unix.Mkdev(d.Major, d.Minor))); err != nil && err != unix.EEXIST {
			return wrap("make device "+d.Path, err)
		}
		if d.UID != 0 || d.GID != 0 {
			if err := unix.Fchownat(dev, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return wrap("own device "+d.Path, err)
			}
		}
	}
	links := [...][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}}
	for _, l := range links {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil && err != unix.EEXIST {
			return wrap("link /dev/"+l[1], err)
		}
	}
	for _, d := range []string{"pts", "shm", "mqueue"} {
		unix.Mkdirat(dev, d, 0o755)
	}
	return nil
}

func readOnlyPath(root int, path string) error {
	target, err := inRoot(root, path, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tree, err := unix.OpenTree(target, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return err
	}
	return attach(tree, target)
}

// maskPaths hides files under a null device and folders under an empty tmpfs, both
// made here and verified by descriptor, never looked up in the container.
func maskPaths(root int, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	tmp, err := newFS(&wire.Mount{Type: "tmpfs", Options: []string{"size=4k", "mode=755"}, Attr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC})
	if err != nil {
		return wrap("mask", err)
	}
	defer unix.Close(tmp)
	old := unix.Umask(0)
	defer unix.Umask(old)
	if err := unix.Mknodat(tmp, "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return wrap("mask device", err)
	}
	if err := unix.Mkdirat(tmp, "dir", 0o555); err != nil {
		return wrap("mask folder", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tmp, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return wrap("mask", err)
	}
	for _, p := range paths {
		if err := maskOne(root, tmp, p); err != nil {
			return wrap("mask "+quote(p), err)
		}
	}
	return nil
}

func maskOne(root, tmp int, path string) error {
	target, err := inRoot(root, path, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	name := "null"
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		name = "dir"
	}
	tree, err := unix.OpenTree(tmp, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return attach(tree, target)
}
