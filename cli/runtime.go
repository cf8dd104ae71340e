package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/skiff-project/skiff/cli/box"
	"github.com/skiff-project/skiff/cluster"
)

type runtimeFlags struct {
	opts         cluster.Runtime
	clusterCIDRs []string
	serviceCIDR  string
	podCIDRs     []string
}

func newRuntime() *program {
	p := newProgram("runtime", "The embedded container runtime by itself, behind CRI: for crictl, and for upstream's kubelet")
	f := &runtimeFlags{}
	fs := p.fs
	fs.StringVar(&f.opts.Socket, "listen", "/run/skiff/runtime.sock", "CRI socket to make, a path or unix:///path")
	fs.StringVar(&f.opts.DataDir, "data-dir", cluster.DefaultDataDir, "folder of images, sandboxes and addresses")
	fs.StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "range of pods' addresses, which is not masqueraded")
	fs.StringVar(&f.serviceCIDR, "service-cluster-ip-range", "", "range of Services' addresses, routed to the pods' bridge")
	fs.StringSliceVar(&f.podCIDRs, "pod-cidr", nil, "this node's pods' addresses (default: what the kubelet says)")
	p.run = func(ctx context.Context, log *slog.Logger) error {
		if err := f.settle(); err != nil {
			return err
		}
		return f.opts.Run(ctx, cluster.Component{Log: log})
	}
	return p
}

func (f *runtimeFlags) settle() error {
	o := &f.opts
	o.Socket = strings.TrimPrefix(o.Socket, "unix://")
	if !filepath.IsAbs(o.Socket) {
		return fmt.Errorf("--listen: %q is not a path", o.Socket)
	}
	o.Applets = box.Names()
	var err error
	if o.ClusterCIDRs, err = prefixes("cluster-cidr", f.clusterCIDRs); err != nil {
		return err
	}
	if o.PodCIDRs, err = prefixes("pod-cidr", f.podCIDRs); err != nil || f.serviceCIDR == "" {
		return err
	}
	if o.ServiceCIDR, err = netip.ParsePrefix(f.serviceCIDR); err != nil {
		return fmt.Errorf("--service-cluster-ip-range: %q is not an address range such as 10.0.0.0/24", f.serviceCIDR)
	}
	return nil
}
