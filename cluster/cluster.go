// Package cluster is the composition root: it wires the components of one
// node, or of a whole cluster in one process, from explicit lists, and starts
// and stops them in order. Components know each other only through the API;
// what they are handed here is configuration and connections.
package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/audit"
	"github.com/skiff-project/skiff/apiserver/authconfig"
	"github.com/skiff-project/skiff/apiserver/plugins"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/cluster/rotation"
	"github.com/skiff-project/skiff/internal/gcpace"
	"github.com/skiff-project/skiff/network"
	"github.com/skiff-project/skiff/runtime"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

// step is one stage of a start.
type step struct {
	name string
	run  func(context.Context) (detail string, err error)
}

// Cluster is what runs in this process: a whole cluster, or one node of one.
type Cluster struct {
	opts     Options
	progress Progress
	begun    time.Time
	lock     *lock
	claims   claims
	logs     *logs
	log      *slog.Logger

	assets   *bootstrap.Assets
	store    store.Store
	shared   bool            // other API servers may be at work on the store
	side     *embedded.Store // etcd's users, roles, alarms and v2 keys
	api      *apiserver.Server
	listener net.Listener // the API server's, if it is open already; nil: it listens on APIPort
	// keys are what the store, whose keys begin with keyPrefix, is encrypted with; nil: nothing.
	keys                      *rotation.Keys
	encryptionFile, keyPrefix string
	audit                     *audit.Auditor
	tuning                    apiserver.Tuning
	access                    authconfig.Options
	// remote leads to an API server of another process; nil: api is it.
	remote        *rest.Config
	accountTokens *accountTokens // remote: what controllers show there; nil: remote's own credentials
	admission     plugins.Choice
	noPrivileged  bool     // containers may not be
	frontNames    []string // front proxies' common names; empty: any the front-proxy CA signed
	// clusterIPRouting sends what the API server has for a Service to its cluster IP.
	clusterIPRouting bool
	minTLS           uint16                                               // of the API's port; 0: TLS 1.2
	cipherSuites     []uint16                                             // nil: Go's
	byName           func(*tls.ClientHelloInfo) (*tls.Certificate, error) // what the API's port shows; nil: the serving certificate
	kubeletTLS       *tls.Config                                          // to kubelets; nil: with the cluster's own certificates
	// accounts is how service account tokens are made and checked, but for
	// the signing key, which is an asset; its zero value is good.
	accounts  serviceaccount.Config
	tokens    *serviceaccount.Tokens
	client    kubernetes.Interface // as the cluster's own administrator
	informers informers.SharedInformerFactory
	network   *network.Network
	runtime   *runtime.Runtime
	wire      *network.Network // between the nodes of this machine; nil with one
	nodes     []*nodeProcess   // the further ones

	// Two layers, stopped in turn: the agents that use the API, then what serves it.
	agents, servers *layer

	mu     sync.Mutex
	health map[string]string
	order  []string
	failed chan error
	abort  context.CancelCauseFunc // ends a start that can no longer succeed
}

// layer is a set of components that end together.
type layer struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newLayer() *layer {
	ctx, cancel := context.WithCancel(context.Background())
	return &layer{ctx: ctx, cancel: cancel}
}

func (l *layer) stop() {
	l.cancel()
	l.wg.Wait()
}

// Up starts the cluster of opts.DataDir, new or resumed, and returns when its
// node is Ready, or with the first thing that went wrong. What it started is
// stopped again on an error; pods that already ran are left running.
func Up(ctx context.Context, opts Options, timeout time.Duration, progress Progress) (*Cluster, error) {
	c := newCluster(progress)
	c.set(opts.API)
	return c.up(ctx, timeout, []step{
		{"checks", func(context.Context) (string, error) { return c.prepare(opts) }},
		{"certificates", c.ensureAssets},
		{"store", c.startStore},
		{"API server", c.startAPI},
		{"container runtime", c.startRuntime},
		{"control plane", c.startControlPlane},
		{"control socket", c.startControl},
		{"node", c.startNode},
		{"Ready", c.waitReady},
	})
}

// up takes the steps of a start, and stops what they started if one fails.
func (c *Cluster) up(ctx context.Context, timeout time.Duration, steps []step) (_ *Cluster, err error) {
	c.paceCollector()
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	ctx, c.abort = context.WithCancelCause(ctx)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := c.progress.steps(ctx, steps); err != nil {
		return nil, err
	}
	if err := c.waitNodes(ctx); err != nil {
		return nil, err
	}
	c.servers.wg.Go(func() { c.rest(c.servers.ctx) })
	return c, nil
}

func newCluster(progress Progress) *Cluster {
	return &Cluster{
		claims:   claims{known: knownClusters},
		progress: progress, begun: time.Now(), agents: newLayer(), servers: newLayer(),
		frontNames: []string{"front-proxy-client"},
		health:     map[string]string{}, failed: make(chan error, 1), abort: func(error) {},
	}
}

// paceCollector keeps an idle cluster's heap small and a busy one's collections few.
func (c *Cluster) paceCollector() {
	c.servers.wg.Go(func() { gcpace.Pace{Rest: 50, Slack: 64 << 20}.Keep(c.servers.ctx) })
}

// prepare settles the options and claims the folder.
func (c *Cluster) prepare(opts Options) (string, error) {
	o, err := opts.resolve(&c.claims)
	if err != nil {
		return "", err
	}
	if err := preflight(o); err != nil {
		return "", err
	}
	if c.lock, err = takeLock(o); err != nil {
		return "", err
	}
	if err := errors.Join(checkPorts(o), c.claims.check(o)); err != nil {
		return "", err
	}
	c.opts = o
	c.logs = &logs{dir: o.path("log"), level: slog.LevelInfo}
	if c.log, err = c.logs.logger("cluster"); err != nil {
		return "", err
	}
	opts.API.Audit.Logger = c.log
	if c.audit, err = audit.New(opts.API.Audit); err != nil {
		return "", err
	}
	routeKlog(c.log)
	if err := remember(knownClusters, o); err != nil {
		c.log.Warn("another cluster may take this one's address ranges while it is stopped", "err", err)
	}
	return fmt.Sprintf("node %s at %s", o.NodeName, o.NodeIP), o.save()
}

// Wait blocks until ctx ends or a component fails, then stops the cluster.
// Pods keep running: Down stops them.
func (c *Cluster) Wait(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
	case err = <-c.failed:
	}
	c.stop()
	return err
}

// stop ends the components, users of the API first.
func (c *Cluster) stop() {
	c.agents.stop()
	if c.informers != nil {
		c.informers.Shutdown()
	}
	c.servers.stop()
	if c.api == nil && c.listener != nil { // nobody else closes it
		c.listener.Close()
	}
	var errs []error
	if c.runtime != nil {
		errs = append(errs, c.runtime.Close(context.Background()))
	}
	for _, n := range []*network.Network{c.network, c.wire} {
		if n != nil {
			n.Close()
		}
	}
	if c.keys != nil {
		c.keys.Set.Close()
	}
	c.audit.Close()
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	if c.side != nil {
		errs = append(errs, c.side.Close())
	}
	if err := errors.Join(errs...); err != nil && c.log != nil {
		c.log.Error("stop", "err", err)
	}
	if c.logs != nil {
		c.logs.close()
	}
	c.claims.release()
	if c.lock != nil {
		c.lock.release()
	}
}

// start runs a component in a layer. A component that ends before it is told
// to ends the cluster: a node that is half there helps nobody.
func (c *Cluster) start(l *layer, name string, run func(context.Context) error) {
	c.setHealth(name, "ok")
	l.wg.Go(func() {
		err := run(l.ctx)
		if l.ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("ended without an error")
		}
		err = fmt.Errorf("%s: %w", name, err)
		c.setHealth(name, err.Error())
		c.log.Error("component failed", "component", name, "err", err)
		c.abort(err)
		select {
		case c.failed <- err:
		default: // another one was first
		}
	})
}

func (c *Cluster) setHealth(name, health string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.order, name) {
		c.order = append(c.order, name)
	}
	c.health[name] = health
}

func (c *Cluster) ownHealth(name string) (health string, here bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	health, here = c.health[name]
	return health, here
}

// status is the cluster as `skiff status` shows it.
func (c *Cluster) status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{
		Version: Version, Kubernetes: KubernetesVersion, PID: os.Getpid(), Since: c.begun,
		Options: c.opts,
	}
	if c.assets != nil {
		s.CertificateExpiry = c.assets.Expiry()
	}
	for _, name := range c.order {
		s.Components = append(s.Components, ComponentStatus{Name: name, Health: c.health[name], Detail: c.detail(name)})
	}
	return s
}

// detail is where a component can be reached, for those that can.
func (c *Cluster) detail(name string) string {
	switch name {
	case "apiserver":
		return fmt.Sprintf("https://%s:%d", c.opts.NodeIP, c.opts.APIPort)
	case "etcd":
		return fmt.Sprintf("127.0.0.1:%d", c.opts.EtcdPort)
	case "kubelet":
		return fmt.Sprintf("https://%s:%d", c.opts.NodeIP, c.opts.KubeletPort)
	}
	for _, p := range c.nodes {
		if name == "node "+p.opts.NodeName {
			return p.opts.NodeIP.String()
		}
	}
	return ""
}

// startControl answers skiff's own commands.
func (c *Cluster) startControl(context.Context) (string, error) {
	serve, err := serveControl(c.servers.ctx, c.opts.ControlSocket(), control{status: c.status, images: c.runtime, rotate: func(ctx context.Context, step func(rotation.Step)) error {
		return c.keys.Rotate(ctx, c.config("system:apiserver", auth.GroupMasters), c.store, step)
	}})
	if err != nil {
		return "", err
	}
	c.start(c.servers, "control socket", func(context.Context) error { return serve() })
	return c.opts.ControlSocket(), nil
}
