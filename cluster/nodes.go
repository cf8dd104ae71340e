package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/internal/innetns"
	"github.com/skiff-project/skiff/network"
)

// A further node of this machine is a process of its own in a network
// namespace of its own. The namespaces hang on a bridge as pods do, so the
// package network wires them too: a node there is a sandbox with an address of
// NodeCIDR, and this machine routes between them.

const (
	// nodeStop is how long a further node's process may take to end.
	nodeStop = 10 * time.Second
	// A node's process that ends is started again, after a pause that grows.
	nodeRetryFirst, nodeRetryLast = time.Second, 30 * time.Second
)

// furtherNodes are the options of the nodes besides the first. Their addresses
// are not settled yet.
func (o Options) furtherNodes() []Options {
	var list []Options
	for i := 2; i <= o.Nodes; i++ {
		n := o
		n.NodeName = o.NodeName + "-" + strconv.Itoa(i)
		n.DataDir = o.path("nodes", n.NodeName)
		n.Suffix += "n" + strconv.Itoa(i)
		n.Nodes, n.NodeIP, n.NodeCIDR = 1, netip.Addr{}, netip.Prefix{}
		list = append(list, n)
	}
	return list
}

// netns is where a further node's network namespace is kept.
func (o Options) netns() string { return o.path("netns") }

// nodeGateway is where further nodes reach this machine; none with one node.
func (o Options) nodeGateway() []string {
	if !o.NodeCIDR.IsValid() {
		return nil
	}
	return []string{o.NodeCIDR.Masked().Addr().Next().String()}
}

// wireConfig describes the link between the nodes of this machine.
func wireConfig(o Options, log *slog.Logger) network.Config {
	return network.Config{
		Bridge:       "skiffn" + o.Suffix,
		DataDir:      o.path("nodes", ".wire"),
		ClusterCIDRs: []netip.Prefix{o.PodCIDR},
		Table:        o.Table("nodes"),
		Log:          log,
	}
}

// nodeProcess is a further node as its parent sees it.
type nodeProcess struct {
	opts  Options
	begun time.Time
	ready chan error // gets one value: how the first start went
}

// startNodes wires the further nodes and starts their processes; waitNodes
// waits for them.
func (c *Cluster) startNodes(ctx context.Context) error {
	further := c.opts.furtherNodes()
	if len(further) == 0 {
		return nil
	}
	if err := c.ensureNodeRights(ctx); err != nil {
		return err
	}
	log, err := c.logs.logger("nodes")
	if err != nil {
		return err
	}
	if c.wire, err = network.New(wireConfig(c.opts, log)); err != nil {
		return err
	}
	if err := c.wire.SetPodCIDRs([]netip.Prefix{c.opts.NodeCIDR}); err != nil {
		return err
	}
	for _, n := range further {
		if err := c.prepareFurther(ctx, &n); err != nil {
			return fmt.Errorf("node %s: %w", n.NodeName, err)
		}
		p := &nodeProcess{opts: n, begun: time.Now(), ready: make(chan error, 1)}
		c.nodes = append(c.nodes, p)
		c.start(c.agents, "node "+n.NodeName, func(ctx context.Context) error { return c.keepNode(ctx, p, log) })
	}
	return nil
}

// prepareFurther makes a further node's folder, namespace, link and identity.
func (c *Cluster) prepareFurther(ctx context.Context, n *Options) error {
	if err := os.MkdirAll(n.path("log"), 0o700); err != nil {
		return err
	}
	if err := os.Symlink("../../registries.yaml", n.path("registries.yaml")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err // one file of mirrors is for all nodes of this machine
	}
	if err := innetns.Make(n.netns()); err != nil {
		return err
	}
	addrs, err := c.wire.Setup(ctx, network.PodSandbox{ID: n.NodeName, Name: n.NodeName, NetnsPath: n.netns()})
	if err != nil {
		return err
	}
	n.NodeIP = addrs[0]
	err = bootstrap.EnsureNode(bootstrap.Options{
		DataDir: n.DataDir, NodeName: n.NodeName, NodeIPs: addrs,
		Server: fmt.Sprintf("https://%s:%d", c.opts.nodeGateway()[0], n.APIPort),
	}, c.assets.CA)
	if err != nil {
		return err
	}
	return n.save()
}

// keepNode keeps a further node's process running until ctx ends.
func (c *Cluster) keepNode(ctx context.Context, p *nodeProcess, log *slog.Logger) error {
	name := p.opts.NodeName
	retry := nodeRetryFirst
	for {
		begun := time.Now()
		err := p.run(ctx, func(pid int) {
			c.setHealth("node "+name, "ok")
			log.Info("node ready", "node", name, "pid", pid)
			p.settle(nil)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errEnded
		}
		p.settle(err)
		if time.Since(begun) > nodeRetryLast {
			retry = nodeRetryFirst
		}
		log.Error("a node's process ended, starting it again", "node", name, "err", err, "in", retry)
		c.setHealth("node "+name, err.Error())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
		retry = min(2*retry, nodeRetryLast)
	}
}

// settle says how the first start went, once.
func (p *nodeProcess) settle(err error) {
	select {
	case p.ready <- err:
	default:
	}
}

// run starts the node's process, calls ready once the node is, and waits for
// the process, which ends with ctx. It holds this program's end of the
// process's standard input, and ends when that closes: so it never outlives
// this program, however that ends.
func (p *nodeProcess) run(ctx context.Context, ready func(pid int)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := openLog(p.opts.LogFile())
	if err != nil {
		return err
	}
	defer out.Close()
	events, progress, err := os.Pipe()
	if err != nil {
		return err
	}
	defer events.Close()
	cmd := exec.CommandContext(ctx, self, "node", "--data-dir="+p.opts.DataDir, "--progress-fd=3")
	hold, err := cmd.StdinPipe()
	if err != nil {
		progress.Close()
		return err
	}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out.file, out.file, []*os.File{progress}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel, cmd.WaitDelay = hold.Close, nodeStop
	err = innetns.Do(p.opts.netns(), cmd.Start)
	progress.Close()
	if err != nil {
		return err
	}
	said := followNode(events, func() { ready(cmd.Process.Pid) })
	return errors.Join(said, cmd.Wait())
}

// followNode reads a node's progress to its end: the error it ended with.
func followNode(events io.Reader, ready func()) error {
	err := errEnded
	for dec := json.NewDecoder(events); ; {
		var e Event
		if dec.Decode(&e) != nil {
			return err
		}
		switch e.State {
		case Ready:
			ready()
			err = nil
		case Stopped:
			err = errors.New(e.Detail)
		}
	}
}

// waitNodes waits until every further node is Ready, and reports each.
func (c *Cluster) waitNodes(ctx context.Context) error {
	for _, p := range c.nodes {
		name := "node " + p.opts.NodeName
		c.progress.emit(Event{Step: name, State: Begun})
		var err error
		select {
		case err = <-p.ready:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		e := Event{Step: name, State: Done, Detail: "Ready at " + p.opts.NodeIP.String(), Took: time.Since(p.begun)}
		if err != nil {
			err = Problem{What: fmt.Sprintf("%s did not become Ready: %v", name, err), Fix: "see " + p.opts.LogFile()}
			e.State, e.Detail = Failed, err.Error()
		}
		c.progress.emit(e)
		if err != nil {
			return err
		}
	}
	return nil
}

// nodeRole is what an agent does beyond a kubelet's work: proxy and routes read,
// DNS reads and publishes itself. So one identity will do for all of an agent.
const nodeRole = "skiff:node"

var (
	nodeReads = []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes", "services", "namespaces"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"}},
	}
	nodePublishes = []rbacv1.PolicyRule{
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"create", "update", "delete"}},
	}
)

// ensureNodeRights makes the roles of nodes without a control plane.
func (c *Cluster) ensureNodeRights(ctx context.Context) error {
	nodes := []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: auth.GroupNodes}}
	meta := metav1.ObjectMeta{Name: nodeRole}
	local := metav1.ObjectMeta{Name: nodeRole, Namespace: metav1.NamespaceSystem}
	rbac, opts := c.client.RbacV1(), metav1.CreateOptions{}
	ref := func(kind string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: nodeRole}
	}
	_, err1 := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: nodeReads}, opts)
	_, err2 := rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: nodes, RoleRef: ref("ClusterRole")}, opts)
	_, err3 := rbac.Roles(local.Namespace).Create(ctx, &rbacv1.Role{ObjectMeta: local, Rules: nodePublishes}, opts)
	_, err4 := rbac.RoleBindings(local.Namespace).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: local, Subjects: nodes, RoleRef: ref("Role")}, opts)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("rights of nodes: %w", err)
		}
	}
	return nil
}

// nodesBelow are the further nodes a folder holds, whatever its options say.
func nodesBelow(o Options) ([]Options, error) {
	dirs, err := filepath.Glob(o.path("nodes", "[^.]*"))
	if err != nil {
		return nil, err
	}
	var list []Options
	for _, dir := range dirs {
		n, err := Options{DataDir: dir}.resolve(nil)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}
