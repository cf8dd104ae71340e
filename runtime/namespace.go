package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

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
			if err := writeSysctl(k, v); err != nil {
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

// checkSysctls allows only what belongs to the pod's own namespaces (the kubelet's
// list of namespaced sysctls) and only plain names (CVE-2022-0811).
func checkSysctls(sysctls map[string]string, hostNet, hostIPC bool) error {
	for name := range sysctls {
		for _, c := range name {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-/", c)) {
				return fmt.Errorf("sysctl %q: character %q is not allowed", name, c)
			}
		}
		dotted := sysctlPath(name)
		if strings.Contains("/"+dotted+"/", "/../") || strings.Contains(dotted, "//") {
			return fmt.Errorf("sysctl %q is not a plain name", name)
		}
		switch {
		case strings.HasPrefix(dotted, "net/"):
			if hostNet {
				return fmt.Errorf("sysctl %q not allowed with host net enabled", name)
			}
		case strings.HasPrefix(dotted, "kernel/shm"), strings.HasPrefix(dotted, "kernel/msg"), dotted == "kernel/sem", strings.HasPrefix(dotted, "fs/mqueue/"):
			if hostIPC {
				return fmt.Errorf("sysctl %q not allowed with host ipc enabled", name)
			}
		default:
			return fmt.Errorf("sysctl %q is not namespaced: it would change the whole node", name)
		}
	}
	return nil
}

// sysctlPath turns a.b/c into a/b.c, as sysctl(8) does: the first separator decides.
func sysctlPath(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(c rune) rune {
		switch c {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return c
	}, name)
}

// writeSysctl writes through a descriptor proven to be procfs (CVE-2025-52881).
func writeSysctl(name, value string) error {
	root, err := unix.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(root, sysctlPath(name), &how)
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("sysctl %s: /proc/sys is not procfs", name)
	}
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
	}
	return nil
}
