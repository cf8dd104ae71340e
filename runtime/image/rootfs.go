package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RootFS makes a detached overlay mount of an image's layers and returns its
// descriptor, which the caller closes. Nothing appears in the host's mount table, so
// nothing can be left there: the mount lives as long as a descriptor or a namespace
// holds it. With dir set, dir/upper takes writes; without, the mount is read-only.
func (s *Store) RootFS(layers []string, dir string) (int, error) {
	lower := make([]string, 0, len(layers)+1)
	for i := len(layers) - 1; i >= 0; i-- {
		lower = append(lower, s.LayerDir(layers[i]))
	}
	if dir == "" && len(lower) == 1 {
		return readOnlyTree(lower[0])
	}
	if len(lower) == 0 || dir == "" {
		empty := s.path("empty")
		if err := os.MkdirAll(empty, 0o755); err != nil {
			return -1, err
		}
		lower = append(lower, empty)
	}
	upper, work := "", ""
	if dir != "" {
		upper, work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return -1, err
			}
		}
	}
	fd, err := overlayByPart(lower, upper, work)
	if errors.Is(err, unix.EINVAL) {
		fd, err = s.overlayClassic(lower, upper, work)
	}
	if err != nil {
		return -1, fmt.Errorf("mount overlay of %d layers: %w", len(layers), err)
	}
	return fd, nil
}

func readOnlyTree(dir string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open layer: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// overlayByPart adds layers one by one ("lowerdir+", Linux 6.5), which knows no limit
// on the length of all paths together.
func overlayByPart(lower []string, upper, work string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, l := range lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", l); err != nil {
			return -1, err
		}
	}
	attr := 0
	if upper != "" {
		if err := errors.Join(unix.FsconfigSetString(fs, "upperdir", upper), unix.FsconfigSetString(fs, "workdir", work)); err != nil {
			return -1, err
		}
		// The writable layer never outlives its container: no sync when it goes.
		if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
			return -1, err
		}
	} else {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
}

// overlayClassic serves kernels before 6.5: mount(2) with all options in one page,
// taken off the tree again at once.
func (s *Store) overlayClassic(lower []string, upper, work string) (int, error) {
	opts := "lowerdir=" + strings.Join(lower, ":")
	flags := uintptr(unix.MS_RDONLY)
	if upper != "" {
		// A failed first try has claimed the work folder.
		if err := os.RemoveAll(filepath.Join(work, "work", "incompat")); err != nil {
			return -1, err
		}
		opts += ",upperdir=" + upper + ",workdir=" + work + ",volatile"
		flags = 0
	}
	if len(opts) >= os.Getpagesize() {
		return -1, fmt.Errorf("%d layers need %d bytes of mount options, Linux before 6.5 takes %d: use a newer kernel or squash the image",
			len(lower), len(opts), os.Getpagesize()-1)
	}
	at, err := os.MkdirTemp(s.path("tmp"), "mount-")
	if err != nil {
		return -1, err
	}
	defer os.Remove(at)
	if err := unix.Mount("overlay", at, "overlay", flags, opts); err != nil {
		return -1, err
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	return unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}
