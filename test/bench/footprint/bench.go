//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// diskSize is the size of the file system a cluster is measured on.
const diskSize = 512 << 20

// bench is a place to run a cluster in.
type bench struct {
	binary  string
	dir     string // holds all of it
	dataDir string
	device  string // the loop device below dataDir; "" without one
	ports   [3]int
	ns      netns.NsHandle
	home    netns.NsHandle
}

func newBench(binary string) (_ *bench, err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	b := &bench{binary: binary, ns: -1, home: -1}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.dir, err = os.MkdirTemp("", "footprint"); err != nil {
		return nil, err
	}
	b.dataDir = filepath.Join(b.dir, "data")
	if err := os.MkdirAll(b.dataDir, 0o700); err != nil {
		return nil, err
	}
	if err := b.mountDisk(); err != nil {
		fmt.Fprintln(os.Stderr, "footprint: no disk of its own, so no device count:", err)
	}
	for i := range b.ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		b.ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return b, b.makeNetwork()
}

// makeNetwork moves this thread, and so the programs it starts, into a network
// namespace with one address and a default route to nowhere.
func (b *bench) makeNetwork() (err error) {
	runtime.LockOSThread()
	if b.home, err = netns.Get(); err != nil {
		return err
	}
	if b.ns, err = netns.New(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("198.18.0.1/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	for _, l := range []netlink.Link{lo, link} {
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Gw: net.IPv4(198, 18, 0, 254)})
}

// mountDisk puts an ext4 file system with nothing left to initialise below the
// data folder.
func (b *bench) mountDisk() error {
	image := filepath.Join(b.dir, "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, diskSize); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image},
		{"mount", "-o", "loop", image, b.dataDir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == b.dataDir {
			b.device = f[0]
		}
	}
	return nil
}

// cluster is the folder of the cluster: one below the disk's own, which may go.
func (b *bench) cluster() string { return filepath.Join(b.dataDir, "skiff") }

// up starts or resumes the cluster and says how long the command took.
func (b *bench) up() (time.Duration, error) {
	cmd := exec.Command(b.binary, "up", "-d", "--merge-kubeconfig=false", "--data-dir", b.cluster(),
		"--api-port", strconv.Itoa(b.ports[0]), "--kubelet-port", strconv.Itoa(b.ports[1]), "--etcd-port", strconv.Itoa(b.ports[2]))
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return time.Since(begin), nil
}

func (b *bench) down(purge bool) error {
	cmd := exec.Command(b.binary, "down", "--data-dir", b.cluster(), fmt.Sprintf("--purge=%t", purge))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// close removes everything; errors are printed, as there is nobody to handle them.
func (b *bench) close() {
	note := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "footprint: clean up:", err)
		}
	}
	if _, err := os.Stat(b.cluster()); err == nil {
		note(b.down(true))
	}
	if b.home >= 0 {
		note(netns.Set(b.home))
		note(b.home.Close())
	}
	if b.ns >= 0 {
		note(b.ns.Close())
	}
	if b.device != "" {
		out, err := exec.Command("umount", b.dataDir).CombinedOutput()
		if err != nil {
			note(fmt.Errorf("%w: %s", err, out))
		}
	}
	note(os.RemoveAll(b.dir))
}
