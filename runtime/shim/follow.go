//go:build linux

package main

import (
	"os"
	"os/signal"
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

// followPoll is how often follow looks for news: inotify does not cross overlay and
// bind mounts reliably, and a log reader can wait.
const followPoll = 500 * time.Millisecond

// follow copies path to standard output as it grows. A shrunk or replaced file is
// read from its start; a missing one is waited for.
func follow(path string) error {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGTERM, unix.SIGINT)
	var f *os.File
	var off int64
	buf := make([]byte, 16<<10)
	tick := time.NewTicker(followPoll)
	defer tick.Stop()
	for {
		if f == nil {
			f, _ = os.Open(path)
			off = 0
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
		select {
		case <-sig:
			return nil
		case <-tick.C:
		}
	}
}

func replaced(f *os.File, path string, off int64) bool {
	now, err := os.Stat(path)
	if err != nil {
		return false // keep the open one until a new one appears
	}
	was, err := f.Stat()
	return err != nil || !os.SameFile(now, was) || now.Size() < off
}
