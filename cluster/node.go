package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/dns"
	"github.com/skiff-project/skiff/kubelet"
	"github.com/skiff-project/skiff/network"
	"github.com/skiff-project/skiff/proxy"
	"github.com/skiff-project/skiff/runtime"
)

// startRuntime opens the pod network and the container runtime, adopts what
// still runs, and makes Skiff's own image.
func (c *Cluster) startRuntime(ctx context.Context) (string, error) {
	log, err := c.logs.logger("runtime")
	if err != nil {
		return "", err
	}
	if c.network, err = network.New(networkConfig(c.opts, log)); err != nil {
		return "", err
	}
	cfg := runtimeConfig(c.opts, podNetwork{c.network}, log)
	cfg.OnPodCIDR = c.podCIDR
	if c.runtime, err = runtime.New(cfg); err != nil {
		return "", err
	}
	if err := freeDeadPods(ctx, c.runtime, c.network); err != nil {
		return "", err
	}
	c.start(c.servers, "runtime", c.runtime.Run)
	return c.ensureImage(ctx)
}

// freeDeadPods takes back addresses and interfaces of sandboxes the runtime does not
// know: what a crash left between the two.
func freeDeadPods(ctx context.Context, r *runtime.Runtime, n *network.Network) error {
	ready := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}
	sandboxes, err := r.ListPodSandbox(ctx, ready)
	if err != nil {
		return err
	}
	var live []string
	for _, s := range sandboxes {
		live = append(live, s.Id)
	}
	_, err = n.Reconcile(live)
	return err
}

func networkConfig(o Options, log *slog.Logger) network.Config {
	return network.Config{
		Bridge:       o.Bridge(),
		DataDir:      o.path("network"),
		ClusterCIDRs: known(o.PodCIDR),
		ServiceCIDRs: known(o.ServiceCIDR),
		Table:        o.Table("network"),
		Log:          log,
	}
}

// known is a list of a range, empty when nobody has said which.
func known(p netip.Prefix) []netip.Prefix {
	if !p.IsValid() {
		return nil
	}
	return []netip.Prefix{p}
}

func runtimeConfig(o Options, n runtime.Network, log *slog.Logger) runtime.Config {
	return runtime.Config{
		Root:         o.path("runtime"),
		StateDir:     o.path("runtime", "state"),
		CgroupParent: o.CgroupRoot(),
		Network:      n,
		Registries:   o.path("registries.yaml"),
		Version:      Version,
		Log:          log,
	}
}

// podNetwork shows the network to the runtime in the runtime's terms.
type podNetwork struct{ network *network.Network }

func (p podNetwork) Setup(ctx context.Context, s runtime.Sandbox) ([]netip.Addr, error) {
	pod := network.PodSandbox{ID: s.ID, Namespace: s.Namespace, Name: s.Name, NetnsPath: s.NetnsPath}
	for _, m := range s.PortMappings {
		ip, _ := netip.ParseAddr(m.HostIP) // empty or unusable: every address, as upstream
		pod.HostPorts = append(pod.HostPorts, network.PortMapping{
			Protocol: m.Protocol, HostIP: ip, HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort),
		})
	}
	return p.network.Setup(ctx, pod)
}

func (p podNetwork) Teardown(ctx context.Context, s runtime.Sandbox) error {
	return p.network.Teardown(ctx, s.ID)
}

func (p podNetwork) Ready() error { return p.network.Ready() }

// startNode runs this machine as a node: kubelet, proxy and, once the node has
// its pod addresses, DNS.
func (c *Cluster) startNode(context.Context) (string, error) {
	if err := c.startKubelet(); err != nil {
		return "", err
	}
	if err := c.startProxy(); err != nil {
		return "", err
	}
	c.start(c.agents, "routes", c.keepRoutes)
	c.informers.Core().V1().Nodes().Informer() // before the start of the factory, which keepRoutes would miss
	c.informers.Start(c.agents.ctx.Done())
	log, err := c.logs.logger("dns")
	if err != nil {
		return "", err
	}
	c.start(c.agents, "dns", func(ctx context.Context) error { return c.runDNS(ctx, log) })
	return "kubelet, proxy and DNS started", nil
}

func (c *Cluster) startKubelet() error {
	log, err := c.logs.logger("kubelet")
	if err != nil {
		return err
	}
	cert := c.assets.Kubelet.TLS()
	k, err := kubelet.New(kubelet.Config{
		NodeName:      c.opts.NodeName,
		NodeIPs:       []string{c.opts.NodeIP.String()},
		Version:       gitVersion(),
		Client:        c.clientFor("system:node:"+c.opts.NodeName, auth.GroupNodes),
		Informers:     c.informers,
		Runtime:       c.runtime,
		Images:        c.runtime,
		RootDir:       c.opts.path("kubelet"),
		LogDir:        c.opts.path("log", "pods"),
		StaticPodPath: c.opts.path("manifests"),
		ClusterDNS:    []string{c.opts.serviceIP(dnsService).String()},
		ClusterDomain: c.opts.Domain,
		CgroupRoot:    c.opts.CgroupRoot(),
		ServerAddr:    net.JoinHostPort("", strconv.Itoa(c.opts.KubeletPort)),
		ServerCert:    &cert,
		ClientCA:      c.assets.CA.Pool(),
		Log:           log,
	})
	if err != nil {
		return err
	}
	c.start(c.agents, "kubelet", k.Run)
	return nil
}

func (c *Cluster) startProxy() error {
	log, err := c.logs.logger("kube-proxy")
	if err != nil {
		return err
	}
	p, err := proxy.New(proxy.Config{
		Informers:    c.informers,
		NodeName:     c.opts.NodeName,
		NodeIPs:      nodeIPs(c.opts),
		ClusterCIDRs: []netip.Prefix{c.opts.PodCIDR},
		ServiceCIDRs: []netip.Prefix{c.opts.ServiceCIDR},
		Table:        c.opts.Table("proxy"),
		Log:          log,
	})
	if err != nil {
		return err
	}
	c.start(c.agents, "proxy", p.Run)
	return nil
}

// runDNS waits for the node's pod range, makes the bridge, and answers on its
// gateway address: pods reach it whatever else the host runs on port 53.
func (c *Cluster) runDNS(ctx context.Context, log *slog.Logger) error {
	err := poll(ctx, "the node's pod range", func(ctx context.Context) error {
		n, err := c.client.CoreV1().Nodes().Get(ctx, c.opts.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if n.Spec.PodCIDR == "" {
			return errors.New("not assigned yet")
		}
		prefix, err := netip.ParsePrefix(n.Spec.PodCIDR)
		if err != nil {
			return err
		}
		return c.network.SetPodCIDRs([]netip.Prefix{prefix})
	})
	if err != nil {
		return err
	}
	addr := netip.AddrPortFrom(c.network.Gateway(), 53)
	server, err := dns.New(dns.Config{
		Informers:   c.informers,
		Client:      c.client,
		NodeName:    c.opts.NodeName,
		Domain:      c.opts.Domain,
		ListenAddrs: []netip.AddrPort{addr},
		Advertise:   addr.Addr(),
		ResolvConf:  "/etc/resolv.conf",
		Log:         log,
	})
	if err != nil {
		return err
	}
	c.informers.Start(c.agents.ctx.Done())
	return server.Run(ctx)
}

// waitReady waits until this node's Ready condition is true.
func (c *Cluster) waitReady(ctx context.Context) (string, error) {
	last := ""
	err := poll(ctx, "the node to be Ready", func(ctx context.Context) error {
		n, err := c.client.CoreV1().Nodes().Get(ctx, c.opts.NodeName, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("the kubelet has not registered it: %w", err)
		}
		why := notReady(n)
		if why == "" {
			why = c.stale(ctx)
		}
		if why != "" {
			if why != last {
				last = why
				c.progress.emit(Event{Step: "Ready", State: Waits, Detail: why})
			}
			return errors.New(why)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if c.api == nil {
		return "node " + c.opts.NodeName, nil
	}
	return "node " + c.opts.NodeName, c.markControlPlane(ctx)
}

// stale says why a Ready condition is not this process's: on a resume the
// stored one is true before the kubelet and the network are at work again.
func (c *Cluster) stale(ctx context.Context) string {
	if err := c.network.Ready(); err != nil {
		return err.Error()
	}
	lease, err := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, c.opts.NodeName, metav1.GetOptions{})
	if err != nil || lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(c.begun) {
		return "the kubelet's first heartbeat"
	}
	return ""
}

// markControlPlane labels the node as kubeadm does; a node may not give itself
// a role (NodeRestriction).
func (c *Cluster) markControlPlane(ctx context.Context) error {
	const patch = `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`
	_, err := c.client.CoreV1().Nodes().Patch(ctx, c.opts.NodeName, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// notReady says why a node is not Ready; "" when it is.
func notReady(n *corev1.Node) string {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
			return ""
		}
		if cond.Type == corev1.NodeReady {
			return cond.Message
		}
	}
	return "the kubelet's first status"
}
