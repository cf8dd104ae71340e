package logs

import (
	"context"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// pollEvery is how often a followed log is looked at when inotify has nothing to say: it bounds
// how late a container's end is noticed.
const pollEvery = time.Second

type watch struct {
	fd int
	ch chan struct{}
}

// newWatch watches a log file and its folder for writes and renames. Without inotify it polls.
func newWatch(path string, on bool) *watch {
	w := &watch{fd: -1, ch: make(chan struct{}, 1)}
	if !on {
		return w
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return w
	}
	w.fd = fd
	return w
}

func (w *watch) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
}

// wait returns when there may be more to read, or with an error when ctx ended.
func (w *watch) wait(ctx context.Context) error {
	deadline := time.Now().Add(pollEvery)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil
		}
		if w.fd < 0 {
			left = min(left, 250*time.Millisecond)
			time.Sleep(left)
			return nil
		}
		fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(min(left, 200*time.Millisecond)/time.Millisecond)+1)
		if err == nil && n > 0 {
			buf := make([]byte, 4096)
			_, _ = unix.Read(w.fd, buf)
			return nil
		}
	}
}
