package cluster

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lock is the claim of one live process on a data folder. The kernel drops it
// with the process, however that ends.
type lock struct{ file *os.File }

// takeLock claims the data folder, or says which process has it.
func takeLock(o Options) (*lock, error) {
	f, err := os.OpenFile(o.path("skiff.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, Problem{
				What: fmt.Sprintf("a cluster is already running in %s (pid %d)", o.DataDir, lockHolder(o)),
				Fix:  "use it, stop it with 'skiff down', or start another one with --data-dir",
			}
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		f.Close()
		return nil, err
	}
	return &lock{f}, nil
}

func (l *lock) release() { l.file.Close() }

// lockHolder returns the pid of the live process that holds the folder, or 0.
func lockHolder(o Options) int {
	f, err := os.Open(o.path("skiff.lock"))
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0 // nobody holds it
	}
	buf := make([]byte, 32)
	n, _ := f.Read(buf)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	return pid
}
