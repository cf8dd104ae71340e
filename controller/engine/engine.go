// Package engine runs level-triggered controllers.
//
// Vocabulary. A controller observes its Sources through shared informers and writes its Outputs
// through client-go. A Source turns one informer's changes into keys; a key names what must be
// looked at again, never what happened. Reconcile(ctx, key) reads the caches, computes the wanted
// writes with a pure function and makes them. Everything that has to do with goroutines, queues,
// retries and panics is here, so that a controller is only its logic.
//
// Bounds: a queue holds each key once, so it is never longer than the number of live keys; failed
// keys come back after 5 ms, doubling to 5 minutes.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
)

// Resource names an API resource as kubectl does: "pods", "replicasets.apps",
// "deployments.apps/status". Outputs name sub-resources separately; Sources never do.
type Resource string

// Queue accepts keys to reconcile. Safe for concurrent use.
type Queue interface {
	// Add asks for the key as soon as a worker is free; adding it twice is adding it once.
	Add(key string)
	// AddAfter asks for the key once d has passed.
	AddAfter(key string, d time.Duration)
}

// Source connects one informer to a controller.
type Source struct {
	Resource Resource
	Informer cache.SharedIndexInformer
	// On maps a change to keys: old is nil for an addition, new is nil for a deletion. Objects are
	// shared with every other reader and must not be changed. A nil On only waits for the cache.
	On func(q Queue, old, new any)
}

// Controller is one level-triggered loop as a value.
type Controller struct {
	Name    string     // upstream's --controllers name
	Outputs []Resource // what it writes; events are implied
	Workers int        // concurrent reconciliations; default 5
	Sources []Source
	// Reconcile brings what key names nearer to what is wanted. An error brings the key back with
	// back-off; the error Later(d) brings it back after d and counts as success.
	Reconcile func(ctx context.Context, key string) error
	// Background, when set, runs beside the workers once the caches are filled, and returns when
	// ctx ends. It is for what no shared informer delivers (the garbage collector's monitors).
	Background func(ctx context.Context, q Queue) error
}

// Env is what every controller is built from.
type Env struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Events    record.EventRecorder
	Clock     clock.WithTicker
	Log       *slog.Logger // names the controller already
}

type later time.Duration

func (l later) Error() string { return "look again in " + time.Duration(l).String() }

// Later returns the error by which Reconcile asks to be called for the same key after d.
func Later(d time.Duration) error {
	return later(max(d, time.Millisecond))
}

// LaterThan reports the delay asked for by err, if Later made it.
func LaterThan(err error) (time.Duration, bool) {
	var l later
	ok := errors.As(err, &l)
	return time.Duration(l), ok
}

// On builds a Source whose handler sees typed objects: nil old for additions, nil new for deletions.
func On[T any](r Resource, inf cache.SharedIndexInformer, fn func(q Queue, old, new *T)) Source {
	return Source{Resource: r, Informer: inf, On: func(q Queue, old, new any) {
		o, n := typed[T](old), typed[T](new)
		if o == nil && n == nil {
			return
		}
		fn(q, o, n)
	}}
}

// Reads builds a Source that only makes the controller wait for the cache to be filled.
func Reads(r Resource, inf cache.SharedIndexInformer) Source {
	return Source{Resource: r, Informer: inf}
}

func typed[T any](obj any) *T {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = d.Obj
	}
	t, _ := obj.(*T)
	return t
}

// Each adds the key of the changed object itself, whatever the change was.
func Each(q Queue, old, new any) {
	obj := new
	if obj == nil {
		obj = old
	}
	if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
		q.Add(key)
	}
}

// IgnoreNotFound is err, or nil where it says that the object is not there (any more).
func IgnoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// SplitKey splits "namespace/name" or "name".
func SplitKey(key string) (namespace, name string) {
	if ns, n, ok := strings.Cut(key, "/"); ok {
		return ns, n
	}
	return "", key
}

// Validate reports what makes c unusable.
func (c *Controller) Validate() error {
	switch {
	case c.Name == "":
		return errors.New("a controller needs a name")
	case c.Reconcile == nil:
		return fmt.Errorf("controller %s: no Reconcile function", c.Name)
	}
	return nil
}

// Writes reports whether c declared r among its outputs. "*" declares any resource.
func (c *Controller) Writes(r Resource) bool {
	base, sub, _ := strings.Cut(string(r), "/")
	for _, o := range c.Outputs {
		ob, os, _ := strings.Cut(string(o), "/")
		if (ob == "*" || ob == base) && os == sub {
			return true
		}
	}
	return false
}

// Run registers the handlers, waits for the caches, then works until ctx ends. start is called
// after registration and must make the informers run (the factory's Start).
func (c *Controller) Run(ctx context.Context, env Env, start func()) error {
	if err := c.Validate(); err != nil {
		return err
	}
	q := newQueue(c.Name, env.Clock)
	defer q.ShutDown()
	synced, unregister, err := c.register(q)
	defer unregister()
	if err != nil {
		return err
	}
	start()
	if !waitFor(ctx, synced) {
		return nil
	}
	var wg sync.WaitGroup
	workers := c.Workers
	if workers == 0 {
		workers = 5
	}
	for range workers {
		wg.Go(func() {
			for c.next(ctx, env.Log, q) {
			}
		})
	}
	if c.Background != nil {
		err = c.Background(ctx, q)
	} else {
		<-ctx.Done()
	}
	q.ShutDown() // wakes the idle workers
	wg.Wait()
	return err
}

func newQueue(name string, clk clock.WithTicker) workqueue.TypedRateLimitingInterface[string] {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[string](5*time.Millisecond, 5*time.Minute)
	return workqueue.NewTypedRateLimitingQueueWithConfig(limiter,
		workqueue.TypedRateLimitingQueueConfig[string]{Name: name, Clock: clk})
}

func (c *Controller) register(q Queue) (synced []cache.InformerSynced, unregister func(), err error) {
	var undo []func()
	unregister = func() {
		for _, f := range undo {
			f()
		}
	}
	for _, s := range c.Sources {
		if s.On == nil {
			synced = append(synced, s.Informer.HasSynced)
			continue
		}
		reg, err := s.Informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { s.On(q, nil, obj) },
			UpdateFunc: func(old, new any) { s.On(q, old, new) },
			DeleteFunc: func(obj any) { s.On(q, obj, nil) },
		})
		if err != nil {
			return nil, unregister, fmt.Errorf("controller %s: watch %s: %w", c.Name, s.Resource, err)
		}
		undo = append(undo, func() { _ = s.Informer.RemoveEventHandler(reg) })
		synced = append(synced, reg.HasSynced)
	}
	return synced, unregister, nil
}

// waitFor waits with a growing pause: an informer offers nothing to select on, caches usually fill
// within milliseconds, and one that cannot (no API server yet) must not cost CPU.
func waitFor(ctx context.Context, synced []cache.InformerSynced) bool {
	pause := time.Millisecond
	for _, ok := range synced {
		for !ok() {
			t := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				t.Stop()
				return false
			case <-t.C:
			}
			pause = min(pause*2, 200*time.Millisecond)
		}
	}
	return ctx.Err() == nil
}

func (c *Controller) next(ctx context.Context, log *slog.Logger, q workqueue.TypedRateLimitingInterface[string]) bool {
	key, quit := q.Get()
	if quit {
		return false
	}
	defer q.Done(key)
	err := c.reconcile(ctx, key)
	if d, ok := LaterThan(err); ok {
		q.Forget(key)
		q.AddAfter(key, d)
		return true
	}
	if err == nil {
		q.Forget(key)
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	level := slog.LevelWarn
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) || q.NumRequeues(key) < 2 {
		level = slog.LevelDebug // a stale cache or a passing fault: the retry settles it
	}
	log.Log(ctx, level, "reconcile failed, will retry", "key", key, "error", err)
	q.AddRateLimited(key)
	return true
}

// reconcile turns a panic into an error: one bad object must not stop the other controllers.
func (c *Controller) reconcile(ctx context.Context, key string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return c.Reconcile(ctx, key)
}
