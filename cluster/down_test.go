package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A data folder may be a disk of its own: down unmounts what pods left in it, purge
// empties it, and neither takes the disk away.
func TestDownOnADiskOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	data := t.TempDir()
	mount := func(dir string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	mount(data)
	volume := filepath.Join(data, "kubelet", "pods", "a", "volumes", "token")
	mount(volume)
	if err := os.WriteFile(filepath.Join(data, "cluster.json"), []byte(`{"suffix":"tdwn"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), data, false, nil); err != nil {
		t.Fatal(err)
	}
	if left, _ := mountsBelow(data); len(left) != 0 {
		t.Errorf("mounts left by down: %v", left)
	}
	mount(volume)
	if err := Down(t.Context(), data, true, nil); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) != 0 {
		t.Errorf("left by purge: %v, %v", entries, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(data, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("purge took the disk away: %v", err)
	}
}
