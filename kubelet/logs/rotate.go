package logs

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// Rotator keeps container logs within bounds.
type Rotator struct {
	MaxSize  int64 // bytes at which a log is rotated; default 10 MiB
	MaxFiles int   // files kept per container, the live one included; default 5
	// Reopen makes the runtime write to a fresh file at the old path.
	Reopen func(ctx context.Context, containerID string) error
	Now    func() time.Time
}

// Check rotates one log if it has grown beyond MaxSize: the live file is renamed with a time
// stamp, the runtime reopens it, older ones are compressed and the surplus is deleted.
func (r *Rotator) Check(ctx context.Context, containerID, path string) error {
	maxSize, maxFiles := r.MaxSize, r.MaxFiles
	if maxSize <= 0 {
		maxSize = 10 << 20
	}
	if maxFiles < 2 {
		maxFiles = 5
	}
	fi, err := os.Stat(path)
	if os.IsNotExist(err) || err == nil && fi.Size() < maxSize {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rotate log %s: %w", path, err)
	}
	old, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	sort.Strings(old)
	for _, f := range old {
		if strings.HasSuffix(f, ".tmp") {
			_ = os.Remove(f)
		} else if !strings.HasSuffix(f, ".gz") {
			if err := compress(f); err != nil {
				return fmt.Errorf("compress log %s: %w", f, err)
			}
		}
	}
	old, _ = filepath.Glob(path + ".*")
	sort.Strings(old)
	for len(old) > maxFiles-2 { // room for the live file and the one rotated now
		_ = os.Remove(old[0])
		old = old[1:]
	}
	moved := path + "." + r.Now().Format("20060102-150405")
	if err := os.Rename(path, moved); err != nil {
		return fmt.Errorf("rotate log %s: %w", path, err)
	}
	if err := r.Reopen(ctx, containerID); err != nil {
		_ = os.Rename(moved, path)
		return fmt.Errorf("reopen log of container %s: %w", containerID, err)
	}
	return nil
}

func compress(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	for _, c := range []func() error{z.Close, out.Close} {
		if cerr := c(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}
