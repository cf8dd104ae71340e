package cluster

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	listers "k8s.io/client-go/listers/core/v1"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/sim/hollow"
)

// startHollow runs simulated nodes on this cluster.
func (c *Cluster) startHollow(opts TestOptions) error {
	log, err := c.logs.logger("hollow")
	if err != nil {
		return err
	}
	cfg := opts.Hollow
	cfg.Nodes, cfg.Log, cfg.Informers = opts.HollowNodes, log, c.informers
	cfg.Client = c.clientFor("system:hollow-nodes", auth.GroupMasters)
	if cfg.Version == "" {
		cfg.Version = gitVersion()
	}
	k, err := hollow.New(cfg)
	if err != nil {
		return err
	}
	c.start(c.agents, "hollow nodes", k.Run)
	return nil
}

// allReady reports, as an error, how many of n nodes are not Ready yet, or not
// yet free of the taint that every new node carries.
func allReady(nodes listers.NodeLister, n int) error {
	list, err := nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	ready := 0
	for _, node := range list {
		if notReady(node) == "" && !tainted(node) {
			ready++
		}
	}
	if ready < n {
		return fmt.Errorf("%d of %d nodes are Ready", ready, n)
	}
	return nil
}

func tainted(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady })
}
