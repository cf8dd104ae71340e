package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/network"
	"github.com/skiff-project/skiff/object/cached"
)

// lockWait is how long a node's agent waits for one before it to end: an agent
// goes on for a moment after the process that started it was killed.
const lockWait = 10 * time.Second

// UpNode runs this machine, or the network namespace it is called in, as one
// node of a cluster whose API server is elsewhere, and returns when the node is
// Ready. opts.DataDir holds what the node needs: cluster.json, and what
// bootstrap.EnsureNode made. The caller ends it with Wait; pods keep running.
func UpNode(ctx context.Context, opts Options, timeout time.Duration, progress Progress) (*Cluster, error) {
	c := newCluster(progress)
	return c.up(ctx, timeout, []step{
		{"checks", func(ctx context.Context) (string, error) { return c.prepareNode(ctx, opts) }},
		{"connection", c.connect},
		{"container runtime", c.startRuntime},
		{"control socket", c.startControl},
		{"node", c.startNode},
		{"Ready", c.waitReady},
	})
}

// prepareNode settles the options and claims the folder.
func (c *Cluster) prepareNode(ctx context.Context, opts Options) (string, error) {
	o, err := opts.resolve(nil)
	if err != nil {
		return "", err
	}
	if err := preflight(o); err != nil {
		return "", err
	}
	wait, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	err = poll(wait, "the node's former agent to end", func(context.Context) (err error) {
		c.lock, err = takeLock(o)
		return err
	})
	if err != nil {
		return "", err
	}
	c.opts = o
	c.logs = &logs{dir: o.path("log"), level: slog.LevelInfo}
	if c.log, err = c.logs.logger("node"); err != nil {
		return "", err
	}
	routeKlog(c.log)
	return fmt.Sprintf("node %s at %s", o.NodeName, o.NodeIP), nil
}

// connect leads every client of this process to the API server of kubelet.conf.
func (c *Cluster) connect(context.Context) (string, error) {
	var err error
	if c.assets, err = bootstrap.LoadNode(c.opts.DataDir); err != nil {
		return "", err
	}
	// No bound on requests: the server bounds itself.
	cfg, err := Connection{Kubeconfig: c.assets.KubeletConf, QPS: -1}.config("node")
	if err != nil {
		return "", err
	}
	c.remote = cfg
	if c.client, err = kubernetes.NewForConfig(c.config("")); err != nil {
		return "", err
	}
	c.informers = informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(cached.New(c.opts.NodeName).Transform))
	// Whoever asks for pods gets this node's: it may not see others, and nothing here needs them.
	c.informers.InformerFor(&corev1.Pod{}, func(client kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return coreinformers.NewFilteredPodInformer(client, metav1.NamespaceAll, resync, cache.Indexers{}, func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", c.opts.NodeName).String()
		})
	})
	return cfg.Host, nil
}

// keepRoutes sends the pods of every other node to that node, as Nodes come,
// change and go, until ctx ends.
func (c *Cluster) keepRoutes(ctx context.Context) error {
	nodes := c.informers.Core().V1().Nodes()
	wake := make(chan struct{}, 1)
	poke := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	handle, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { poke() }, UpdateFunc: func(any, any) { poke() }, DeleteFunc: func(any) { poke() },
	})
	if err != nil {
		return err
	}
	defer func() { _ = nodes.Informer().RemoveEventHandler(handle) }()
	if !cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		return nil
	}
	var have []network.Route
	var again <-chan time.Time
	var retry time.Duration
	for began := time.Now(); ; {
		rest := time.After(9 * time.Since(began)) // so many nodes that come together are routed together
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-rest:
		}
		began = time.Now()
		list, err := nodes.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		want := routesTo(list, c.opts.NodeName)
		if slices.Equal(want, have) && retry == 0 {
			continue
		}
		if err := c.network.SetRoutes(want); err != nil {
			retry = min(max(2*retry, time.Second), 30*time.Second)
			again = time.After(retry)
			c.log.Warn("pods of other nodes may be out of reach", "err", err, "tryAgainIn", retry)
			continue
		}
		have, retry = want, 0
		c.log.Info("routes to other nodes' pods", "nodes", len(want), "first", want[:min(len(want), 3)])
	}
}

// routesTo are the ways from node self to the other nodes' pods.
func routesTo(nodes []*corev1.Node, self string) []network.Route {
	var routes []network.Route
	for _, n := range nodes {
		if n.Name == self {
			continue
		}
		ip := internalIP(n)
		for _, text := range n.Spec.PodCIDRs {
			if cidr, err := netip.ParsePrefix(text); err == nil && ip.IsValid() && ip.Is4() == cidr.Addr().Is4() {
				routes = append(routes, network.Route{PodCIDR: cidr, NodeIP: ip})
			}
		}
	}
	slices.SortFunc(routes, func(a, b network.Route) int { return a.PodCIDR.Addr().Compare(b.PodCIDR.Addr()) })
	return routes
}

func internalIP(n *corev1.Node) netip.Addr {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			return ip.Unmap()
		}
	}
	return netip.Addr{}
}

// errEnded is what a node's process that ended by itself without a word leaves.
var errEnded = errors.New("it ended without saying why; its log may tell")
