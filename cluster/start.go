package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver/plugins"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/sim/hollow"
	"github.com/skiff-project/skiff/store/embedded"
)

// TB is what Start uses of *testing.T, *testing.B and *testing.F; package
// testing itself stays out of the product.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// TestOptions says what Start and InMemory start. The zero value is a control
// plane with controllers and scheduler and no node. Options is for clusters
// that live in a folder on a machine, so these are a type of their own.
type TestOptions struct {
	// HollowNodes are simulated nodes that run the pods bound to them; see
	// sim/hollow. Start returns when all are Ready. Default 0: pods stay
	// Pending, and a test may play the kubelet itself.
	HollowNodes int
	// Hollow tells how those nodes behave; its Client, Nodes and Log are set here.
	Hollow hollow.Config
	// APIOnly leaves out controllers, scheduler and the ServiceAccount
	// admission that depends on them: what controller-runtime's envtest has.
	APIOnly bool
	// Controllers is upstream's --controllers: names, "*" for those on by
	// default, "-name" to leave one out. Default "*".
	Controllers []string
	// EnableAdmission and DisableAdmission name admission plugins to add and to leave out, AdmissionConfig is the
	// file that configures them: kube-apiserver's flags of similar names. Default none.
	EnableAdmission, DisableAdmission []string
	AdmissionConfig                   string
	// Address is where the API is served over TLS. Default 127.0.0.1 and a
	// free port.
	Address string
	// ServiceCIDR holds ClusterIPs. Default 10.96.0.0/12.
	ServiceCIDR netip.Prefix
	// PodCIDR is cut into a /24 per node. Default 10.128.0.0/9, which is
	// enough for 32,768 nodes.
	PodCIDR netip.Prefix
	// Log takes every component's log. Default: discard.
	Log *slog.Logger
}

func (o *TestOptions) setDefaults() error {
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	if !o.ServiceCIDR.IsValid() {
		o.ServiceCIDR = netip.MustParsePrefix("10.96.0.0/12")
	}
	if !o.PodCIDR.IsValid() {
		o.PodCIDR = netip.MustParsePrefix("10.128.0.0/9")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.APIOnly {
		o.DisableAdmission = append(o.DisableAdmission[:len(o.DisableAdmission):len(o.DisableAdmission)], "ServiceAccount")
	}
	if o.APIOnly && o.HollowNodes > 0 {
		return errors.New("hollow nodes need the controllers: leave out APIOnly")
	}
	return Options{PodCIDR: o.PodCIDR, ServiceCIDR: o.ServiceCIDR}.validate()
}

// startTimeout bounds Start, which takes well under a second without nodes.
const startTimeout = time.Minute

// testGrace is how long the API server waits at its end for clients that keep
// idle connections: not at all, their test is over.
const testGrace = time.Millisecond

// Start runs a control plane in this process for the length of a test: API
// server, controllers and scheduler on a store in memory. It needs no root,
// writes no file and leaves nothing behind; any number run side by side. It
// returns when the API is ready and pods can be created in namespace
// "default", and fails the test otherwise, or if a component fails later.
func Start(t TB, opts TestOptions) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := InMemory(ctx, opts)
	if err != nil {
		t.Fatalf("start a control plane: %v", err)
		return nil
	}
	t.Cleanup(func() {
		select {
		case err := <-c.failed:
			t.Errorf("the control plane failed: %v", err)
		default:
		}
		c.Stop()
	})
	return c
}

// InMemory is Start without a test: the caller ends the cluster with Stop, or
// with Wait.
func InMemory(ctx context.Context, opts TestOptions) (_ *Cluster, err error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	chosen, err := plugins.Choose(opts.EnableAdmission, opts.DisableAdmission, opts.AdmissionConfig)
	if err != nil {
		return nil, err
	}
	c := newCluster(nil)
	c.log, c.logs = opts.Log, &logs{all: opts.Log}
	c.admission, c.tuning.ShutdownGrace = chosen, testGrace
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	ctx, c.abort = context.WithCancelCause(ctx)
	if err := c.openInMemory(opts); err != nil {
		return nil, err
	}
	if _, err := c.startAPI(ctx); err != nil {
		return nil, err
	}
	if opts.APIOnly {
		return c, nil
	}
	if err := errors.Join(c.startControllers(opts.Controllers), c.startScheduler()); err != nil {
		return nil, err
	}
	c.informers.Start(c.agents.ctx.Done())
	if opts.HollowNodes > 0 {
		if err := c.startHollow(opts); err != nil {
			return nil, err
		}
	}
	return c, c.waitUsable(ctx, opts)
}

// openInMemory makes what the API server needs: an open port, certificates
// for it, and an empty store.
func (c *Cluster) openInMemory(opts TestOptions) error {
	ln, err := net.Listen("tcp", opts.Address)
	if err != nil {
		return err
	}
	c.listener = ln
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	c.opts = Options{
		NodeName: "in-memory", NodeIP: at.Addr(), APIPort: int(at.Port()),
		PodCIDR: opts.PodCIDR, ServiceCIDR: opts.ServiceCIDR, Domain: "cluster.local",
	}
	c.assets, err = bootstrap.InMemory(bootstrap.Options{
		NodeName: c.opts.NodeName, NodeIPs: nodeIPs(c.opts), Server: "https://" + at.String(),
		ServiceCIDR: c.opts.ServiceCIDR, Domain: c.opts.Domain,
	})
	if err != nil {
		return err
	}
	c.store, err = embedded.Open(embedded.Options{Decorate: registry.Decorate, Index: registry.Index(all.Resources()), Log: opts.Log})
	return err
}

// waitUsable waits for what a first test may do right after the start: create
// a pod in "default", which needs its service account.
func (c *Cluster) waitUsable(ctx context.Context, opts TestOptions) error {
	err := poll(ctx, "the default service account", func(ctx context.Context) error {
		_, err := c.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil || opts.HollowNodes == 0 {
		return err
	}
	nodes := c.informers.Core().V1().Nodes().Lister()
	return poll(ctx, "the hollow nodes", func(context.Context) error { return allReady(nodes, opts.HollowNodes) })
}

// Config connects to the API server over TLS on loopback, as an administrator
// with a client certificate. The caller may change what it gets.
func (c *Cluster) Config() *rest.Config {
	text, err := c.kubeconfig()
	if err == nil {
		var cfg *rest.Config
		if cfg, err = clientcmd.RESTConfigFromKubeConfig(text); err == nil {
			cfg.QPS = -1 // the server bounds itself; a client of the same process only loses time
			return cfg
		}
	}
	panic(fmt.Sprintf("the kubeconfig made here is not valid: %v", err))
}

// InProcessConfig is a connection to the same API server as the same
// administrator that does not leave the process: no TLS, no socket. A client
// that needs a host and certificates of its own, such as a WebSocket or SPDY
// dialler, wants Config.
func (c *Cluster) InProcessConfig() *rest.Config {
	return c.config(adminUser, "kubeadm:cluster-admins", auth.GroupMasters)
}

// Kubeconfig is the text of a kubeconfig that leads where Config does.
func (c *Cluster) Kubeconfig() []byte {
	text, err := c.kubeconfig()
	if err != nil {
		panic(fmt.Sprintf("the administrator's own key cannot be written: %v", err))
	}
	return text
}

const adminUser = "kubernetes-admin"

func (c *Cluster) kubeconfig() ([]byte, error) {
	host := c.opts.NodeIP
	if host.IsUnspecified() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	server := "https://" + netip.AddrPortFrom(host, uint16(c.opts.APIPort)).String()
	return bootstrap.Kubeconfig(server, c.assets.CA, adminUser, c.assets.Admin)
}

// Stop ends every component and waits for them. It may be called twice.
func (c *Cluster) Stop() { c.stop() }
