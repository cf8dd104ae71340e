// Package filewatch waits for the files of a folder to change.
package filewatch

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch is one inotify descriptor; without one there is polling.
type Watch struct{ f *os.File }

// Folder watches a folder from now on, for one Wait, which must follow.
func Folder(path string) Watch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return Watch{}
	}
	const mask = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF
	if _, err := unix.InotifyAddWatch(fd, path, mask); err != nil {
		unix.Close(fd)
		return Watch{}
	}
	return Watch{os.NewFile(uintptr(fd), "inotify")} // Go's poller waits: no thread is held
}

// Wait returns when the folder may have changed, or after poll (sooner where
// it cannot be watched); false when ctx ended.
func (w Watch) Wait(ctx context.Context, poll time.Duration) bool {
	if w.f == nil {
		return sleep(ctx, min(poll, 5*time.Second))
	}
	defer w.f.Close()
	_ = w.f.SetReadDeadline(time.Now().Add(poll))
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 16<<10)
	if n, _ := w.f.Read(buf); n > 0 {
		return sleep(ctx, 100*time.Millisecond) // let an editor finish its dance of files
	}
	return ctx.Err() == nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
