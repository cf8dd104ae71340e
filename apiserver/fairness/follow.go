package fairness

import (
	"context"
	"log/slog"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/skiff-project/skiff/apiserver/registry"
)

// Objects are the stored levels and schemas.
type Objects struct {
	Levels, Schemas *registry.Registry
	// Maintain brings them to what they must be: the mandatory ones, and those
	// nobody has taken over. It is called at first and after each change.
	Maintain func(ctx context.Context) error
	// Dangling notes in a schema's status whether its level exists.
	Dangling func(ctx context.Context, schema string, exists bool) error
	Log      *slog.Logger
}

// Follow keeps the limiter at what is stored, until ctx ends. Nothing happens
// while nothing changes.
func (l *Limiter) Follow(ctx context.Context, o Objects) {
	for wait := 100 * time.Millisecond; ctx.Err() == nil; {
		began := l.clock.Now()
		if err := l.follow(ctx, o); err != nil && ctx.Err() == nil {
			o.Log.Warn("priority levels and flow schemas are read anew", "error", err)
		}
		if l.clock.Since(began) > time.Minute {
			wait = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-l.clock.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}

func (l *Limiter) follow(ctx context.Context, o Objects) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, failed := make(chan struct{}, 1), make(chan error, 2)
	for _, r := range []*registry.Registry{o.Levels, o.Schemas} {
		w, err := r.Watch(ctx, registry.WatchOptions{})
		if err != nil {
			return err
		}
		defer w.Close()
		go func() {
			for {
				if _, err := w.Next(ctx); err != nil {
					failed <- err
					return
				}
				select {
				case changed <- struct{}{}:
				default: // it will read this change too
				}
			}
		}()
	}
	for {
		// First, so that what is read is never a part of a set that is being
		// made: a request in none of its schemas is refused.
		if err := o.Maintain(ctx); err != nil {
			return err
		}
		if err := l.read(ctx, o); err != nil {
			return err
		}
		select {
		case err := <-failed:
			return err
		case <-changed:
		}
	}
}

func (l *Limiter) read(ctx context.Context, o Objects) error {
	levels, err := objects[*flowcontrolv1.PriorityLevelConfiguration](ctx, o.Levels)
	if err != nil {
		return err
	}
	schemas, err := objects[*flowcontrolv1.FlowSchema](ctx, o.Schemas)
	if err != nil || len(levels) == 0 { // nothing is there yet: the built-in ones stay
		return err
	}
	l.Configure(levels, schemas)
	exists := map[string]bool{}
	for _, pl := range levels {
		exists[pl.Name] = true
	}
	for _, fs := range schemas {
		if err := o.Dangling(ctx, fs.Name, exists[fs.Spec.PriorityLevelConfiguration.Name]); err != nil {
			return err
		}
	}
	return nil
}

func objects[T any](ctx context.Context, r *registry.Registry) ([]T, error) {
	page, err := r.List(ctx, registry.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(page.Items))
	for _, kv := range page.Items {
		obj, err := r.Object(registry.Item{KV: kv, ResourceVersion: kv.ModRevision})
		if err != nil {
			return nil, err
		}
		if t, ok := obj.(T); ok {
			out = append(out, t)
		}
	}
	return out, nil
}
