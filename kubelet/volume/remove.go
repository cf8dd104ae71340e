package volume

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Remove takes down everything mounted below a pod's folder and deletes its volumes. It reads the
// mount table, not memory, so it works for pods of a former life too; and it deletes nothing as
// long as anything is mounted there, for a mount may show the node's own files.
func (h *Host) Remove(uid string) error {
	dir := h.PodDir(uid)
	for _, sub := range []string{"volume-subpaths", "volumes"} {
		if err := clear(filepath.Join(dir, sub)); err != nil {
			return fmt.Errorf("remove volumes of pod %s: %w", uid, err)
		}
	}
	h.ForgetTokens(uid)
	if h.Certificates != nil {
		h.Certificates.Forget(types.UID(uid))
	}
	return nil
}

// RemoveDir deletes a pod's whole folder, volumes included.
func (h *Host) RemoveDir(uid string) error {
	if uid == "" || strings.ContainsRune(uid, '/') {
		return fmt.Errorf("remove pod folder: bad uid %q", uid)
	}
	if err := h.Remove(uid); err != nil {
		return err
	}
	return clear(h.PodDir(uid))
}

// Known lists the pods that have a folder.
func (h *Host) Known() []string {
	entries, _ := os.ReadDir(h.PodsDir)
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

func clear(dir string) error {
	if _, err := os.Lstat(dir); os.IsNotExist(err) {
		return nil
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) { // the deepest first
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
	if left, err := mountsBelow(dir); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("still mounted: %s", strings.Join(left, ", ")))
	}
	return os.RemoveAll(dir)
}

// mountsBelow lists the mount points at or below dir, parents before children.
func mountsBelow(dir string) ([]string, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 {
			continue
		}
		p := unescape(fields[4])
		if p == real || strings.HasPrefix(p, real+"/") {
			out = append(out, p)
		}
	}
	return out, sc.Err()
}

// unescape undoes the octal escapes of the mount table.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
