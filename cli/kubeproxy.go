package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/skiff-project/skiff/cluster"
)

var kubeProxyHarmless = []harmless{
	{"config-sync-period iptables-sync-period iptables-min-sync-period iptables-masquerade-bit iptables-localhost-nodeports? " +
		"ipvs-sync-period ipvs-min-sync-period ipvs-scheduler ipvs-exclude-cidrs ipvs-strict-arp? ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout nftables-sync-period",
		"it tunes another mode, or a loop where events are acted on at once"},
	{"bind-address-hard-fail? oom-score-adj", "a port that is taken is always an error; the score is the service manager's to set"},
}

// kubeProxyConfig is KubeProxyConfiguration.
var kubeProxyConfig = configFile{apiVersion: "kubeproxy.config.k8s.io/v1alpha1", kind: "KubeProxyConfiguration", fields: `
	featureGates --feature-gates
	clientConnection.kubeconfig --kubeconfig
	clientConnection.qps --kube-api-qps
	clientConnection.burst --kube-api-burst
	clientConnection.contentType --kube-api-content-type
	clientConnection.acceptContentTypes ~
	logging ~
	hostnameOverride --hostname-override
	bindAddress --bind-address
	healthzBindAddress --healthz-bind-address
	metricsBindAddress --metrics-bind-address
	bindAddressHardFail ~
	enableProfiling ~
	showHiddenMetricsForVersion ~
	mode --proxy-mode
	iptables ~
	ipvs ~
	winkernel ~
	windowsRunAsService =
	nftables.masqueradeBit = 14
	nftables.masqueradeAll --masquerade-all
	nftables.syncPeriod ~
	nftables.minSyncPeriod --nftables-min-sync-period
	detectLocalMode = ClusterCIDR
	detectLocal =
	clusterCIDR --cluster-cidr
	nodePortAddresses --nodeport-addresses
	oomScoreAdj ~
	conntrack =
	configSyncPeriod ~
	portRange =
`}

type kubeProxyFlags struct {
	opts         cluster.Proxy
	config, mode string
	hostname     string
	bind         string
	healthz      string
	metrics      string
	clusterCIDRs []string
	addresses    []string
	cleanup      bool
}

func newKubeProxy() *program {
	p, _ := kubeProxyProgram()
	return p
}

func kubeProxyProgram() (*program, *kubeProxyFlags) {
	p := newProgram("kube-proxy", "The Service proxy by itself, by nftables", append(kubeProxyHarmless, profilingHarmless)...)
	f := &kubeProxyFlags{}
	fs, c := p.fs, &f.opts.Connection
	fs.StringVar(&f.config, "config", "", "file with a KubeProxyConfiguration; flags win over it")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach the API server (default: this pod's service account)")
	fs.StringVar(&c.Server, "master", "", "the API server's URL; overrides the kubeconfig's")
	fs.Float32Var(&c.QPS, "kube-api-qps", 5, "requests a second to the API server")
	fs.IntVar(&c.Burst, "kube-api-burst", 10, "requests at once")
	fs.StringVar(&c.ContentType, "kube-api-content-type", "application/vnd.kubernetes.protobuf", "encoding of requests")
	fs.StringVar(&f.mode, "proxy-mode", "", "nftables; empty means the same")
	fs.StringVar(&f.hostname, "hostname-override", "", "name of this node (default: the host name)")
	fs.StringVar(&f.bind, "bind-address", "0.0.0.0", "this node's address, until its Node object says it")
	fs.StringVar(&f.healthz, "healthz-bind-address", "0.0.0.0:10256", "address and port of /healthz")
	fs.StringVar(&f.metrics, "metrics-bind-address", "127.0.0.1:10249", "address and port of /metrics")
	fs.StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "range of pods' addresses; what comes from elsewhere to a ClusterIP is masqueraded")
	fs.StringSliceVar(&f.addresses, "nodeport-addresses", nil, "ranges of local addresses that answer node ports, or \"primary\" (default: the node's own)")
	fs.DurationVar(&f.opts.MinSyncPeriod, "nftables-min-sync-period", 10*time.Millisecond, "least time between two updates of the kernel")
	p.limited("masquerade-all", "false", "what comes from a pod keeps its address", "false")
	p.limited("detect-local-mode", "", "pods are known by --cluster-cidr", "", "ClusterCIDR")
	p.limited("pod-interface-name-prefix", "", "pods are known by --cluster-cidr")
	p.limited("pod-bridge-interface", "", "pods are known by --cluster-cidr")
	p.limited("init-only", "false", "there is nothing to prepare apart from running", "false")
	fs.BoolVar(&f.cleanup, "cleanup", false, "remove the rules and end")
	for _, name := range []string{"conntrack-max-per-core", "conntrack-min", "conntrack-tcp-timeout-established", "conntrack-tcp-timeout-close-wait",
		"conntrack-udp-timeout", "conntrack-udp-timeout-stream"} {
		p.limited(name, "0", "the host's conntrack settings are left alone", "0", "0s")
	}
	p.limited("conntrack-tcp-be-liberal", "false", "the host's conntrack settings are left alone", "false")
	p.run = func(ctx context.Context, log *slog.Logger) error {
		f.opts.Log, f.opts.Flags = log, p.flags()
		if err := f.settle(p); err != nil {
			return err
		}
		if f.cleanup {
			return cluster.PurgeProxy()
		}
		return f.opts.Run(ctx)
	}
	return p, f
}

func (f *kubeProxyFlags) settle(p *program) error {
	if f.config != "" {
		if err := p.load(f.config, kubeProxyConfig); err != nil {
			return fmt.Errorf("--config: %w", err)
		}
	}
	switch f.mode {
	case "", "nftables":
	case "iptables", "ipvs", "kernelspace":
		return fmt.Errorf("--proxy-mode: %s is not supported: leave it out or give nftables", f.mode)
	default:
		return fmt.Errorf("--proxy-mode: unknown mode %q; nftables is known", f.mode)
	}
	o := &f.opts
	var err error
	if o.NodeName, err = nodeName(f.hostname); err != nil {
		return err
	}
	bind, err := netip.ParseAddr(f.bind)
	if err != nil {
		return fmt.Errorf("--bind-address: %q is not an IP address", f.bind)
	}
	if !bind.IsUnspecified() {
		o.NodeIP = bind
	}
	if o.ClusterCIDRs, err = prefixes("cluster-cidr", f.clusterCIDRs); err != nil {
		return err
	}
	if len(f.addresses) != 1 || f.addresses[0] != "primary" {
		if o.NodePortAddresses, err = prefixes("nodeport-addresses", f.addresses); err != nil {
			return err
		}
	}
	return errors.Join(address("healthz-bind-address", f.healthz, 10256, &o.HealthzAddr), address("metrics-bind-address", f.metrics, 10249, &o.MetricsAddr))
}

// address reads an address with or without a port; an empty one means not to serve.
func address(flag, s string, port int, dst *string) error {
	if s == "" {
		return nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		*dst = netip.AddrPortFrom(a, uint16(port)).String()
		return nil
	}
	if _, err := netip.ParseAddrPort(s); err != nil {
		if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
			return fmt.Errorf("--%s: %q is neither an IP address nor one with a port", flag, s)
		}
	}
	if _, port, _ := net.SplitHostPort(s); port != "0" {
		*dst = s
	}
	return nil
}
