// Package objects caches the ConfigMaps and Secrets the node's pods refer to. Each referenced
// object is held by one watch on that very object (all the node authorizer allows), shared by its
// pods and dropped with the last of them.
package objects

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// Ref names a ConfigMap or Secret.
type Ref struct {
	Secret          bool
	Namespace, Name string
}

// Cache serves objects to the pods that registered them. Make one with New.
type Cache struct {
	client kubernetes.Interface
	log    *slog.Logger
	notify func([]types.UID)

	mu    sync.Mutex
	items map[Ref]*item
	pods  map[types.UID][]Ref
	ctx   context.Context
}

type item struct {
	pods   map[types.UID]bool
	cancel context.CancelFunc
	ready  chan struct{} // closed at the first successful list
	obj    runtime.Object
	err    error // why the first list failed
}

// listTimeout bounds how long a pod's start waits for one object.
const listTimeout = 10 * time.Second

// New makes an empty cache whose watches live as long as ctx. notify is called, never
// concurrently with itself for one object, with the pods that refer to an object that changed.
func New(ctx context.Context, client kubernetes.Interface, log *slog.Logger, notify func([]types.UID)) *Cache {
	return &Cache{client: client, log: log, notify: notify, items: map[Ref]*item{}, pods: map[types.UID][]Ref{}, ctx: ctx}
}

// Register says that a pod refers to these objects, replacing what it said before.
func (c *Cache) Register(uid types.UID, refs []Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.pods[uid]
	for _, r := range refs {
		it := c.items[r]
		if it == nil {
			ctx, cancel := context.WithCancel(c.ctx)
			it = &item{pods: map[types.UID]bool{}, cancel: cancel, ready: make(chan struct{})}
			c.items[r] = it
			go c.follow(ctx, r, it)
		}
		it.pods[uid] = true
	}
	c.pods[uid] = refs
	for _, r := range old {
		if !slices.Contains(refs, r) {
			c.drop(uid, r)
		}
	}
	if len(refs) == 0 {
		delete(c.pods, uid)
	}
}

// Unregister forgets a pod.
func (c *Cache) Unregister(uid types.UID) { c.Register(uid, nil) }

func (c *Cache) drop(uid types.UID, r Ref) {
	it := c.items[r]
	if it == nil {
		return
	}
	delete(it.pods, uid)
	if len(it.pods) == 0 {
		it.cancel()
		delete(c.items, r)
	}
}

// ConfigMap returns a registered ConfigMap. The result is shared: do not change it.
func (c *Cache) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	o, err := c.get(Ref{Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return o.(*v1.ConfigMap), nil
}

// Secret returns a registered Secret. The result is shared: do not change it.
func (c *Cache) Secret(namespace, name string) (*v1.Secret, error) {
	o, err := c.get(Ref{Secret: true, Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return o.(*v1.Secret), nil
}

func (c *Cache) get(r Ref) (runtime.Object, error) {
	c.mu.Lock()
	it := c.items[r]
	c.mu.Unlock()
	if it == nil {
		return c.direct(r)
	}
	t := time.NewTimer(listTimeout)
	defer t.Stop()
	select {
	case <-it.ready:
	case <-t.C:
		c.mu.Lock()
		defer c.mu.Unlock()
		return nil, fmt.Errorf("failed to sync %s cache: timed out waiting for the condition: %w", r.kind(), orUnknown(it.err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if it.obj == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: r.kind()}, r.Name)
	}
	return it.obj, nil
}

func orUnknown(err error) error {
	if err == nil {
		return fmt.Errorf("no answer from the API server")
	}
	return err
}

// direct asks the API server for an object nobody registered.
func (c *Cache) direct(r Ref) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(c.ctx, listTimeout)
	defer cancel()
	if r.Secret {
		return orNil(c.client.CoreV1().Secrets(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{}))
	}
	return orNil(c.client.CoreV1().ConfigMaps(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{}))
}

func orNil[T runtime.Object](o T, err error) (runtime.Object, error) {
	if err != nil {
		return nil, err
	}
	return o, nil
}

func (r Ref) kind() string {
	if r.Secret {
		return "secret"
	}
	return "configmap"
}

// follow lists and watches one object until ctx ends, or it is found to be immutable.
func (c *Cache) follow(ctx context.Context, r Ref, it *item) {
	wait := 100 * time.Millisecond
	first := true
	for ctx.Err() == nil {
		rv, obj, err := c.list(ctx, r)
		if err != nil {
			c.mu.Lock()
			it.err = err
			c.mu.Unlock()
			if ctx.Err() == nil {
				c.log.Warn("cannot list an object pods refer to", "kind", r.kind(), "namespace", r.Namespace, "name", r.Name, "err", err)
			}
			sleep(ctx, wait)
			wait = min(wait*2, 30*time.Second)
			continue
		}
		wait = 100 * time.Millisecond
		c.store(it, obj, !first)
		if first {
			first = false
			close(it.ready)
		}
		if immutable(obj) {
			return
		}
		c.watch(ctx, r, it, rv)
		sleep(ctx, 100*time.Millisecond)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func immutable(o runtime.Object) bool {
	switch x := o.(type) {
	case *v1.ConfigMap:
		return x.Immutable != nil && *x.Immutable
	case *v1.Secret:
		return x.Immutable != nil && *x.Immutable
	}
	return false
}

func (c *Cache) list(ctx context.Context, r Ref) (string, runtime.Object, error) {
	opts := metav1.ListOptions{FieldSelector: "metadata.name=" + r.Name}
	if r.Secret {
		l, err := c.client.CoreV1().Secrets(r.Namespace).List(ctx, opts)
		if err != nil {
			return "", nil, err
		}
		for i := range l.Items {
			if l.Items[i].Name == r.Name {
				return l.ResourceVersion, &l.Items[i], nil
			}
		}
		return l.ResourceVersion, nil, nil
	}
	l, err := c.client.CoreV1().ConfigMaps(r.Namespace).List(ctx, opts)
	if err != nil {
		return "", nil, err
	}
	for i := range l.Items {
		if l.Items[i].Name == r.Name {
			return l.ResourceVersion, &l.Items[i], nil
		}
	}
	return l.ResourceVersion, nil, nil
}

func (c *Cache) watch(ctx context.Context, r Ref, it *item, rv string) {
	opts := metav1.ListOptions{FieldSelector: "metadata.name=" + r.Name, ResourceVersion: rv}
	var w watch.Interface
	var err error
	if r.Secret {
		w, err = c.client.CoreV1().Secrets(r.Namespace).Watch(ctx, opts)
	} else {
		w, err = c.client.CoreV1().ConfigMaps(r.Namespace).Watch(ctx, opts)
	}
	if err != nil {
		sleep(ctx, time.Second)
		return
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case ev, ok := <-w.ResultChan():
			if !ok {
				return
			}
			m, isObj := ev.Object.(metav1.Object)
			switch {
			case ev.Type == watch.Bookmark:
			case ev.Type == watch.Error || !isObj:
				return
			case m.GetName() != r.Name:
			case ev.Type == watch.Deleted:
				c.store(it, nil, true)
			default:
				c.store(it, ev.Object, true)
			}
		}
	}
}

func (c *Cache) store(it *item, obj runtime.Object, tell bool) {
	c.mu.Lock()
	same := obj != nil && it.obj != nil && version(obj) == version(it.obj) || obj == nil && it.obj == nil
	it.obj, it.err = obj, nil
	var uids []types.UID
	for uid := range it.pods {
		uids = append(uids, uid)
	}
	c.mu.Unlock()
	if tell && !same && c.notify != nil {
		c.notify(uids)
	}
}

func version(o runtime.Object) string {
	if m, ok := o.(metav1.Object); ok {
		return m.GetResourceVersion() + "/" + string(m.GetUID())
	}
	return ""
}

// Refs lists every ConfigMap and Secret a pod refers to.
func Refs(pod *v1.Pod) []Ref {
	var out []Ref
	add := func(secret bool, name string) {
		if r := (Ref{secret, pod.Namespace, name}); name != "" && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		add(true, s.Name)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Secret != nil {
			add(true, v.Secret.SecretName)
		}
		if v.ConfigMap != nil {
			add(false, v.ConfigMap.Name)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				add(true, s.Secret.Name)
			}
			if s.ConfigMap != nil {
				add(false, s.ConfigMap.Name)
			}
		}
	}
	containers := append(append([]v1.Container{}, pod.Spec.InitContainers...), pod.Spec.Containers...)
	for i := range pod.Spec.EphemeralContainers {
		containers = append(containers, v1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	for i := range containers {
		for _, f := range containers[i].EnvFrom {
			if f.ConfigMapRef != nil {
				add(false, f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				add(true, f.SecretRef.Name)
			}
		}
		for _, e := range containers[i].Env {
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				add(false, e.ValueFrom.ConfigMapKeyRef.Name)
			}
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				add(true, e.ValueFrom.SecretKeyRef.Name)
			}
		}
	}
	return out
}
