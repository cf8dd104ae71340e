package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/internal/atomicfile"
	"github.com/skiff-project/skiff/internal/clientmetrics"
	"github.com/skiff-project/skiff/internal/nft"
	"github.com/skiff-project/skiff/internal/zpages"
	"github.com/skiff-project/skiff/kubelet"
	"github.com/skiff-project/skiff/kubelet/cri/remote"
	"github.com/skiff-project/skiff/proxy"
)

// Runtime is the embedded container runtime, with its pod network, by itself
// or in a kubelet.
type Runtime struct {
	DataDir      string // images, layers, sandboxes, addresses; default /var/lib/skiff
	Socket       string // CRI is served there; "": not
	ClusterCIDRs []netip.Prefix
	ServiceCIDR  netip.Prefix
	PodCIDRs     []netip.Prefix // this node's; default: what the kubelet says
	Applets      []string       // names Skiff's own image answers to
}

// Run serves the runtime until ctx ends. Containers stay.
func (r Runtime) Run(ctx context.Context, o Component) error {
	c := o.local("runtime")
	if err := r.start(ctx, c); err != nil {
		c.stop()
		return err
	}
	return c.Wait(ctx)
}

func (r Runtime) start(ctx context.Context, c *Cluster) error {
	abs, err := filepath.Abs(r.DataDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return err
	}
	c.opts = defaults(abs)
	c.opts.DataDir, c.opts.ServiceCIDR, c.opts.Applets = abs, r.ServiceCIDR, r.Applets
	if len(r.ClusterCIDRs) > 0 {
		c.opts.PodCIDR = r.ClusterCIDRs[0]
	}
	if c.lock, err = takeLock(c.opts); err != nil {
		return err
	}
	if _, err := c.startRuntime(ctx); err != nil {
		return err
	}
	if len(r.PodCIDRs) > 0 {
		if err := c.network.SetPodCIDRs(r.PodCIDRs); err != nil {
			return err
		}
	}
	if r.Socket != "" {
		c.start(c.servers, "CRI socket", func(ctx context.Context) error { return c.runtime.Serve(ctx, r.Socket) })
	}
	_, err = c.startControl(ctx)
	return err
}

// podCIDR takes the node's pod ranges as CRI tells them: joined by commas.
func (c *Cluster) podCIDR(text string) {
	var list []netip.Prefix
	for s := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			c.log.Error("the node's pod range cannot be read; pods get no addresses", "range", text, "err", err)
			return
		}
		list = append(list, p)
	}
	if err := c.network.SetPodCIDRs(list); err != nil {
		c.log.Error("the node's pod range cannot be used; pods get no addresses", "range", text, "err", err)
	}
}

// Kubelet is kubelet by itself.
type Kubelet struct {
	Component
	// Kubelet is what flags say of it; Client, Runtime, Images, ServerCert and ClientCA are set here.
	Kubelet kubelet.Config
	// RuntimeEndpoint and ImageEndpoint are CRI sockets (unix:///path). Default:
	// the embedded runtime, in this process; and the runtime's.
	RuntimeEndpoint, ImageEndpoint string
	Embedded                       Runtime       // when there is no endpoint
	RuntimeTimeout                 time.Duration // of one call; default 2 min
	CertDir                        string        // kubelet.crt and .key are kept there
	CertFile, KeyFile              string        // default: those of CertDir, made if they are missing
	ClientCAFile                   string        // default: no client certificates are accepted
	HealthzAddr                    string        // "": not served
}

// Run runs until ctx ends. Containers stay.
func (o Kubelet) Run(ctx context.Context) error {
	const name = "kubelet"
	c, err := o.alone(name)
	if err != nil {
		return err
	}
	if err := o.start(ctx, c); err != nil {
		c.stop()
		return err
	}
	return c.Wait(ctx)
}

func (o Kubelet) start(ctx context.Context, c *Cluster) error {
	cfg := o.Kubelet
	cfg.Client, cfg.Log, cfg.Version, cfg.Flags = c.client, o.Log, gitVersion(), o.Flags
	if len(cfg.NodeIPs) == 0 {
		ip := findNodeIP(c.opts.PodCIDR)
		if !ip.IsValid() {
			return errors.New("this machine has no address but loopback: give one with --node-ip")
		}
		cfg.NodeIPs = []string{ip.String()}
	}
	told := prometheus.NewRegistry()
	clientmetrics.Install(told)
	cfg.Metrics = told
	pair, err := o.certificate(cfg.NodeName, cfg.NodeIPs)
	if err != nil {
		return err
	}
	cfg.ServerCert = &pair
	if o.ClientCAFile != "" {
		if cfg.ClientCA, err = cert.NewPool(o.ClientCAFile); err != nil {
			return fmt.Errorf("client CA: %w", err)
		}
	}
	if cfg.Runtime, cfg.Images, err = o.runtime(ctx, c); err != nil {
		return err
	}
	if cfg.CgroupRoot == "" && o.RuntimeEndpoint == "" {
		cfg.CgroupRoot = c.opts.CgroupRoot()
	}
	k, err := kubelet.New(cfg)
	if err != nil {
		return err
	}
	if o.HealthzAddr != "" {
		l, err := net.Listen("tcp", o.HealthzAddr)
		if err != nil {
			return fmt.Errorf("healthz: %w", err)
		}
		mux := http.NewServeMux()
		mux.Handle("/healthz", newWatched())
		c.serve("healthz", l, mux)
	}
	c.start(c.agents, "kubelet", k.Run)
	if c.network == nil { // the runtime's own plug-ins reach other nodes' pods
		return nil
	}
	c.opts.NodeName = cfg.NodeName
	c.informers.Core().V1().Nodes().Informer() // so that it is among those started
	c.start(c.agents, "routes", c.keepRoutes)
	c.informers.Start(c.agents.ctx.Done())
	return nil
}

// runtime is the container runtime: another process's, or this one's.
func (o Kubelet) runtime(ctx context.Context, c *Cluster) (internalapi.RuntimeService, internalapi.ImageManagerService, error) {
	if o.RuntimeEndpoint == "" {
		if err := o.Embedded.start(ctx, c); err != nil {
			return nil, nil, fmt.Errorf("embedded runtime: %w", err)
		}
		return c.runtime, c.runtime, nil
	}
	r, err := remote.Dial(o.RuntimeEndpoint, o.RuntimeTimeout)
	if err != nil {
		return nil, nil, err
	}
	images := r
	if o.ImageEndpoint != "" && o.ImageEndpoint != o.RuntimeEndpoint {
		if images, err = remote.Dial(o.ImageEndpoint, o.RuntimeTimeout); err != nil {
			return nil, nil, err
		}
	}
	// The runtime says which driver it uses; this kubelet has one.
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	conf, err := r.RuntimeConfig(ctx)
	if err != nil {
		o.Log.Warn("the container runtime does not tell its cgroup driver; cgroupfs is assumed", "endpoint", o.RuntimeEndpoint, "err", err)
	} else if conf.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD {
		return nil, nil, fmt.Errorf("the container runtime at %s uses the systemd cgroup driver, which is not supported: configure cgroupfs there (containerd: SystemdCgroup = false)", o.RuntimeEndpoint)
	}
	return r, images, nil
}

// certificate is what the node's API shows: files named by flags, those of the
// certificate folder, or new ones.
func (o Kubelet) certificate(name string, ips []string) (tls.Certificate, error) {
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return pair, fmt.Errorf("serving certificate: %w", err)
		}
		return pair, nil
	}
	crt, key := filepath.Join(o.CertDir, "kubelet.crt"), filepath.Join(o.CertDir, "kubelet.key")
	pair, err := tls.LoadX509KeyPair(crt, key)
	if err == nil && time.Now().Before(pair.Leaf.NotAfter) {
		return pair, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return pair, fmt.Errorf("serving certificate: %w", err)
	}
	var addrs []net.IP
	for _, ip := range ips {
		addrs = append(addrs, net.ParseIP(ip))
	}
	made, err := bootstrap.SelfSigned(name, addrs...)
	if err != nil {
		return pair, err
	}
	text, err := made.KeyPEM()
	if err == nil {
		err = os.MkdirAll(o.CertDir, 0o700)
	}
	if err == nil {
		err = atomicfile.Write(key, text, 0o600)
	}
	if err == nil {
		err = atomicfile.Write(crt, made.CertPEM(), 0o644)
	}
	return made.TLS(), err
}

// Proxy is kube-proxy by itself.
type Proxy struct {
	Component
	NodeName                        string
	NodeIP                          netip.Addr // when the Node object says none; default: this machine's
	ClusterCIDRs, NodePortAddresses []netip.Prefix
	HealthzAddr, MetricsAddr        string
	MinSyncPeriod                   time.Duration
}

// proxyTable is upstream's: the one proxy takes it over from the other.
const proxyTable = "kube-proxy"

// PurgeProxy removes what a proxy by itself has left in the kernel.
func PurgeProxy() error { return proxy.Purge(proxyTable, "") }

// nodeWait is how long a proxy waits for its Node object to tell addresses.
const nodeWait = 30 * time.Second

// Run runs until ctx ends. The rules stay.
func (o Proxy) Run(ctx context.Context) error {
	c, err := o.alone("kube-proxy")
	if err != nil {
		return err
	}
	c.start(c.agents, "kube-proxy", func(ctx context.Context) error {
		ips, err := o.nodeIPs(ctx, c)
		if err != nil {
			return err
		}
		var families []nft.Family
		for _, ip := range ips {
			families = append(families, nft.FamilyOf(ip))
		}
		p, err := proxy.New(proxy.Config{
			Informers: c.informers, NodeName: o.NodeName, NodeIPs: ips, Families: families,
			ClusterCIDRs: o.ClusterCIDRs, NodePortAddresses: o.NodePortAddresses,
			Table: proxyTable, HealthzAddr: o.HealthzAddr, MetricsAddr: o.MetricsAddr, MinSyncPeriod: o.MinSyncPeriod, Log: o.Log,
			Pages: zpages.New("kube-proxy", gitVersion(), o.Flags, "/metrics", "/proxyMode"),
		})
		if err != nil {
			return err
		}
		c.informers.Start(ctx.Done())
		return p.Run(ctx)
	})
	return c.Wait(ctx)
}

// nodeIPs are the node's own addresses, one per family.
func (o Proxy) nodeIPs(ctx context.Context, c *Cluster) ([]netip.Addr, error) {
	wait, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	var ips []netip.Addr
	err := poll(wait, "the addresses of node "+o.NodeName, func(ctx context.Context) error {
		n, err := c.client.CoreV1().Nodes().Get(ctx, o.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		ips = addressesOf(n)
		if len(ips) == 0 {
			return errors.New("the node has none yet")
		}
		return nil
	})
	switch {
	case err == nil:
		return ips, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	ip := o.NodeIP
	if !ip.IsValid() {
		ip = findNodeIP(netip.Prefix{})
	}
	o.Log.Warn("the Node object tells no addresses; node ports are served on this one", "address", ip, "err", err)
	return []netip.Addr{ip}, nil
}

// addressesOf are a node's first internal addresses of each family, else external ones.
func addressesOf(n *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, typ := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			sameFamily := func(have netip.Addr) bool { return have.Is4() == ip.Is4() }
			if a.Type == typ && err == nil && !slices.ContainsFunc(out, sameFamily) {
				out = append(out, ip)
			}
		}
	}
	return out
}
