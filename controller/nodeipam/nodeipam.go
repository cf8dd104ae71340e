// Package nodeipam gives every node a block of Pod addresses (spec.podCIDRs) out of each cluster
// CIDR. What is taken is known from the nodes themselves; nothing else is stored.
package nodeipam

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// Config says what to hand out.
type Config struct {
	ClusterCIDRs []netip.Prefix // one, or one of each family
	MaskSizes    []int          // prefix length of a node's block, per ClusterCIDR
	ServiceCIDRs []netip.Prefix // kept free where they overlap
}

type controller struct {
	env   engine.Env
	nodes listers.NodeLister
	mu    sync.Mutex
	pools []*pool
	held  map[string][]netip.Prefix // by node name
}

// New returns the node IPAM controller.
func New(env engine.Env, cfg Config) (*engine.Controller, error) {
	if len(cfg.ClusterCIDRs) == 0 || len(cfg.ClusterCIDRs) != len(cfg.MaskSizes) {
		return nil, fmt.Errorf("node IPAM: need one mask size for each of %d cluster CIDRs", len(cfg.ClusterCIDRs))
	}
	core := env.Informers.Core().V1().Nodes()
	c := &controller{env: env, nodes: core.Lister(), held: map[string][]netip.Prefix{}}
	for i, all := range cfg.ClusterCIDRs {
		p, err := newPool(all, cfg.MaskSizes[i])
		if err != nil {
			return nil, fmt.Errorf("node IPAM: %w", err)
		}
		for _, svc := range cfg.ServiceCIDRs {
			p.occupy(svc)
		}
		c.pools = append(c.pools, p)
	}
	return &engine.Controller{
		Name:    "node-ipam-controller",
		Outputs: []engine.Resource{"nodes"},
		Workers: 4,
		Sources: []engine.Source{engine.On("nodes", core.Informer(), c.changed)},
		// every block in use is known before the first one is handed out: handlers run for the whole
		// initial list before workers start
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) changed(q engine.Queue, old, new *corev1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case new == nil:
		c.drop(old.Name)
	case len(new.Spec.PodCIDRs) > 0:
		c.note(new.Name, new.Spec.PodCIDRs)
	default:
		q.Add(new.Name)
	}
}

// note records what a node holds, instead of what it was thought to hold.
func (c *controller) note(node string, cidrs []string) {
	var is []netip.Prefix
	for _, s := range cidrs {
		if p, err := netip.ParsePrefix(s); err == nil {
			is = append(is, p)
		}
	}
	was := c.held[node]
	for i, p := range c.pools {
		if i < len(was) && (i >= len(is) || was[i] != is[i]) {
			p.release(was[i])
		}
		if i < len(is) {
			p.occupy(is[i])
		}
	}
	c.held[node] = is
}

func (c *controller) drop(node string) {
	for i, block := range c.held[node] {
		if i < len(c.pools) {
			c.pools[i].release(block)
		}
	}
	delete(c.held, node)
}

// reserve returns the blocks for node: those it was given before, if any, else new ones.
func (c *controller) reserve(node string) ([]netip.Prefix, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if held := c.held[node]; len(held) == len(c.pools) {
		return held, true
	}
	var out []netip.Prefix
	for _, p := range c.pools {
		block, ok := p.take()
		if !ok {
			for i, b := range out {
				c.pools[i].release(b)
			}
			return nil, false
		}
		out = append(out, block)
	}
	c.held[node] = out
	return out, true
}

func (c *controller) reconcile(ctx context.Context, name string) error {
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		c.mu.Lock()
		c.drop(name)
		c.mu.Unlock()
		return nil
	}
	if err != nil || len(node.Spec.PodCIDRs) > 0 {
		return err
	}
	blocks, ok := c.reserve(name)
	if !ok {
		c.event(node, "CIDRNotAvailable")
		return fmt.Errorf("node %s: no free block of Pod addresses in the cluster CIDRs", name)
	}
	_, err = c.env.Client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch(node.UID, blocks), metav1.PatchOptions{})
	if err == nil {
		return nil
	}
	c.event(node, "CIDRAssignmentFailed")
	return fmt.Errorf("node %s: assign %v: %w", name, blocks, err) // the blocks stay reserved for the retry
}

func (c *controller) event(node *corev1.Node, status string) {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}
	c.env.Events.Eventf(ref, corev1.EventTypeNormal, status, "Node %s status is now: %s", node.Name, status)
}

func patch(uid types.UID, blocks []netip.Prefix) []byte {
	cidrs := make([]string, len(blocks))
	for i, b := range blocks {
		cidrs[i] = b.String()
	}
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid},
		"spec": map[string]any{"podCIDR": cidrs[0], "podCIDRs": cidrs}})
	if err != nil {
		panic(err) // plain values always encode
	}
	return b
}
