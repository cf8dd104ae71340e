package garbagecollector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
)

const (
	rediscover = 5 * time.Minute // between looks at discovery when nothing hints at a change
	settle     = time.Second     // how long hints are collected before a look
	patience   = 30 * time.Second
	soon       = time.Second // how long an unknown owner may take to show up
)

// kind is what the collector knows of a resource.
type kind struct {
	gvr        schema.GroupVersionResource
	apiVersion string
	kind       string
	namespaced bool
}

// ignored resources own nothing, are owned by nothing, and come in masses.
var ignored = []schema.GroupResource{{Resource: "events"}, {Group: "events.k8s.io", Resource: "events"}}

// kinds lists what can be collected, out of discovery.
func kinds(lists []*metav1.APIResourceList) []kind {
	var out []kind
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range l.APIResources {
			gvr := gv.WithResource(r.Name)
			if r.Group != "" {
				gvr.Group = r.Group
			}
			if r.Version != "" {
				gvr.Version = r.Version
			}
			if slices.Contains(ignored, gvr.GroupResource()) || !hasAll(r.Verbs, "delete", "list", "watch") {
				continue
			}
			out = append(out, kind{gvr: gvr, apiVersion: gvr.GroupVersion().String(), kind: r.Kind, namespaced: r.Namespaced})
		}
	}
	return out
}

func hasAll(have metav1.Verbs, want ...string) bool {
	return !slices.ContainsFunc(want, func(v string) bool { return !slices.Contains(have, v) })
}

// monitor keeps the graph up to date with one resource. It is the reflector's store: the graph is
// the only copy, nothing but what it needs of an object's metadata is kept.
type monitor struct {
	kind
	graph  *graph
	queue  engine.Queue
	hint   func() // the resource says which resources exist
	synced atomic.Bool
	stop   context.CancelFunc
}

func (m *monitor) id(o metav1.Object) identity {
	return identity{gvr: m.gvr, apiVersion: m.apiVersion, kind: m.kind.kind,
		namespace: o.GetNamespace(), name: o.GetName(), uid: o.GetUID()}
}

func (m *monitor) wake(w wake) {
	for _, uid := range w.now {
		m.queue.Add(string(uid))
	}
	for _, uid := range w.soon {
		m.queue.AddAfter(string(uid), soon)
	}
}

// Add implements cache.ReflectorStore.
func (m *monitor) Add(obj any) error { return m.Update(obj) }

// Update implements cache.ReflectorStore.
func (m *monitor) Update(obj any) error {
	o, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return fmt.Errorf("monitor of %s got a %T", m.gvr, obj)
	}
	m.wake(m.graph.observe(m.id(o), o))
	if m.hint != nil {
		m.hint()
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (m *monitor) Delete(obj any) error {
	if o, ok := obj.(metav1.Object); ok {
		m.wake(m.graph.forget(o.GetUID()))
	}
	if m.hint != nil {
		m.hint()
	}
	return nil
}

// Replace implements cache.ReflectorStore: what is known but not listed is gone.
func (m *monitor) Replace(objs []any, _ string) error {
	listed := make(map[types.UID]bool, len(objs))
	for _, obj := range objs {
		if err := m.Update(obj); err != nil {
			return err
		}
		listed[obj.(metav1.Object).GetUID()] = true
	}
	for _, uid := range m.graph.of(m.gvr) {
		if !listed[uid] {
			m.wake(m.graph.forget(uid))
		}
	}
	m.synced.Store(true)
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to repeat.
func (m *monitor) Resync() error { return nil }

func (m *monitor) run(ctx context.Context, md metadata.Interface) {
	api := md.Resource(m.gvr)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
	}
	r := cache.NewReflectorWithOptions(lw, &metav1.PartialObjectMetadata{}, m, cache.ReflectorOptions{
		Name: "garbage collector: " + m.gvr.String()})
	r.RunWithContext(ctx)
}

// watchAll runs one monitor per collectable resource and follows what discovery offers. A resource
// that describes resources (a custom resource definition, an API service) hints at changes; without
// hints discovery is asked every five minutes.
func (c *controller) watchAll(ctx context.Context, q engine.Queue) error {
	hints := make(chan struct{}, 1)
	hint := func() {
		select {
		case hints <- struct{}{}:
		default:
		}
	}
	pause := time.Second
	for {
		next := rediscover
		if err := c.refresh(ctx, q, hint); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			c.env.Log.Debug("garbage collector: discovery incomplete, will retry", "error", err)
			next = pause
			pause = min(2*pause, rediscover)
		} else {
			pause = time.Second
		}
		if !c.ready.Load() {
			c.awaitSync(ctx)
			c.ready.Store(true)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.env.Clock.After(next):
			continue
		case <-hints:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.env.Clock.After(settle):
		}
		select {
		case <-hints:
		default:
		}
	}
}

// awaitSync waits until every monitor has listed its resource, but not for ever: one API that
// cannot be listed must not stop all collection.
func (c *controller) awaitSync(ctx context.Context) {
	deadline := time.Now().Add(patience)
	for pause := 5 * time.Millisecond; time.Now().Before(deadline) && !c.allSynced(); pause = min(2*pause, 500*time.Millisecond) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (c *controller) allSynced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.monitors {
		if !m.synced.Load() {
			return false
		}
	}
	return true
}

// refresh starts monitors for resources that appeared and stops those of resources that went.
func (c *controller) refresh(ctx context.Context, q engine.Queue, hint func()) error {
	lists, err := c.discover()
	found := kinds(lists)
	if len(found) == 0 {
		return errors.Join(errors.New("no resources found"), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	offered := map[schema.GroupVersionResource]bool{}
	for _, k := range found {
		offered[k.gvr] = true
		c.kinds[schema.GroupKind{Group: k.gvr.Group, Kind: k.kind}] = k
		if c.monitors[k.gvr] != nil {
			continue
		}
		m := &monitor{kind: k, graph: c.graph, queue: q}
		if k.gvr.Resource == "customresourcedefinitions" || k.gvr.Resource == "apiservices" {
			m.hint = hint
		}
		mctx, stop := context.WithCancel(ctx)
		m.stop = stop
		c.monitors[k.gvr] = m
		c.running.Go(func() { m.run(mctx, c.metadata) })
	}
	failed, _ := discovery.GroupDiscoveryFailedErrorGroups(err)
	for gvr, m := range c.monitors {
		if _, down := failed[gvr.GroupVersion()]; offered[gvr] || down {
			continue // a group that does not answer now has not lost its objects
		}
		m.stop()
		delete(c.monitors, gvr)
		delete(c.kinds, schema.GroupKind{Group: gvr.Group, Kind: m.kind.kind})
		for _, uid := range c.graph.of(gvr) {
			c.graph.forget(uid) // no wake: the objects' dependents find out by asking
		}
	}
	return err
}
