package volume

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// own gives a volume to the pod's fsGroup: everything in it belongs to the group, group members
// may do what the volume allows, and new files inherit the group.
func own(dir string, group *int64, readOnly bool) error {
	if group == nil {
		return nil
	}
	mask := os.FileMode(0o660)
	if readOnly {
		mask = 0o440
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if err := os.Lchown(path, int(st.Uid), int(*group)); err != nil {
			return err
		}
		if info.Mode()&os.ModeSymlink != 0 {
			return nil
		}
		m := mask
		if info.IsDir() {
			m |= os.ModeSetgid | 0o110
		}
		return os.Chmod(path, info.Mode()|m)
	})
}
