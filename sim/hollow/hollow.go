// Package hollow simulates kubelets: nodes that register, renew their leases
// and lead the pods bound to them through the phases a kubelet would, without
// running anything. Ten thousand fit into one process, against Skiff or any
// other Kubernetes, in process or over the network.
//
// What a pod does next is a pure function of the pod (next, in pod.go); around
// it are one watch of all pods, one queue with a bounded number of workers,
// and a wheel that spreads the lease renewals evenly over their interval.
//
// Not simulated: containers that fail and restart, probes, volumes, events,
// and the kubelet's own server (logs, exec).
package hollow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/object/cached"
)

// Config says how many nodes there are and how they behave.
type Config struct {
	// Client writes nodes, leases and pods; required. Its own rate limit is
	// the simulator's.
	Client kubernetes.Interface
	// Informers bring the pods, if another part of the process watches them
	// anyway. Default: a watch of bound pods that keeps little of each.
	Informers informers.SharedInformerFactory
	// Nodes is their number, 1 to 100,000; required.
	Nodes int
	// Prefix names the nodes <prefix>-0 and up. Default "hollow". Two
	// simulators on one cluster need different ones.
	Prefix string
	// Labels and Taints of each node. Default none but those every node has.
	Labels map[string]string
	Taints []corev1.Taint
	// Capacity of each node. Default 32 CPUs, 256 GiB, 110 pods.
	Capacity corev1.ResourceList
	// Version is what the kubelets report. Default v1.37.2.
	Version string
	// Timing of pods; the zero value runs them at once and lets those that
	// complete do so after a second.
	Timing Timing
	// LeaseInterval between renewals of a node's lease. Default 10 s, upstream's.
	LeaseInterval time.Duration
	// StatusInterval between reports of an unchanged node status. Default
	// 5 min, upstream's.
	StatusInterval time.Duration
	// Parallelism bounds the API calls under way. Default 32.
	Parallelism int
	// Clock times everything. Default the real clock.
	Clock clock.WithTicker
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

const maxNodes = 100_000

func (c *Config) setDefaults() error {
	if c.Client == nil {
		return errors.New("hollow nodes: Client is required")
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("hollow nodes: %d nodes asked for; between 1 and %d are possible", c.Nodes, maxNodes)
	}
	api.SetIfEmpty(&c.Prefix, "hollow")
	api.SetIfEmpty(&c.Version, "v1.37.2")
	api.SetIfEmpty(&c.Timing.RunFor, time.Second)
	api.SetIfEmpty(&c.LeaseInterval, 10*time.Second)
	api.SetIfEmpty(&c.StatusInterval, 5*time.Minute)
	api.SetIfEmpty(&c.Parallelism, 32)
	if c.Capacity == nil {
		c.Capacity = defaultCapacity()
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Stats counts what the simulator has done since its start.
type Stats struct {
	Nodes      int64 // registered
	Pods       int64 // known now
	Renewals   int64 // of leases
	Late       int64 // renewals more than one interval behind
	PodWrites  int64 // statuses written and pods removed
	NodeWrites int64 // node statuses written
	Errors     int64 // calls that failed and are tried again
}

type counters struct {
	nodes, renewals, late, podWrites, nodeWrites, failed atomic.Int64
}

// Kubelets are the simulated kubelets of one process.
type Kubelets struct {
	cfg    Config
	nodes  []*node
	byName map[string]*node
	queue  workqueue.TypedDelayingInterface[types.NamespacedName]
	lister listers.PodLister
	count  counters
	ready  chan struct{}

	mu   sync.Mutex
	pods map[types.UID]*record
}

// record is what is remembered of one pod.
type record struct {
	memory
	node  *node
	acted string // the pod's resourceVersion that was acted on; its outcome is a newer one
}

// New validates cfg. No request is made yet.
func New(cfg Config) (*Kubelets, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	k := &Kubelets{
		cfg: cfg, byName: make(map[string]*node, cfg.Nodes), nodes: make([]*node, cfg.Nodes),
		pods: map[types.UID]*record{}, ready: make(chan struct{}),
		queue: workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[types.NamespacedName]{Clock: cfg.Clock}),
	}
	for i := range k.nodes {
		n := k.cfg.node(i)
		k.nodes[i], k.byName[n.name] = n, n
	}
	return k, nil
}

// Ready is closed once every node is registered.
func (k *Kubelets) Ready() <-chan struct{} { return k.ready }

// Stats reports what has been done so far.
func (k *Kubelets) Stats() Stats {
	k.mu.Lock()
	pods := len(k.pods)
	k.mu.Unlock()
	c := &k.count
	return Stats{
		Nodes: c.nodes.Load(), Pods: int64(pods), Renewals: c.renewals.Load(), Late: c.late.Load(),
		PodWrites: c.podWrites.Load(), NodeWrites: c.nodeWrites.Load(), Errors: c.failed.Load(),
	}
}

// Run registers the nodes and acts for them until ctx ends. Nodes and pods
// stay in the cluster, as those of a machine that was switched off; Remove
// takes the nodes away.
func (k *Kubelets) Run(ctx context.Context) error {
	defer k.queue.ShutDown()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { k.renewLoop(ctx) }) // registering many takes longer than a lease lasts
	if err := k.register(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	own := k.cfg.Informers == nil
	factory := k.cfg.Informers
	if own {
		factory = informers.NewSharedInformerFactoryWithOptions(k.cfg.Client, 0,
			informers.WithTransform(cached.New("").Transform),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermNotEqualSelector("spec.nodeName", "").String()
			}))
	}
	pods := factory.Core().V1().Pods()
	k.lister = pods.Lister()
	handle, err := pods.Informer().AddEventHandler(k)
	if err != nil {
		return err
	}
	for range k.cfg.Parallelism {
		wg.Go(func() { k.work(ctx) })
	}
	factory.Start(ctx.Done())
	close(k.ready)
	<-ctx.Done()
	k.queue.ShutDown()
	wg.Wait()
	if own {
		factory.Shutdown()
		return nil
	}
	return pods.Informer().RemoveEventHandler(handle)
}

// Remove deletes the nodes and leases of this Prefix, also those of an earlier
// run. Pods bound to them are left to the cluster's pod garbage collector.
func (k *Kubelets) Remove(ctx context.Context) error {
	ours := metav1.ListOptions{LabelSelector: LabelGroup + "=" + k.cfg.Prefix}
	return errors.Join(
		k.cfg.Client.CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, ours),
		k.cfg.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).DeleteCollection(ctx, metav1.DeleteOptions{}, ours),
	)
}

// OnAdd, OnUpdate and OnDelete are the pod informer's.
func (k *Kubelets) OnAdd(obj any, _ bool) { k.changed(obj) }

// OnUpdate looks at a pod again.
func (k *Kubelets) OnUpdate(_, obj any) { k.changed(obj) }

// OnDelete forgets a pod.
func (k *Kubelets) OnDelete(obj any) {
	if gone, ok := obj.(interface{ GetUID() types.UID }); ok {
		k.forget(gone.GetUID())
		return
	}
	k.sweep() // only the name is known: look through all
}

func (k *Kubelets) changed(obj any) {
	if pod, ok := obj.(*corev1.Pod); ok && k.byName[pod.Spec.NodeName] != nil {
		k.queue.Add(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
	}
}

func (k *Kubelets) forget(uid types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := k.pods[uid]; r != nil {
		r.node.release(r.podIP, uid)
		delete(k.pods, uid)
	}
}

// sweep forgets every pod that the informer no longer has.
func (k *Kubelets) sweep() {
	list, err := k.lister.List(labels.Everything())
	if err != nil {
		return
	}
	live := make(map[types.UID]bool, len(list))
	for _, p := range list {
		live[p.UID] = true
	}
	k.mu.Lock()
	var gone []types.UID
	for uid := range k.pods {
		if !live[uid] {
			gone = append(gone, uid)
		}
	}
	k.mu.Unlock()
	for _, uid := range gone {
		k.forget(uid)
	}
}

// retry is how long after a failed call the pod is looked at again.
const retry = time.Second

func (k *Kubelets) work(ctx context.Context) {
	for {
		key, shutdown := k.queue.Get()
		if shutdown {
			return
		}
		if err := k.sync(ctx, key); err != nil && ctx.Err() == nil {
			k.count.failed.Add(1)
			k.cfg.Log.Debug("pod", "pod", key, "err", err)
			k.queue.AddAfter(key, retry)
		}
		k.queue.Done(key)
	}
}

// sync does the next step for one pod. The queue hands a pod to one worker at a time.
func (k *Kubelets) sync(ctx context.Context, key types.NamespacedName) error {
	pod, err := k.lister.Pods(key.Namespace).Get(key.Name)
	if err != nil {
		return nil // deleted meanwhile
	}
	n := k.byName[pod.Spec.NodeName]
	if n == nil {
		return nil
	}
	r := k.recall(pod, n)
	if r.acted == pod.ResourceVersion {
		return nil // what was done about it has not come back yet
	}
	if err := k.address(ctx, pod, r); err != nil {
		return err
	}
	now := k.cfg.Clock.Now()
	s := next(pod, r.memory, now, k.cfg.Timing)
	switch {
	case s.remove:
		err = k.remove(ctx, pod)
	case s.status != nil:
		err = k.write(ctx, pod, s.status)
	case s.after > 0:
		k.queue.AddAfter(key, s.after)
		return nil
	default:
		return nil
	}
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or another pod of the name
		k.count.podWrites.Add(1)
		r.acted = pod.ResourceVersion
		return nil
	}
	return err
}

func (k *Kubelets) recall(pod *corev1.Pod, n *node) *record {
	now := k.cfg.Clock.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.pods[pod.UID]
	if r == nil {
		r = &record{node: n, memory: memory{seen: now, hostIP: n.ip}}
		k.pods[pod.UID] = r
	}
	if pod.DeletionTimestamp != nil && r.deleting.IsZero() {
		r.deleting = now
	}
	return r
}

// address sees to it that a pod that may start has an address.
func (k *Kubelets) address(ctx context.Context, pod *corev1.Pod, r *record) error {
	done := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case done:
		k.mu.Lock()
		r.node.release(r.podIP, pod.UID)
		k.mu.Unlock()
		return nil
	case r.podIP != "" || pod.DeletionTimestamp != nil:
		return nil
	case pod.Spec.HostNetwork:
		r.podIP = r.node.ip
		return nil
	}
	if err := k.findCIDR(ctx, r); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	a, ok := r.node.take(pod.UID, pod.Status.PodIP)
	if !ok {
		return fmt.Errorf("node %s: no pod address left in %s", r.node.name, r.node.cidr)
	}
	r.podIP = a.String()
	return nil
}

// cidrPatience is how long a node waits for the controller manager to give it
// a pod range before it takes one itself.
const cidrPatience = 5 * time.Second

func (k *Kubelets) findCIDR(ctx context.Context, r *record) error {
	n := r.node
	k.mu.Lock()
	known := n.cidr.IsValid()
	k.mu.Unlock()
	if known {
		return nil
	}
	obj, err := k.cfg.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	cidr, err := netip.ParsePrefix(obj.Spec.PodCIDR)
	if err != nil || !cidr.Addr().Is4() {
		if k.cfg.Clock.Since(r.seen) < cidrPatience {
			return fmt.Errorf("node %s has no pod range yet", n.name)
		}
		cidr = n.reserve
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	n.cidr = cidr
	return nil
}

// write patches a pod's status as a kubelet does; the uid keeps it from
// another pod of the same name.
func (k *Kubelets) write(ctx context.Context, pod *corev1.Pod, s *corev1.PodStatus) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": s})
	if err != nil {
		return err
	}
	_, err = k.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	return err
}

func (k *Kubelets) remove(ctx context.Context, pod *corev1.Pod) error {
	now := int64(0)
	return k.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
}

// each calls do for every node of the list, Parallelism at a time.
func (k *Kubelets) each(ctx context.Context, nodes []*node, do func(context.Context, *node) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(k.cfg.Parallelism)
	for _, n := range nodes {
		g.Go(func() error { return do(ctx, n) })
	}
	return g.Wait()
}
