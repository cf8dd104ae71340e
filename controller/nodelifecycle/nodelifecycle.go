// Package nodelifecycle notices nodes that fall silent. A kubelet shows that it lives by renewing
// its lease and posting its status; without either for the grace period the node's conditions
// become Unknown, its Pods not ready, and taints keep new Pods off and (package tainteviction)
// move the old ones away. Zones limit how fast, and a cluster without any ready node evicts nobody.
//
// Times are measured from when a sign of life arrived here, by the monotonic clock: neither a
// wrong clock on a node nor a jump of ours makes nodes look dead.
package nodelifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

// Config holds the timings; zero values mean upstream's defaults.
type Config struct {
	MonitorGracePeriod     time.Duration // silence before a node is Unknown; default 50 s
	StartupGracePeriod     time.Duration // the same for a node that never posted status; default 60 s
	EvictionRate           float64       // nodes emptied per second and zone; default 0.1
	SecondaryEvictionRate  float64       // the same for a large zone that is mostly down; default 0.01
	LargeClusterThreshold  int           // nodes that make a zone large; default 50
	UnhealthyZoneThreshold float64       // share of nodes down that makes a zone mostly down; default 0.55
}

func (c Config) withDefaults() Config {
	or := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	if c.MonitorGracePeriod == 0 {
		c.MonitorGracePeriod = 50 * time.Second
	}
	if c.StartupGracePeriod == 0 {
		c.StartupGracePeriod = time.Minute
	}
	if c.LargeClusterThreshold == 0 {
		c.LargeClusterThreshold = 50
	}
	or(&c.EvictionRate, 0.1)
	or(&c.SecondaryEvictionRate, 0.01)
	or(&c.UnhealthyZoneThreshold, 0.55)
	return c
}

// health is what is remembered of one node.
type health struct {
	uid        types.UID
	lastSign   time.Time
	heartbeat  metav1.Time // last one posted in the Ready condition
	hadReady   bool        // it has posted a Ready condition
	renewed    metav1.MicroTime
	zone       string
	ready      bool
	counted    bool // zone and ready are in the zones' counts
	registered bool
}

type controller struct {
	env   engine.Env
	cfg   Config
	nodes listers.NodeLister
	pods  cache.SharedIndexInformer

	mu     sync.Mutex
	health map[string]*health
	zones  map[string]*zone
	ready  int // nodes that are, in all zones
}

// New returns the node lifecycle controller.
func New(env engine.Env, cfg Config) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	c := &controller{env: env, cfg: cfg.withDefaults(), nodes: core.Nodes().Lister(), pods: core.Pods().Informer(),
		health: map[string]*health{}, zones: map[string]*zone{}}
	if err := workload.IndexByNode(c.pods); err != nil {
		return nil, fmt.Errorf("node lifecycle controller: index pods: %w", err)
	}
	return &engine.Controller{
		Name:    "node-lifecycle-controller",
		Outputs: []engine.Resource{"nodes", "nodes/status", "pods/status"},
		Workers: 8,
		Sources: []engine.Source{
			engine.On("nodes", core.Nodes().Informer(), c.nodeChanged),
			engine.On("leases.coordination.k8s.io", env.Informers.Coordination().V1().Leases().Informer(), c.leaseChanged),
			engine.On("pods", c.pods, c.podChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

// leaseChanged notes a renewal. It wakes nobody: a node's own timer finds the new sign of life, so
// renewals of many nodes cost next to nothing.
func (c *controller) leaseChanged(_ engine.Queue, old, new *coordinationv1.Lease) {
	if new == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if h := c.health[old.Name]; h != nil && h.uid == "" {
			delete(c.health, old.Name) // a lease without a node
		}
		return
	}
	if new.Namespace != corev1.NamespaceNodeLease || new.Spec.RenewTime == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.health[new.Name]
	if h == nil {
		h = &health{}
		c.health[new.Name] = h
	}
	if h.renewed.Before(new.Spec.RenewTime) {
		h.renewed = *new.Spec.RenewTime
		h.lastSign = c.env.Clock.Now()
	}
}

func (c *controller) nodeChanged(q engine.Queue, old, new *corev1.Node) {
	if new == nil {
		c.forget(q, old)
		return
	}
	c.note(q, new)
	if old == nil || old.UID != new.UID || differs(old, new) {
		q.Add(new.Name)
	}
}

// differs ignores heartbeats.
func differs(a, b *corev1.Node) bool {
	if a.Spec.Unschedulable != b.Spec.Unschedulable || !sameTaints(a.Spec.Taints, b.Spec.Taints) ||
		len(a.Status.Conditions) != len(b.Status.Conditions) || len(missingLabels(b)) > 0 || zoneKey(a) != zoneKey(b) {
		return true
	}
	return slices.ContainsFunc(a.Status.Conditions, func(x corev1.NodeCondition) bool {
		y := condition(b, x.Type)
		return y == nil || x.Status != y.Status
	})
}

// note updates what is remembered of the node and the counts of its zone.
func (c *controller) note(q engine.Queue, n *corev1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.env.Clock.Now()
	h := c.health[n.Name]
	if h == nil || h.uid != "" && h.uid != n.UID {
		c.uncount(h)
		h = &health{}
		c.health[n.Name] = h
	}
	ready := condition(n, corev1.NodeReady)
	switch {
	case h.uid == "" && ready == nil && h.lastSign.IsZero():
		h.lastSign = n.CreationTimestamp.Time
	case h.uid == "" && h.lastSign.IsZero(), ready != nil && !h.hadReady, ready == nil && h.hadReady,
		ready != nil && !ready.LastHeartbeatTime.Equal(&h.heartbeat):
		h.lastSign = now
	}
	h.uid, h.hadReady = n.UID, ready != nil
	if ready != nil {
		h.heartbeat = ready.LastHeartbeatTime
	}
	was := c.ready
	c.uncount(h)
	c.count(h, n, ready)
	if was == 0 && c.ready > 0 || was > 0 && c.ready == 0 {
		c.wakeAll(q, now)
	}
}

// wakeAll starts over when the cluster loses its last or wins its first ready node. Not every node
// had a chance to be heard before: the clock starts anew for all.
func (c *controller) wakeAll(q engine.Queue, now time.Time) {
	for name, h := range c.health {
		if h.uid == "" {
			continue
		}
		if c.ready > 0 && h.registered {
			h.lastSign = now
		}
		q.Add(name)
	}
}

func (c *controller) count(h *health, n *corev1.Node, ready *corev1.NodeCondition) {
	if _, excluded := n.Labels["node.kubernetes.io/exclude-disruption"]; excluded {
		return
	}
	h.counted, h.zone = true, zoneKey(n)
	h.ready = ready != nil && ready.Status == corev1.ConditionTrue
	z := c.zones[h.zone]
	if z == nil {
		z = &zone{}
		c.zones[h.zone] = z
	}
	if h.ready {
		z.ready++
		c.ready++
	} else {
		z.notReady++
	}
}

func (c *controller) uncount(h *health) {
	if h == nil || !h.counted {
		return
	}
	h.counted = false
	z := c.zones[h.zone]
	if h.ready {
		z.ready--
		c.ready--
	} else {
		z.notReady--
	}
	if z.ready+z.notReady == 0 {
		delete(c.zones, h.zone)
	}
}

func (c *controller) forget(q engine.Queue, n *corev1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.health[n.Name]
	if h == nil || h.uid != n.UID {
		return
	}
	was := c.ready
	c.uncount(h)
	delete(c.health, n.Name)
	if was > 0 && c.ready == 0 {
		c.wakeAll(q, c.env.Clock.Now())
	}
	c.event(n, corev1.EventTypeNormal, "RemovingNode", fmt.Sprintf("Removing Node %v from Controller", n.Name))
}

// podChanged wakes the node of a Pod that was bound to it while it is silent.
func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	if new == nil || new.Spec.NodeName == "" || old != nil && old.Spec.NodeName == new.Spec.NodeName {
		return
	}
	n, err := c.nodes.Get(new.Spec.NodeName)
	if err == nil && silent(n) {
		q.Add(n.Name)
	}
}

// silent reports whether the node's readiness is not known.
func silent(n *corev1.Node) bool {
	r := condition(n, corev1.NodeReady)
	return r != nil && r.Status == corev1.ConditionUnknown
}

func (c *controller) event(n *corev1.Node, kind, reason, msg string) {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}
	c.env.Events.Eventf(ref, kind, reason, "Node %s event: %s", n.Name, msg)
}

func (c *controller) reconcile(ctx context.Context, name string) error {
	n, err := c.nodes.Get(name)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	o, again := c.observe(n)
	p := planNode(o, c.cfg)
	if p.needs && again > 0 && (p.again == 0 || again < p.again) {
		p.again = again
	}
	if err := c.apply(ctx, n, p); err != nil {
		return err
	}
	if p.again > 0 {
		return engine.Later(p.again)
	}
	return nil
}

// observe reads what is remembered of the node; again is when its zone may empty one more.
func (c *controller) observe(n *corev1.Node) (o observed, again time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.env.Clock.Now()
	o = observed{node: n, now: now, lastSign: now}
	h := c.health[n.Name]
	if h == nil {
		return o, 0 // deleted a moment ago
	}
	o.lastSign = h.lastSign
	o.disrupted = c.ready == 0 && len(c.zones) > 0
	if !h.registered {
		h.registered = true
		c.event(n, corev1.EventTypeNormal, "RegisteredNode", fmt.Sprintf("Registered Node %v in Controller", n.Name))
	}
	r := condition(n, corev1.NodeReady)
	bad := r != nil && r.Status != corev1.ConditionTrue
	overdue := now.After(o.lastSign.Add(c.cfg.MonitorGracePeriod))
	if overdue && h.ready && c.ready == 1 {
		o.disrupted = true // the last ready node is about to go
	}
	if z := c.zones[h.zone]; z != nil && (bad || overdue) && !o.disrupted && !evicting(n) {
		o.mayEvict, again = z.allow(c.cfg, now)
	} else if !h.counted {
		o.mayEvict = true
	}
	return o, again
}

func (c *controller) apply(ctx context.Context, n *corev1.Node, p plan) error {
	api := c.env.Client.CoreV1().Nodes()
	fresh := n
	if p.status != nil {
		var err error
		if fresh, err = api.UpdateStatus(ctx, p.status, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("mark node %s unknown: %w", n.Name, err)
		}
	}
	if p.retaint || p.labels != nil {
		_, err := api.Patch(ctx, n.Name, types.MergePatchType, p.patch(fresh), metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("taint node %s: %w", n.Name, err)
		}
	}
	if p.lost {
		ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}
		c.env.Events.Eventf(ref, corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: %s", n.Name, "NodeNotReady")
	}
	if silent(fresh) {
		return c.markPods(ctx, n.Name)
	}
	return nil
}

// markPods sets Ready=False on the Pods of a silent node, so that Services stop sending to them.
func (c *controller) markPods(ctx context.Context, node string) error {
	pods, err := workload.OnNode(c.pods, node)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pods {
		ready := workload.Condition(p, corev1.PodReady)
		if ready == nil || ready.Status != corev1.ConditionTrue {
			continue
		}
		cond := *ready
		cond.Status = corev1.ConditionFalse
		patch, _ := workload.StatusPatch(p, "", &cond, c.env.Clock.Now())
		_, err := c.env.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch,
			metav1.PatchOptions{}, "status")
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("mark pod %s/%s not ready: %w", p.Namespace, p.Name, err))
			continue
		}
		c.env.Events.Event(p, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	}
	return errors.Join(errs...)
}
