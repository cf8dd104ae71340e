package volume

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// emptyDir is a folder that lives as long as the pod: on the node's disk, or a tmpfs.
type emptyDir struct {
	pod *Pod
	src *v1.EmptyDirVolumeSource
	dir string
}

func (e *emptyDir) Path() string       { return e.dir }
func (e *emptyDir) ReadOnly() bool     { return false }
func (e *emptyDir) Refresh() time.Time { return time.Time{} }

func (e *emptyDir) SetUp(context.Context) error {
	ready := e.dir + ".ready" // content is made once: a second SetUp must not touch it
	if _, err := os.Stat(ready); err == nil && (e.src.Medium != v1.StorageMediumMemory || isMount(e.dir)) {
		return nil
	}
	if err := mkdir(e.dir, 0o777); err != nil {
		return err
	}
	switch e.src.Medium {
	case v1.StorageMediumDefault:
	case v1.StorageMediumMemory:
		if err := mountTmpfs(e.dir, e.memoryLimit()); err != nil {
			return err
		}
	default:
		return fmt.Errorf("emptyDir medium %q is not supported by this node", e.src.Medium)
	}
	if err := os.Chmod(e.dir, 0o777); err != nil {
		return err
	}
	if err := own(e.dir, fsGroup(e.pod.pod), false); err != nil {
		return err
	}
	return os.WriteFile(ready, nil, 0o600)
}

// memoryLimit bounds a tmpfs: the size limit, the pod's memory limit or the node's memory,
// whichever is least. Bytes.
func (e *emptyDir) memoryLimit() int64 {
	alloc := e.pod.host.Node().Allocatable
	limit := alloc.Memory().Value()
	var sum int64
	for i := range e.pod.pod.Spec.Containers {
		m := e.pod.pod.Spec.Containers[i].Resources.Limits.Memory().Value()
		if m == 0 {
			sum = 0
			break
		}
		sum += m
	}
	if sum > 0 && (limit == 0 || sum < limit) {
		limit = sum
	}
	if q := e.src.SizeLimit; q != nil && q.Value() > 0 && (limit == 0 || q.Value() < limit) {
		limit = q.Value()
	}
	return limit
}

func mountTmpfs(dir string, size int64) error {
	if isMount(dir) {
		return nil
	}
	data := ""
	if size > 0 {
		data = fmt.Sprintf("size=%d", size)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOATIME, data); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return nil
}

// isMount says whether dir is a mount point, by comparing its device with its parent's and, for
// bind mounts on one device, its mount id.
func isMount(dir string) bool {
	id := func(p string) (uint64, bool) {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st)
		return st.Mnt_id, err == nil
	}
	a, ok1 := id(dir)
	b, ok2 := id(dir + "/..")
	return ok1 && ok2 && a != b
}
