package definitions

import (
	"context"
	"strings"
	"sync"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/apiserver/registry"
)

// How instances of a deleted definition are cleaned up.
const (
	cleanupParallel = 4 // definitions at once
	cleanupPoll     = 100 * time.Millisecond
	cleanupWait     = time.Minute
	cleanupRetry    = 5 * time.Second
)

// Run follows the CustomResourceDefinitions until ctx ends: it decides their
// names, establishes them and cleans up after them.
func (t *Table) Run(ctx context.Context) {
	l := &runner{t: t, slots: make(chan struct{}, cleanupParallel), cleaning: map[string]bool{}}
	defer l.wg.Wait()
	for ctx.Err() == nil {
		if err := l.follow(ctx); err != nil && ctx.Err() == nil {
			t.Log.Debug("watching CustomResourceDefinitions begins anew", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-t.Clock.After(time.Second):
		}
	}
}

type runner struct {
	t        *Table
	wg       sync.WaitGroup
	slots    chan struct{}
	mu       sync.Mutex
	cleaning map[string]bool
}

// follow handles every definition there is, and every change.
func (l *runner) follow(ctx context.Context) error {
	w, err := l.t.Registry.Watch(ctx, registry.WatchOptions{SendInitial: true})
	if err != nil {
		return err
	}
	defer w.Close()
	items, _ := w.Initial()
	for _, kv := range items {
		l.handle(ctx, strings.TrimPrefix(kv.Key, prefix))
	}
	for {
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, ch := range changes {
			name := strings.TrimPrefix(ch.KV.Key, prefix)
			if ch.Type == watch.Deleted {
				l.released(ctx, name)
				continue
			}
			l.handle(ctx, name)
		}
	}
}

// released: whoever wanted a name that has become free may have it.
func (l *runner) released(ctx context.Context, name string) {
	l.t.Entry(ctx, name) // ends its watches
	_, group, _ := strings.Cut(name, ".")
	for _, c := range l.t.outlines(ctx) {
		if c.Spec.Group == group && !apiextensions.SameNames(c) {
			l.handle(ctx, c.Name)
		}
	}
}

// outlines are the stored definitions without their schemas.
func (t *Table) outlines(ctx context.Context) (out []*apiextensions.CRD) {
	kvs, revision, err := t.Stored(ctx)
	if err != nil {
		return nil
	}
	for _, e := range t.Entries(kvs, revision) {
		out = append(out, e.CRD)
	}
	return out
}

func (l *runner) handle(ctx context.Context, name string) {
	e := l.t.Entry(ctx, name)
	if e == nil {
		return
	}
	if apiextensions.MustCleanUp(e.CRD) {
		l.cleanUp(ctx, name)
	}
	freed := false
	for _, decide := range []func(*apiextensions.CRD){
		func(c *apiextensions.CRD) {
			apiextensions.Decide(c, func() []*apiextensions.CRD { return l.others(ctx, c) }, l.now())
		},
		func(c *apiextensions.CRD) { apiextensions.Establish(c, l.now()) },
	} {
		changed, err := l.decide(ctx, name, decide)
		if err != nil {
			l.t.Log.Error("the status of a CustomResourceDefinition cannot be brought up to date", "name", name, "error", err)
		}
		freed = freed || changed
	}
	if freed { // it may have let go of a name
		for _, c := range l.others(ctx, e.CRD) {
			if !apiextensions.SameNames(c) {
				_, err := l.decide(ctx, c.Name, func(c *apiextensions.CRD) {
					apiextensions.Decide(c, func() []*apiextensions.CRD { return l.others(ctx, c) }, l.now())
				})
				if err != nil {
					l.t.Log.Error("the names of a CustomResourceDefinition cannot be decided", "name", c.Name, "error", err)
				}
			}
		}
	}
}

func (l *runner) now() metav1.Time {
	return metav1.NewTime(l.t.Clock.Now().Truncate(time.Second))
}

// others are the other definitions of c's group.
func (l *runner) others(ctx context.Context, c *apiextensions.CRD) (out []*apiextensions.CRD) {
	for _, o := range l.t.outlines(ctx) {
		if o.Spec.Group == c.Spec.Group && o.Name != c.Name {
			out = append(out, o)
		}
	}
	return out
}

// decide applies a decision about the status; it writes only what it changes.
func (l *runner) decide(ctx context.Context, name string, decide func(*apiextensions.CRD)) (changed bool, err error) {
	e := l.t.Entry(ctx, name)
	if e == nil {
		return false, nil
	}
	trial := e.CRD.DeepCopy()
	if decide(trial); apiequality.Semantic.DeepEqual(trial.Status, e.CRD.Status) {
		return false, nil
	}
	return true, l.update(ctx, name, decide)
}

// update changes the stored definition; one that is gone needs no change.
func (l *runner) update(ctx context.Context, name string, change func(*apiextensions.CRD)) error {
	_, _, err := l.t.Registry.Update(ctx, registry.Update{
		Write: registry.Write{Name: name}, View: &api.View{}, Unconditional: true,
		Change: func(_ context.Context, obj api.Object) (api.Object, error) {
			c, err := definition(obj)
			if err == nil {
				change(c)
			}
			return obj, err
		},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// cleanUp deletes the instances of a definition, beside everything else.
func (l *runner) cleanUp(ctx context.Context, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cleaning[name] {
		return
	}
	l.cleaning[name] = true
	l.wg.Go(func() {
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.cleaning, name)
		}()
		select {
		case l.slots <- struct{}{}:
			defer func() { <-l.slots }()
		case <-ctx.Done():
			return
		}
		for {
			e := l.t.Entry(ctx, name)
			if e == nil || !apiextensions.MustCleanUp(e.CRD) {
				return
			}
			err := l.cleanOnce(ctx, name, e)
			if err == nil || ctx.Err() != nil {
				return
			}
			l.t.Log.Info("instances of a CustomResourceDefinition being deleted remain; trying again", "name", name, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-l.t.Clock.After(cleanupRetry):
			}
		}
	})
}

func (l *runner) cleanOnce(ctx context.Context, name string, e *Entry) error {
	if err := l.update(ctx, name, func(c *apiextensions.CRD) { apiextensions.CleaningUp(c, l.now()) }); err != nil {
		return err
	}
	var failed error
	if apiextensions.Published(e.CRD) && e.stored != nil {
		failed = l.deleteInstances(ctx, e.stored)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := l.update(ctx, name, func(c *apiextensions.CRD) { apiextensions.CleanedUp(c, l.now(), failed) }); err != nil {
		return err
	}
	return failed
}

// deleteInstances deletes every object and waits until finalizers let them go.
func (l *runner) deleteInstances(ctx context.Context, reg *registry.Registry) error {
	page, err := reg.List(ctx, registry.ListOptions{})
	if err != nil {
		return err
	}
	var errs []error
	for _, kv := range page.Items {
		w := registry.Write{}
		w.Namespace, w.Name = reg.Split(kv.Key)
		if _, _, err := reg.Delete(ctx, w, &metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	for deadline := l.t.Clock.Now().Add(cleanupWait); ; {
		page, err := reg.List(ctx, registry.ListOptions{})
		if err != nil || len(page.Items) == 0 {
			return err
		}
		if l.t.Clock.Now().After(deadline) {
			return apiextensions.ErrRemaining
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.t.Clock.After(cleanupPoll):
		}
	}
}
