package reference

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/skiff-project/skiff/bootstrap"
)

// Options are the components of a cluster and how to run them.
type Options struct {
	// The components; upstream's by Binaries.Program, Skiff's by Skiff, or
	// absent. Etcd and APIServer are required.
	Etcd, APIServer, ControllerManager, Scheduler Program
	// Kubelet needs Runtime, a CRI runtime: Containerd(), or Skiff's.
	Kubelet, Runtime Program
	Proxy            Program

	// HollowNodes is how many simulated nodes Hollow (`skiff sim`) adds.
	HollowNodes int
	Hollow      Program

	// Images are archives for the runtime to load.
	Images []string

	// Dir holds data and logs. Default: a temporary one, deleted at the end.
	Dir string
	// PlainEtcd leaves TLS out between API server and etcd.
	PlainEtcd bool
	// Ready bounds each component's start. Default a minute.
	Ready time.Duration
	Out   io.Writer // progress; default: none
}

// NodeName is the name of the one real node.
const NodeName = "reference"

// Ranges of the cluster, seen only inside it.
const (
	serviceCIDR = "10.96.0.0/16"
	podCIDR     = "10.244.0.0/16"
	nodePodCIDR = "10.244.0.0/24"
)

// Cluster is a running cluster.
type Cluster struct {
	Kubeconfig string // of an administrator, usable where Start was called
	Dir        string
	Assets     *bootstrap.Assets
	EtcdURL    string

	opts    Options
	ip      string // all components listen here
	ports   map[string]int
	box     *box
	cgroup  string
	procs   []*Process // in the order they were started
	ownsDir bool
}

// Start runs the components, each once the one before is ready. Without a
// kubelet and proxy everything is on loopback; with one of them the whole
// cluster is in namespaces of its own, which needs root.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{opts: o, ip: "127.0.0.1", ports: map[string]int{}}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return err
	}
	for _, part := range c.parts() {
		if part.program.absent() {
			continue
		}
		if err := c.launch(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes what the components start on.
func (c *Cluster) prepare() error {
	o := &c.opts
	if o.Etcd.absent() || o.APIServer.absent() {
		return errors.New("a cluster needs an etcd and an API server")
	}
	if !o.Kubelet.absent() && o.Runtime.absent() {
		return errors.New("a kubelet needs a runtime")
	}
	if o.Ready == 0 {
		o.Ready = time.Minute
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	var err error
	if c.Dir = o.Dir; c.Dir == "" {
		c.ownsDir = true
		// Short, as sockets' names are bounded.
		if c.Dir, err = os.MkdirTemp("/tmp", "skref"); err != nil {
			return err
		}
	}
	for _, d := range []string{"log", "run"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o700); err != nil {
			return err
		}
	}
	if !o.Kubelet.absent() || !o.Proxy.absent() {
		if err := c.enterBox(); err != nil {
			return err
		}
	}
	if err := c.choosePorts(); err != nil {
		return err
	}
	c.Assets, err = bootstrap.Ensure(bootstrap.Options{
		DataDir: filepath.Join(c.Dir, "conf"), NodeName: NodeName, NodeIPs: []netip.Addr{netip.MustParseAddr(c.ip)},
		Server: "https://" + c.at("kube-apiserver"), ServiceCIDR: netip.MustParsePrefix(serviceCIDR),
	})
	if err != nil {
		return err
	}
	c.Kubeconfig = c.Assets.AdminConf
	c.EtcdURL = "https://" + c.at("etcd")
	if o.PlainEtcd {
		c.EtcdURL = "http://" + c.at("etcd")
	}
	return nil
}

// choosePorts finds ports nobody uses; in a box all are free.
func (c *Cluster) choosePorts() error {
	for i, name := range []string{"etcd", "etcd-peer", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubelet-healthz", "kube-proxy", "kube-proxy-metrics"} {
		if c.box != nil {
			c.ports[name] = 10200 + i
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		c.ports[name] = l.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// at is a component's address.
func (c *Cluster) at(name string) string {
	return net.JoinHostPort(c.ip, c.port(name))
}

func (c *Cluster) port(name string) string { return strconv.Itoa(c.ports[name]) }

func (c *Cluster) launch(ctx context.Context, p part) error {
	began := time.Now()
	if p.before != nil {
		if err := p.before(); err != nil {
			return fmt.Errorf("prepare %s: %w", p.name, err)
		}
	}
	proc, err := spawn(p.name, p.program, p.args, filepath.Join(c.Dir, "log"), c.box)
	if err != nil {
		return err
	}
	c.procs = append(c.procs, proc)
	if err := proc.waitReady(ctx, c.opts.Ready, p.ready); err != nil {
		return err
	}
	if p.after != nil {
		if err := p.after(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	fmt.Fprintf(c.opts.Out, "%s is ready after %d ms\n", p.name, time.Since(began).Milliseconds())
	return nil
}

// Replace ends a component and starts another program in its place, on the
// same data, addresses and flags.
func (c *Cluster) Replace(ctx context.Context, name string, with Program) error {
	for _, part := range c.parts() {
		if part.name != name {
			continue
		}
		c.Kill(name)
		part.program = with
		return c.launch(ctx, part)
	}
	return fmt.Errorf("no component is called %q", name)
}

// Kill ends a component, if it runs.
func (c *Cluster) Kill(name string) {
	c.procs = slices.DeleteFunc(c.procs, func(p *Process) bool {
		if p.Name == name {
			p.stop(5 * time.Second)
		}
		return p.Name == name
	})
}

// Processes are the components that were started, for accounting. What
// containerd starts for each pod is not among them.
func (c *Cluster) Processes() []*Process { return slices.Clone(c.procs) }

// Command is a command that runs where the components do and finds the
// cluster by KUBECONFIG. Start it with Run.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	return cmd
}

// Run starts a command among the components and waits for it.
func (c *Cluster) Run(cmd *exec.Cmd) error {
	if err := c.box.start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Stop ends all processes and deletes what the cluster left on the machine. A
// process that had ended by itself, as one does that lost its leader election
// lease, is an error: what was asked of the cluster since then was not answered.
// It may be called again.
func (c *Cluster) Stop() (err error) {
	for _, p := range slices.Backward(c.procs) {
		select {
		case <-p.exited:
			err = errors.Join(err, fmt.Errorf("%s ended by itself: %v; the end of its log:\n%s", p.Name, p.err, Tail(p.Log, 12)))
		default:
		}
		p.stop(5 * time.Second)
	}
	c.procs = nil
	if c.box != nil {
		c.box.close()
		c.box = nil
	}
	err = errors.Join(err, removeCgroups(c.cgroup))
	if c.ownsDir {
		err = errors.Join(err, os.RemoveAll(c.Dir))
	}
	return err
}

// get succeeds when a URL answers 200 to the administrator, or to etcd's.
func (c *Cluster) get(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		pair := c.Assets.Admin.TLS()
		if url == c.EtcdURL+"/health" {
			pair = c.Assets.EtcdHealthcheck.TLS()
		}
		// Whose certificate answers is the clients' concern.
		t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}}
		defer t.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := t.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 2048))
			return fmt.Errorf("%s answers %s: %s", url, resp.Status, body)
		}
		return nil
	}
}
