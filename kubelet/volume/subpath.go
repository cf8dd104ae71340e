package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bindSubPath makes target a bind mount of root/sub and returns target. The path is resolved by
// openat2 with RESOLVE_BENEATH, so no link in it can lead out of root, and what is mounted is the
// file descriptor that was checked, not the name (CVE-2017-1002101, CVE-2021-25741). A missing
// folder is made with the volume root's mode.
func bindSubPath(root, sub, target string) (string, error) {
	rootFD, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open volume root %s: %w", root, err)
	}
	defer unix.Close(rootFD)
	fd, err := openBeneath(rootFD, sub)
	if errors.Is(err, unix.ENOENT) {
		if err = makeBeneath(rootFD, sub); err == nil {
			fd, err = openBeneath(rootFD, sub)
		}
	}
	if err != nil {
		return "", fmt.Errorf("resolve subPath %q in %s: %w", sub, root, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if same, err := mountedHere(target, &st); err != nil || same {
		return target, err
	}
	if err := prepareTarget(target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind subPath %q: %w", sub, err)
	}
	return target, nil
}

func openBeneath(rootFD int, sub string) (int, error) {
	return unix.Openat2(rootFD, sub, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
}

// makeBeneath makes the missing folders of sub, one by one, each relative to its checked parent.
func makeBeneath(rootFD int, sub string) error {
	var st unix.Stat_t
	if err := unix.Fstat(rootFD, &st); err != nil {
		return err
	}
	done := ""
	for _, part := range strings.Split(filepath.Clean(sub), "/") {
		parent := rootFD
		if done != "" {
			fd, err := openBeneath(rootFD, done)
			if err != nil {
				return err
			}
			parent = fd
		}
		err := unix.Mkdirat(parent, part, 0o700)
		if err == nil {
			err = chmodAt(parent, part, st.Mode&0o7777, int(st.Gid))
		}
		if parent != rootFD {
			unix.Close(parent)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		done = filepath.Join(done, part)
	}
	return nil
}

// chmodAt sets the mode and group of a folder just made, through a descriptor that followed no link.
func chmodAt(parent int, name string, mode uint32, gid int) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, -1, gid); err != nil {
		return err
	}
	return unix.Fchmod(fd, mode)
}

// mountedHere says whether target already shows the wanted file; a stale mount is taken away.
func mountedHere(target string, want *unix.Stat_t) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(target, &st); err != nil {
		return false, nil
	}
	if !isMount(target) && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false, nil
	}
	if st.Dev == want.Dev && st.Ino == want.Ino {
		return true, nil
	}
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return false, fmt.Errorf("unmount stale subPath %s: %w", target, err)
	}
	return false, os.Remove(target)
}

func prepareTarget(target string, dir bool) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if dir {
		return os.MkdirAll(target, 0o750)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}
