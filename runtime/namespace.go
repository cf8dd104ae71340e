package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/skiff-project/skiff/runtime/sysctl"
	"golang.org/x/sys/unix"
)

// namespaces says which namespaces a new sandbox gets, and their content.
type namespaces struct {
	net, ipc, uts bool
	hostname      string
	sysctls       map[string]string
}

func (n namespaces) flags() int {
	f := 0
	if n.net {
		f |= unix.CLONE_NEWNET
	}
	if n.ipc {
		f |= unix.CLONE_NEWIPC
	}
	if n.uts {
		f |= unix.CLONE_NEWUTS
	}
	return f
}

// onThread runs f on a thread of its own that ends with f, so that whatever f does to
// the thread's namespaces is gone afterwards.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// make creates the namespaces and pins them as files in dir.
func (n namespaces) make(dir string) error {
	if n.flags() == 0 {
		return nil
	}
	return onThread(func() error {
		if err := unix.Unshare(n.flags()); err != nil {
			return fmt.Errorf("new namespaces: %w", err)
		}
		if n.uts && n.hostname != "" {
			if err := unix.Sethostname([]byte(n.hostname)); err != nil {
				return fmt.Errorf("set host name %q: %w", n.hostname, err)
			}
		}
		if n.net {
			if err := loopbackUp(); err != nil {
				return err
			}
		}
		for k, v := range n.sysctls {
			if err := sysctl.Write(k, v); err != nil {
				return err
			}
		}
		for name, on := range map[string]bool{"net": n.net, "ipc": n.ipc, "uts": n.uts} {
			if !on {
				continue
			}
			if err := pin("/proc/thread-self/ns/"+name, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func pin(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace at %s: %w", path, err)
	}
	return nil
}

// unpin takes a pinned namespace or another mount away, as often as it is stacked.
func unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// pinned tells whether path names a namespace (and not the plain file left by a
// reboot).
func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
