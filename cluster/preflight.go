package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Problem is a reason a cluster cannot start, with what the user can do.
type Problem struct {
	What string
	Fix  string
}

func (p Problem) Error() string { return p.What + "\n  fix: " + p.Fix }

// minKernel has fd-based mounts (5.12) and the nftables features the proxy needs (5.13).
var minKernel = [2]int{5, 15}

// preflight reports the first thing that would keep a cluster from starting
// on this machine. It changes nothing but the (created) data folder.
func preflight(o Options) error {
	checks := []func(Options) error{checkRoot, checkKernel, checkFilesystems, checkNftables, checkCgroups, checkFolder}
	for _, check := range checks {
		if err := check(o); err != nil {
			return err
		}
	}
	return nil
}

func checkRoot(Options) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return Problem{
		What: "skiff up needs root: it makes namespaces, mounts and nftables rules",
		Fix:  "sudo skiff up",
	}
}

func checkKernel(Options) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor, ok := parseKernel(release)
	if !ok || major > minKernel[0] || (major == minKernel[0] && minor >= minKernel[1]) {
		return nil
	}
	return Problem{
		What: fmt.Sprintf("kernel %s is too old: skiff needs Linux %d.%d or newer", release, minKernel[0], minKernel[1]),
		Fix:  "boot a newer kernel (on Debian 11: apt install linux-image-amd64 from backports)",
	}
}

// parseKernel reads "6.1.0-18-amd64" as 6, 1.
func parseKernel(release string) (major, minor int, ok bool) {
	a, rest, found := strings.Cut(release, ".")
	if !found {
		return 0, 0, false
	}
	b, _, _ := strings.Cut(rest, ".")
	b, _, _ = strings.Cut(b, "-")
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, err1 == nil && err2 == nil
}

func checkFilesystems(Options) error {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return Problem{What: "cannot read /proc/filesystems: " + err.Error(), Fix: "mount proc on /proc"}
	}
	if strings.Contains(string(data), "\toverlay\n") {
		return nil
	}
	if _, err := os.Stat("/sys/module/overlay"); err == nil {
		return nil
	}
	return Problem{
		What: "the kernel has no overlay filesystem, which container images need",
		Fix:  "modprobe overlay (CONFIG_OVERLAY_FS)",
	}
}

func checkNftables(Options) error {
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTables()
	}
	if err == nil {
		return nil
	}
	return Problem{
		What: "the kernel does not answer nftables requests: " + err.Error(),
		Fix:  "modprobe nf_tables nft_nat nft_masq nf_conntrack (CONFIG_NF_TABLES)",
	}
}

func checkCgroups(Options) error {
	for _, f := range []string{"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu"} {
		if _, err := os.Stat(f); err == nil {
			return nil
		}
	}
	return Problem{
		What: "no cgroup hierarchy is mounted at /sys/fs/cgroup",
		Fix:  "mount -t cgroup2 none /sys/fs/cgroup",
	}
}

func checkFolder(o Options) error {
	fix := "give a folder on a writable disk with --data-dir"
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return Problem{What: "cannot make the data folder: " + err.Error(), Fix: fix}
	}
	if err := os.Chmod(o.DataDir, 0o700); err != nil {
		return Problem{What: "cannot protect the data folder: " + err.Error(), Fix: fix}
	}
	probe := filepath.Join(o.DataDir, ".writable")
	if err := os.WriteFile(probe, []byte("ok"), 0o600); err != nil {
		return Problem{What: "cannot write to the data folder: " + err.Error(), Fix: fix}
	}
	return os.Remove(probe)
}

// checkPorts reports a port that another process holds. It runs after the
// lock is taken, so the holder is never this cluster.
func checkPorts(o Options) error {
	for _, p := range []struct {
		port       int
		host, what string
		flag       string
	}{
		{o.APIPort, "", "the API server", "--api-port"},
		{o.KubeletPort, "", "the kubelet", "--kubelet-port"},
		{o.EtcdPort, "127.0.0.1", "etcd's API", "--etcd-port"},
	} {
		l, err := net.Listen("tcp", net.JoinHostPort(p.host, strconv.Itoa(p.port)))
		if err == nil {
			l.Close()
			continue
		}
		if errors.Is(err, unix.EADDRINUSE) {
			return Problem{
				What: fmt.Sprintf("port %d, wanted for %s, is taken by %s", p.port, p.what, portHolder(p.port)),
				Fix:  fmt.Sprintf("stop that process, or choose another port with %s", p.flag),
			}
		}
		return Problem{What: fmt.Sprintf("cannot listen on port %d for %s: %v", p.port, p.what, err), Fix: "choose another port with " + p.flag}
	}
	return nil
}

// portHolder names the process listening on a TCP port, as far as /proc tells.
func portHolder(port int) string {
	inode := listenInode(port)
	if inode == "" {
		return "another process"
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range procs {
		fds, _ := filepath.Glob(dir + "/fd/*")
		for _, fd := range fds {
			if link, _ := os.Readlink(fd); link == "socket:["+inode+"]" {
				comm, _ := os.ReadFile(dir + "/comm")
				return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), filepath.Base(dir))
			}
		}
	}
	return "another process"
}

func listenInode(port int) string {
	want := fmt.Sprintf(":%04X", port)
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, _ := os.ReadFile(file)
		for _, line := range strings.Split(string(data), "\n") {
			f := strings.Fields(line)
			const listening = "0A"
			if len(f) > 9 && strings.HasSuffix(f[1], want) && f[3] == listening {
				return f[9]
			}
		}
	}
	return ""
}
