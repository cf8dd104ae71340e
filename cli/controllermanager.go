package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/skiff-project/skiff/cluster"
	"github.com/skiff-project/skiff/controller"
	"github.com/skiff-project/skiff/controller/certificates"
	"github.com/skiff-project/skiff/controller/legacytokens"
)

var controllerManagerHarmless = []harmless{
	{"concurrent-cron-job-syncs concurrent-daemonset-syncs concurrent-deployment-syncs concurrent-device-taint-eviction-syncs concurrent-disruption-syncs " +
		"concurrent-endpoint-syncs concurrent-ephemeralvolume-syncs concurrent-gc-syncs concurrent-horizontal-pod-autoscaler-syncs concurrent-job-syncs " +
		"concurrent-namespace-syncs concurrent-rc-syncs concurrent-replicaset-syncs concurrent-resource-quota-syncs concurrent-resourceclaim-syncs " +
		"concurrent-service-endpoint-syncs concurrent-service-syncs concurrent-serviceaccount-token-syncs concurrent-statefulset-syncs " +
		"concurrent-ttl-after-finished-syncs concurrent-validating-admission-policy-status-syncs mirroring-concurrent-service-endpoint-syncs",
		"each controller has the workers it needs"},
	{"min-resync-period controller-start-interval controller-shutdown-timeout namespace-sync-period resource-quota-sync-period node-monitor-period node-sync-period " +
		"endpoint-updates-batch-period endpointslice-updates-batch-period mirroring-endpointslice-updates-batch-period pvclaimbinder-sync-period",
		"controllers act on events, at once"},
	{"cluster-name external-cloud-volume-plugin flex-volume-plugin-dir route-reconciliation-period configure-cloud-routes? allow-untagged-cloud? cloud-config",
		"there is no cloud provider here"},
	{"attach-detach-reconcile-sync-period disable-attach-detach-reconcile-sync? disable-force-detach-on-timeout? enable-dynamic-provisioning? " +
		"pv-recycler-increment-timeout-nfs pv-recycler-minimum-timeout-hostpath pv-recycler-minimum-timeout-nfs pv-recycler-timeout-increment-hostpath " +
		"horizontal-pod-autoscaler-cpu-initialization-period horizontal-pod-autoscaler-downscale-stabilization horizontal-pod-autoscaler-initial-readiness-delay " +
		"horizontal-pod-autoscaler-sync-period horizontal-pod-autoscaler-tolerance",
		"the controller it tunes is not there"},
}

// missing are upstream's controllers that Skiff does not have. To leave one out
// is no error; to ask for one by name is, but for those of tolerated.
var missing = strings.Fields(`attach-detach-controller attachdetach bootstrap-signer-controller bootstrapsigner cloud-node-lifecycle-controller
	device-taint-eviction-controller horizontal-pod-autoscaler-controller horizontalpodautoscaling
	kube-apiserver-serving-clustertrustbundle-publisher-controller
	node-route-controller route nodeipam-controller persistentvolume-expander-controller persistentvolume-expander
	resourceclaim-controller selinux-warning-controller service-lb-controller service storageversion-garbage-collector-controller
	storage-version-gc taint-eviction-controller token-cleaner-controller tokencleaner ttl-controller ttl
	validatingadmissionpolicy-status-controller`)

// tolerated are those kubeadm names in every manifest it writes.
var tolerated = []string{"bootstrapsigner", "tokencleaner", "bootstrap-signer-controller", "token-cleaner-controller"}

type controllerManagerFlags struct {
	opts         cluster.ControllerManager
	common       componentFlags
	clusterCIDRs []string
	allocate     bool
	serviceCIDRs []string
	mask, mask4  int
	signing      authorityFiles             // for all signers
	signers      map[string]*authorityFiles // by signer's name, instead of that
}

type authorityFiles struct{ cert, key string }

func newControllerManager() *program {
	p := newProgram("kube-controller-manager", "The controllers by themselves", append(controllerManagerHarmless, servingHarmless, profilingHarmless)...)
	f := &controllerManagerFlags{}
	f.common.opts = &f.opts.Component
	f.common.add(p, 10257, 20, 30)
	fs, c := p.fs, &f.opts.Controllers
	fs.StringSliceVar(&c.Enabled, "controllers", []string{"*"}, "controllers to run: names, '*' for those on by default, '-name' to leave one out")
	fs.BoolVar(&f.allocate, "allocate-node-cidrs", false, "give each node a block of --cluster-cidr")
	fs.StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "range of pods' addresses, one or one per family")
	fs.StringSliceVar(&f.serviceCIDRs, "service-cluster-ip-range", nil, "range of Services' addresses, kept out of nodes' blocks")
	p.limited("cidr-allocator-type", "RangeAllocator", "blocks are given from --cluster-cidr", "RangeAllocator")
	fs.IntVar(&f.mask, "node-cidr-mask-size", 0, "size of a node's block (default 24, and 64 for IPv6)")
	fs.IntVar(&f.mask4, "node-cidr-mask-size-ipv4", 0, "size of a node's IPv4 block (default 24)")
	fs.IntVar(&c.NodeMaskSizeIPv6, "node-cidr-mask-size-ipv6", 0, "size of a node's IPv6 block (default 64)")
	fs.StringVar(&f.opts.RootCAFile, "root-ca-file", "", "authority published to every namespace (default: none is)")
	fs.StringVar(&f.opts.TokenKeyFile, "service-account-private-key-file", "", "key that signs service account tokens of Secrets (default: they get none)")
	fs.BoolVar(&f.opts.AccountCredentials, "use-service-account-credentials", false, "run each controller as a service account of its own")
	fs.DurationVar(&c.Node.MonitorGracePeriod, "node-monitor-grace-period", 0, "how long a node may be silent before it is Unknown (default 50s)")
	fs.DurationVar(&c.Node.StartupGracePeriod, "node-startup-grace-period", 0, "the same for a node that never reported (default 1m0s)")
	fs.Float64Var(&c.Node.EvictionRate, "node-eviction-rate", 0, "nodes emptied per second and zone (default 0.1)")
	fs.Float64Var(&c.Node.SecondaryEvictionRate, "secondary-node-eviction-rate", 0, "the same for a large zone that is mostly down (default 0.01)")
	fs.IntVar(&c.Node.LargeClusterThreshold, "large-cluster-size-threshold", 0, "nodes that make a zone large (default 50)")
	fs.Float64Var(&c.Node.UnhealthyZoneThreshold, "unhealthy-zone-threshold", 0, "share of nodes down that makes a zone mostly down (default 0.55)")
	files := func(to *authorityFiles, name, what string) {
		fs.StringVar(&to.cert, "cluster-signing-"+name+"cert-file", "", "certificate of the authority that signs "+what)
		fs.StringVar(&to.key, "cluster-signing-"+name+"key-file", "", "its key")
	}
	files(&f.signing, "", "CertificateSigningRequests (default: none are signed)")
	f.signers = map[string]*authorityFiles{}
	for _, signer := range certificates.Signers() {
		name := strings.TrimPrefix(signer, "kubernetes.io/")
		if signer == certificatesv1.KubeAPIServerClientKubeletSignerName {
			name = "kubelet-client"
		}
		f.signers[signer] = &authorityFiles{}
		files(f.signers[signer], name+"-", "those of signer "+signer+", instead")
	}
	fs.DurationVar(&c.SigningDuration, "cluster-signing-duration", 365*24*time.Hour, "the longest life of what is signed; requests may ask for less")
	fs.DurationVar(&c.LegacyTokenPeriod, "legacy-service-account-token-clean-up-period", legacytokens.DefaultPeriod,
		"how long a token that was made for its service account is kept unused, and again once it is marked invalid")
	fs.IntVar(&c.TerminatedPodLimit, "terminated-pod-gc-threshold", 12500, "finished pods that are kept; 0 or less: all")
	p.limited("enable-garbage-collector", "true", "leave garbage-collector-controller out with --controllers", "true")
	p.limited("enable-hostpath-provisioner", "false", "there is no such provisioner", "false")
	p.limited("enable-leader-migration", "false", "there is no other manager to migrate from", "false")
	p.limited("cloud-provider", "", "there is no cloud provider here", "", "external")
	p.limited("max-endpoints-per-slice", "100", "slices hold 100 endpoints", "100")
	p.limited("mirroring-max-endpoints-per-subset", "1000", "1000 endpoints of a subset are mirrored", "1000")
	p.run = func(ctx context.Context, log *slog.Logger) error {
		f.opts.Log, c.Log, f.opts.Flags = log, log, p.flags()
		if err := f.settle(p); err != nil {
			return err
		}
		return f.opts.Run(ctx)
	}
	return p
}

// authorities are those of the signers: one for all, or some of their own; a signer without one
// does not sign.
func (f *controllerManagerFlags) authorities() (map[string]certificates.Authority, error) {
	own := map[string]certificates.Authority{}
	for signer, p := range f.signers {
		switch {
		case (p.cert == "") != (p.key == ""):
			return nil, fmt.Errorf("signer %s needs both its certificate and its key file", signer)
		case p.cert != "":
			own[signer] = certificates.FromFiles(p.cert, p.key)
		}
	}
	all := f.signing
	switch {
	case all.cert == "" && all.key == "":
		return own, nil
	case all.cert == "" || all.key == "":
		return nil, errors.New("--cluster-signing-cert-file and --cluster-signing-key-file need each other")
	case len(own) > 0:
		return nil, errors.New("--cluster-signing-cert-file and --cluster-signing-key-file cannot be given together with other --cluster-signing-*-file flags")
	}
	return certificates.ForAll(certificates.FromFiles(all.cert, all.key)), nil
}

func (f *controllerManagerFlags) settle(p *program) error {
	if err := f.common.settle(); err != nil {
		return err
	}
	c := &f.opts.Controllers
	if c.TerminatedPodLimit <= 0 {
		c.TerminatedPodLimit = -1
	}
	var err error
	if c.Authorities, err = f.authorities(); err != nil {
		return err
	}
	if c.Enabled, err = knownControllers(c.Enabled, f.opts.Log); err != nil {
		return err
	}
	ranges, err := prefixes("cluster-cidr", f.clusterCIDRs)
	if err != nil {
		return err
	}
	services, err := prefixes("service-cluster-ip-range", f.serviceCIDRs)
	if err != nil {
		return err
	}
	if len(services) > 0 {
		c.ServiceCIDR = services[0]
	}
	if f.allocate {
		if len(ranges) == 0 {
			return errors.New("--allocate-node-cidrs needs --cluster-cidr")
		}
		c.ClusterCIDRs = ranges
	}
	if p.given("node-cidr-mask-size") && (p.given("node-cidr-mask-size-ipv4") || p.given("node-cidr-mask-size-ipv6")) {
		return errors.New("--node-cidr-mask-size and --node-cidr-mask-size-ipv4 or -ipv6 exclude each other")
	}
	c.NodeCIDRMaskSize = max(f.mask, f.mask4)
	if f.mask != 0 && len(ranges) > 0 && ranges[0].Addr().Is6() {
		c.NodeCIDRMaskSize, c.NodeMaskSizeIPv6 = 0, f.mask
	}
	return nil
}

// knownControllers takes upstream's controllers that are not there out of a
// --controllers list, where that changes nothing or kubeadm asks for it.
func knownControllers(names []string, log *slog.Logger) ([]string, error) {
	have := controller.Names()
	var out []string
	for _, n := range names {
		plain, off := strings.CutPrefix(n, "-")
		switch {
		case !slices.Contains(missing, plain) || slices.Contains(have, plain):
			out = append(out, n)
		case off:
		case slices.Contains(tolerated, plain):
			log.Warn("this controller is not there: bootstrap tokens stay as they are made", "controller", plain)
		default:
			return nil, fmt.Errorf("--controllers: %s is one of upstream's that is not there; leave it out", plain)
		}
	}
	return out, nil
}

// prefixes reads address ranges.
func prefixes(flag string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--%s: %q is not an address range such as 10.0.0.0/24", flag, s)
		}
		out = append(out, p)
	}
	return out, nil
}
