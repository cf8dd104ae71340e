//go:build linux

package main

import (
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// podInit is process 1 of a PID namespace that several containers share: it adopts
// orphans and reaps them, until TERM.
func podInit() error {
	unix.CloseRange(0, 1<<31-1, 0)
	sig := make(chan os.Signal, 16)
	signal.Notify(sig, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	for s := range sig {
		if s != unix.SIGCHLD {
			unix.Exit(0)
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
				break
			}
		}
	}
	return nil
}

func pause() error {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGTERM, unix.SIGINT)
	<-sig
	return nil
}

// Inotify tells of news; what it cannot see, a file below another mount or a lost
// event, is found by looking every followSlow, or followPoll where there is no inotify
// to be had (the user's instances are used up).
const (
	followSlow = 30 * time.Second
	followPoll = time.Second
)

// follow copies path to standard output as it grows. A shrunk or replaced file is
// read from its start; a missing one is waited for. It ends at TERM.
func follow(path string) error {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-sig
		unix.Exit(0)
	}()
	news := newsOf(path)
	trim := true
	var f *os.File
	var off int64
	buf := make([]byte, 16<<10)
	for {
		if f == nil {
			f, _ = os.Open(path)
			off = 0
			unix.InotifyAddWatch(news, path, unix.IN_MODIFY)
		}
		if f != nil {
			for {
				n, _ := f.ReadAt(buf, off)
				if n == 0 {
					break
				}
				off += int64(n)
				if _, err := os.Stdout.Write(buf[:n]); err != nil {
					return err
				}
			}
			if replaced(f, path, off) {
				f.Close()
				f = nil
				continue
			}
		}
		wait := int(followSlow.Milliseconds())
		if trim {
			wait = trimAfter
		}
		switch news := await(news, buf, wait); {
		case news:
			trim = true
		case trim:
			trim = false
			rest()
		}
	}
}

// newsOf watches the folder of path for files that come, as path is made or replaced;
// the file itself is watched once open. It returns an inotify descriptor, or -1.
func newsOf(path string) int {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1
	}
	dir := path[:strings.LastIndexByte(path, '/')+1]
	if _, err := unix.InotifyAddWatch(fd, dir+".", unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return -1
	}
	return fd
}

// await sleeps for some milliseconds, or until there may be news, and says whether there
// is; what the news is shows in the file.
func await(news int, buf []byte, ms int) bool {
	if news < 0 {
		time.Sleep(followPoll)
		return false
	}
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(news), Events: unix.POLLIN}}, ms)
	for more := n > 0; more; {
		read, err := unix.Read(news, buf)
		more = read > 0 && err == nil
	}
	return n > 0
}

func replaced(f *os.File, path string, off int64) bool {
	now, err := os.Stat(path)
	if err != nil {
		return false // keep the open one until a new one appears
	}
	was, err := f.Stat()
	return err != nil || !os.SameFile(now, was) || now.Size() < off
}
