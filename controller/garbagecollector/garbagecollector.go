// Package garbagecollector deletes objects whose owners are gone, and carries out foreground and
// orphaning deletion of owners.
//
// It keeps a graph of owner references over every deletable resource, fed by metadata watches. The
// graph only says where to look: before anything is written, the object and its missing owners are
// read from the API server, and deletions carry the UID and resource version that were judged.
package garbagecollector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

// Discover lists every resource in its preferred version. With an error, the list holds what could
// be learned.
type Discover func() ([]*metav1.APIResourceList, error)

type controller struct {
	env      engine.Env
	metadata metadata.Interface
	discover Discover
	graph    *graph
	absent   *absentees
	ready    atomic.Bool
	running  sync.WaitGroup

	mu       sync.Mutex
	monitors map[schema.GroupVersionResource]*monitor
	kinds    map[schema.GroupKind]kind
}

// New returns the garbage collector.
func New(env engine.Env, md metadata.Interface, discover Discover) (*engine.Controller, error) {
	if md == nil || discover == nil {
		return nil, errors.New("garbage collector: needs a metadata client and discovery")
	}
	c := newController(env, md, discover)
	return &engine.Controller{
		Name:      "garbage-collector-controller",
		Outputs:   []engine.Resource{"*"},
		Workers:   20,
		Reconcile: c.reconcile,
		Background: func(ctx context.Context, q engine.Queue) error {
			defer c.running.Wait()
			return c.watchAll(ctx, q)
		},
	}, nil
}

func newController(env engine.Env, md metadata.Interface, discover Discover) *controller {
	return &controller{env: env, metadata: md, discover: discover, graph: newGraph(), absent: &absentees{},
		monitors: map[schema.GroupVersionResource]*monitor{}, kinds: map[schema.GroupKind]kind{}}
}

// reconcile looks at the object with the UID key.
func (c *controller) reconcile(ctx context.Context, key string) error {
	if !c.ready.Load() {
		return engine.Later(200 * time.Millisecond) // before every resource was listed, owners look missing
	}
	n, deps := c.graph.get(types.UID(key))
	switch {
	case n == nil:
		return nil
	case n.orphan:
		return c.orphan(ctx, n, deps)
	case n.foreground:
		return c.finishForeground(ctx, n, deps)
	case n.beingDeleted || len(n.owners) == 0 || c.graph.stands(n) == sound:
		return nil
	}
	latest, err := c.api(n.identity).Get(ctx, n.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && latest.UID != n.uid {
		return nil // gone already; the monitor will say so
	}
	if err != nil {
		return err
	}
	v, err := c.judge(ctx, n, latest.OwnerReferences)
	if err != nil {
		return err
	}
	return c.carryOut(ctx, n, latest, decide(latest, v, deps))
}

// verdict sorts an object's owner references.
type verdict struct {
	solid, dangling, waiting []metav1.OwnerReference
}

// decision is what to do with an object, by the pure decide.
type decision struct {
	dropRefs []types.UID // take these owners off, and nothing else
	unblock  bool        // first stop blocking owners: there is a cycle
	remove   bool
	policy   metav1.DeletionPropagation
}

func decide(latest *metav1.PartialObjectMetadata, v verdict, deps []*node) decision {
	switch {
	case len(latest.OwnerReferences) == 0, len(v.dangling)+len(v.waiting) == 0:
		return decision{}
	case len(v.solid) > 0:
		var d decision
		for _, r := range slices.Concat(v.dangling, v.waiting) {
			d.dropRefs = append(d.dropRefs, r.UID)
		}
		return d
	case len(v.waiting) > 0 && len(deps) > 0:
		cycle := slices.ContainsFunc(deps, func(d *node) bool { return d.foreground })
		return decision{remove: true, unblock: cycle, policy: metav1.DeletePropagationForeground}
	}
	d := decision{remove: true, policy: metav1.DeletePropagationBackground}
	switch {
	case slices.Contains(latest.Finalizers, metav1.FinalizerOrphanDependents):
		d.policy = metav1.DeletePropagationOrphan
	case slices.Contains(latest.Finalizers, metav1.FinalizerDeleteDependents):
		d.policy = metav1.DeletePropagationForeground
	}
	return d
}

func (c *controller) carryOut(ctx context.Context, n *node, latest *metav1.PartialObjectMetadata, d decision) error {
	if len(d.dropRefs) > 0 {
		return c.setOwners(ctx, n, latest, slices.DeleteFunc(slices.Clone(latest.OwnerReferences),
			func(r metav1.OwnerReference) bool { return slices.Contains(d.dropRefs, r.UID) }))
	}
	if !d.remove {
		return nil
	}
	rv := latest.ResourceVersion
	if d.unblock {
		refs := slices.Clone(latest.OwnerReferences)
		for i := range refs {
			refs[i].BlockOwnerDeletion = new(bool)
		}
		if err := c.setOwners(ctx, n, latest, refs); err != nil {
			return err
		}
		rv = "" // just changed by ourselves
	}
	pre := &metav1.Preconditions{UID: &n.uid}
	if rv != "" {
		pre.ResourceVersion = &rv
	}
	return engine.IgnoreNotFound(c.api(n.identity).Delete(ctx, n.name, metav1.DeleteOptions{Preconditions: pre, PropagationPolicy: &d.policy}))
}

// judge asks, for each reference, whether its owner exists and stays.
func (c *controller) judge(ctx context.Context, n *node, refs []metav1.OwnerReference) (verdict, error) {
	var v verdict
	for _, ref := range refs {
		owner, err := c.owner(ctx, n, ref)
		if errors.Is(err, errWrongScope) {
			return verdict{}, nil // never valid: leave the object alone
		}
		switch {
		case err != nil:
			return v, err
		case owner == nil:
			v.dangling = append(v.dangling, ref)
		case owner.DeletionTimestamp != nil && slices.Contains(owner.Finalizers, metav1.FinalizerDeleteDependents):
			v.waiting = append(v.waiting, ref)
		default:
			v.solid = append(v.solid, ref)
		}
	}
	return v, nil
}

var errWrongScope = errors.New("cluster-scoped objects cannot refer to namespaced owners")

// owner reads the object ref means, nil if there is none.
func (c *controller) owner(ctx context.Context, n *node, ref metav1.OwnerReference) (*metav1.PartialObjectMetadata, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("owner of %s: %w", n.identity, err)
	}
	c.mu.Lock()
	k, ok := c.kinds[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}]
	c.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("owner of %s: no resource serves kind %s of %s", n.identity, ref.Kind, ref.APIVersion)
	}
	id := identity{gvr: k.gvr, apiVersion: ref.APIVersion, kind: ref.Kind, name: ref.Name, uid: ref.UID}
	if k.namespaced {
		if n.namespace == "" {
			return nil, errWrongScope
		}
		id.namespace = n.namespace
	}
	if c.absent.has(id) {
		return nil, nil
	}
	o, err := c.api(id).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	if err == nil && o.UID == ref.UID {
		return o, nil
	}
	c.absent.add(id)
	if real, _ := c.graph.get(ref.UID); real != nil && real.namespace != "" && real.namespace != n.namespace {
		at := &corev1.ObjectReference{APIVersion: n.apiVersion, Kind: n.kind, Namespace: n.namespace, Name: n.name, UID: n.uid}
		c.env.Events.Eventf(at, corev1.EventTypeWarning, "OwnerRefInvalidNamespace",
			"ownerRef %s does not exist in namespace %q", id, n.namespace)
	}
	return nil, nil
}

// finishForeground lets an owner go once nothing blocks it, and wakes what does.
func (c *controller) finishForeground(ctx context.Context, n *node, deps []*node) error {
	var waitFor []*node
	for _, d := range deps {
		if blocks(d, n.uid) {
			waitFor = append(waitFor, d)
		}
	}
	if len(waitFor) == 0 {
		return c.dropFinalizer(ctx, n, metav1.FinalizerDeleteDependents)
	}
	return workload.AtOnce(len(waitFor), func(i int) error {
		if d := waitFor[i]; !d.foreground && !d.beingDeleted {
			return c.reconcile(ctx, string(d.uid)) // no deeper than this: d does not wait itself
		}
		return nil
	})
}

// orphan takes the owner off every dependent, then lets it go.
func (c *controller) orphan(ctx context.Context, n *node, deps []*node) error {
	err := workload.AtOnce(len(deps), func(i int) error {
		d := deps[i]
		latest, err := c.api(d.identity).Get(ctx, d.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && latest.UID != d.uid {
			return nil
		}
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(slices.Clone(latest.OwnerReferences),
			func(r metav1.OwnerReference) bool { return r.UID == n.uid })
		if len(left) == len(latest.OwnerReferences) {
			return nil
		}
		return c.setOwners(ctx, d, latest, left)
	})
	if err != nil {
		return fmt.Errorf("failed to orphan dependents of owner %s: %w", n.identity, err)
	}
	return c.dropFinalizer(ctx, n, metav1.FinalizerOrphanDependents)
}

func (c *controller) setOwners(ctx context.Context, n *node, latest *metav1.PartialObjectMetadata, refs []metav1.OwnerReference) error {
	if refs == nil {
		refs = []metav1.OwnerReference{}
	}
	return c.patch(ctx, n, map[string]any{"ownerReferences": refs, "resourceVersion": latest.ResourceVersion, "uid": n.uid})
}

func (c *controller) dropFinalizer(ctx context.Context, n *node, finalizer string) error {
	latest, err := c.api(n.identity).Get(ctx, n.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && latest.UID != n.uid {
		return nil
	}
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(latest.Finalizers), func(f string) bool { return f == finalizer })
	if len(left) == len(latest.Finalizers) {
		return nil
	}
	if left == nil {
		left = []string{}
	}
	return c.patch(ctx, n, map[string]any{"finalizers": left, "resourceVersion": latest.ResourceVersion, "uid": n.uid})
}

// patch is a JSON merge patch, which every resource takes, custom ones included; the resource
// version in it makes a concurrent change a conflict.
func (c *controller) patch(ctx context.Context, n *node, meta map[string]any) error {
	b, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return err
	}
	_, err = c.api(n.identity).Patch(ctx, n.name, types.MergePatchType, b, metav1.PatchOptions{})
	return engine.IgnoreNotFound(err)
}

func (c *controller) api(id identity) metadata.ResourceInterface {
	if id.namespace == "" {
		return c.metadata.Resource(id.gvr)
	}
	return c.metadata.Resource(id.gvr).Namespace(id.namespace)
}

// absentees remembers the last owners found not to exist: the many dependents of one owner ask
// once. UIDs are never reused, so what is absent stays so.
type absentees struct {
	mu   sync.Mutex
	set  map[identity]bool
	ring [500]identity
	next int
}

func (a *absentees) has(id identity) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.set[id]
}

func (a *absentees) add(id identity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil {
		a.set = map[identity]bool{}
	}
	delete(a.set, a.ring[a.next])
	a.ring[a.next] = id
	a.next = (a.next + 1) % len(a.ring)
	a.set[id] = true
}
