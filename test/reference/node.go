package reference

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// debian lists what a node of upstream's needs besides Kubernetes: the
// program that shows it is there, and the package that has it.
var debian = []struct{ program, pkg string }{
	{"/usr/bin/containerd", "containerd"},
	{"/usr/sbin/runc", "runc"},
	{"/usr/lib/cni/ptp", "containernetworking-plugins"},
	{"/usr/sbin/nft", "nftables"},
}

// Install installs containerd, runc, CNI plug-ins and nft with apt-get, as far
// as they are missing.
func Install(ctx context.Context) error {
	var missing []string
	for _, d := range debian {
		if _, err := os.Stat(d.program); err != nil {
			missing = append(missing, d.pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	names := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("a node needs %s: install them (as root on Debian this is done by itself)", names)
	}
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)...)
	// Runlevel 1 keeps the packages from starting services.
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get install %s (is 'apt-get update' needed?): %w\n%s", names, err, out)
	}
	return nil
}

// Containerd is Debian's containerd as Options.Runtime.
func Containerd() Program { return Program{Path: "/usr/bin/containerd"} }

// enterBox gives the cluster namespaces of its own, a link to them, and a
// cgroup.
func (c *Cluster) enterBox() error {
	host := filepath.Join(c.Dir, "host")
	for _, d := range []string{"var/lib/kubelet", "var/log", "var/lib/cni"} {
		if err := os.MkdirAll(filepath.Join(host, d), 0o755); err != nil {
			return err
		}
	}
	var err error
	if c.box, err = newBox(c.Dir); err != nil {
		return err
	}
	if c.ip, err = link(c.box.pid, c.Dir); err != nil {
		return fmt.Errorf("link to the network namespace: %w", err)
	}
	c.cgroup = filepath.Base(c.Dir)
	for _, dir := range cgroupRoots() {
		if err := os.MkdirAll(filepath.Join(dir, c.cgroup), 0o755); err != nil {
			return err
		}
		if strings.HasSuffix(dir, "/cpuset") { // v1: empty until set
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if data, err := os.ReadFile(filepath.Join(dir, f)); err == nil {
					if err := os.WriteFile(filepath.Join(dir, c.cgroup, f), data, 0o644); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// link joins the host to the network namespace of a process, whose default
// route it becomes, and returns the address inside. The addresses are of the
// range for benchmarks (RFC 2544), which leads nowhere else. A folder has
// always the same: a node that comes back with another ends its kube-proxy.
func link(pid int, dir string) (inside string, err error) {
	h32 := fnv.New32a()
	h32.Write([]byte(dir))
	n := int(h32.Sum32() % (1 << 14))
	net4 := func(last int) *netlink.Addr {
		ip := net.IPv4(198, 18+byte(n>>13), byte(n>>5), byte(n<<3)+byte(last))
		return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(30, 32)}}
	}
	outer, peer := net4(1), net4(2)
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return "", err
	}
	defer ns.Close()
	name := fmt.Sprintf("skref%d", n)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		return "", err
	}
	if err := errors.Join(netlink.AddrAdd(veth, outer), netlink.LinkSetUp(veth)); err != nil {
		return "", err
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return "", err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return "", err
	}
	if err := errors.Join(h.AddrAdd(eth0, peer), h.LinkSetUp(eth0)); err != nil {
		return "", err
	}
	return peer.IP.String(), h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: outer.IP})
}

// cgroupRoots are the hierarchies of cgroups: one of v2, or several of v1.
func cgroupRoots() []string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		return []string{root}
	}
	var dirs []string
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(root, e.Name()))
		}
	}
	return dirs
}

// removeCgroups removes the cgroups of that name and all below them, which
// are empty once the processes are gone.
func removeCgroups(name string) error {
	if name == "" {
		return nil
	}
	var errs []error
	for _, root := range cgroupRoots() {
		var dirs []string
		filepath.WalkDir(filepath.Join(root, name), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// mayLowerOOMScore tells whether this process may protect others from the
// kernel's out-of-memory killer, as upstream's kubelet does.
func mayLowerOOMScore() bool {
	cmd := exec.Command("sh", "-c", "echo -999 > /proc/self/oom_score_adj")
	return cmd.Run() == nil
}

func (c *Cluster) criSocket() string { return filepath.Join(c.Dir, "run", "cri.sock") }

// runtime is the CRI runtime as this cluster runs it: containerd, or Skiff's.
func (c *Cluster) runtime(p Program) part {
	if p.Path == Containerd().Path {
		return part{
			name: "containerd", program: p, args: []string{"--config=" + filepath.Join(c.Dir, "conf", "containerd.toml")},
			before: c.writeContainerdConfig, ready: c.criAnswers, after: func(ctx context.Context) error {
				return c.loadImages(ctx, filepath.Join(filepath.Dir(p.Path), "ctr"), "--address="+c.criSocket(), "--namespace=k8s.io", "images", "import")
			},
		}
	}
	data := filepath.Join(c.Dir, "runtime")
	return part{
		name: "runtime", program: p, args: []string{
			"--listen=unix://" + c.criSocket(), "--data-dir=" + data, "--cluster-cidr=" + podCIDR, "--service-cluster-ip-range=" + serviceCIDR,
		},
		ready: c.criAnswers, after: func(ctx context.Context) error { return c.loadImages(ctx, p.Path, "image", "load", "--data-dir="+data) },
	}
}

func (c *Cluster) criAnswers(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.criSocket())
	if err != nil {
		return err
	}
	return conn.Close()
}

// loadImages hands the runtime its images, by a command that takes an archive.
func (c *Cluster) loadImages(ctx context.Context, name string, args ...string) error {
	for _, archive := range c.opts.Images {
		cmd := c.Command(ctx, name, append(args, archive)...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := c.Run(cmd); err != nil {
			return fmt.Errorf("load %s: %w\n%s", archive, err, out.String())
		}
	}
	return nil
}

func (c *Cluster) writeContainerdConfig() error {
	dir := func(name string) string { return filepath.Join(c.Dir, name) }
	text := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = %q
[debug]
  level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = %t
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
`, dir("containerd"), "/run/containerd", c.criSocket(), PauseImage, !mayLowerOOMScore(), dir("cni"))
	if err := os.MkdirAll(dir("cni"), 0o755); err != nil {
		return err
	}
	// Routed, not bridged: a bridge hands a Service's answer from pod to pod
	// past the node's NAT unless a kernel module is loaded.
	cni := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "skref", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}
]}`, nodePodCIDR)
	if err := os.WriteFile(filepath.Join(dir("cni"), "10-skref.conflist"), []byte(cni), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Dir, "conf", "containerd.toml"), []byte(text), 0o644)
}
