// Package sysctl sets the kernel parameters a pod may set: those of its own namespaces.
package sysctl

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Check allows only what belongs to the pod's own namespaces (the kubelet's
// list of namespaced sysctls) and only plain names (CVE-2022-0811).
func Check(sysctls map[string]string, hostNet, hostIPC bool) error {
	for name := range sysctls {
		for _, c := range name {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-/", c)) {
				return fmt.Errorf("sysctl %q: character %q is not allowed", name, c)
			}
		}
		dotted := path(name)
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

// path turns a.b/c into a/b.c, as sysctl(8) does: the first separator decides.
func path(name string) string {
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

// Write sets a sysctl of the calling thread's namespaces. It writes through a descriptor proven to be procfs (CVE-2025-52881).
func Write(name, value string) error {
	root, err := unix.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(root, path(name), &how)
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
