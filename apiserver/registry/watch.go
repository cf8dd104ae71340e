package registry

import (
	"context"
	"errors"
	"fmt"
	"math"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/store"
)

// Change is one event a watcher sees: KV is the version to show, stamped with
// ResourceVersion (which for a deletion is not the version's own).
type Change struct {
	Type            watch.EventType
	KV              *store.KV
	ResourceVersion int64
}

// WatchOptions are the options of a watch.
type WatchOptions struct {
	Selection
	ResourceVersion string
	// SendInitial asks for the present objects first, whatever ResourceVersion says.
	SendInitial bool
	// Wake is for a watch that is read by Poll; see store.WatchRequest.
	Wake func()
}

// Watch is an open watch. Not safe for concurrent use.
type Watch struct {
	m       *matcher
	initial []*store.KV
	rev     int64 // revision of the initial objects, then of the last batch
	w       store.Watcher
	buf     []Change
}

// Watch opens a watch. The caller must Close it.
func (r *Registry) Watch(ctx context.Context, o WatchOptions) (*Watch, error) {
	key, end, err := r.ranges(o.Selection)
	if err != nil {
		return nil, err
	}
	rv, err := ParseResourceVersion(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := &Watch{m: r.matcher(o.Selection), rev: rv}
	if rv == 0 || o.SendInitial {
		snap, err := r.notOlder(ctx, rv, o.ResourceVersion)
		if err != nil {
			return nil, err
		}
		w.rev = snap.Revision()
		enc := r.encryption.Now()
		for kv := range r.among(snap, o.Selection, key, end) {
			if kv, err = openItem(enc, kv); err != nil {
				return nil, err
			}
			if w.m.match(kv) {
				w.initial = append(w.initial, kv)
			}
		}
	}
	w.w, err = r.Store.Watch(ctx, store.WatchRequest{
		Key: key, End: end, Term: r.term(o.Selection), StartRevision: w.rev + 1, Wake: o.Wake,
	})
	if errors.Is(err, store.ErrCompacted) {
		return nil, tooOld(w.rev)
	}
	if err != nil {
		return nil, storeError(err)
	}
	return w, nil
}

func tooOld(rev int64) error {
	return apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d", rev))
}

// Initial returns the objects present at the start and the revision they are
// from. The watch continues after it.
func (w *Watch) Initial() ([]*store.KV, int64) {
	items := w.initial
	w.initial = nil
	return items, w.rev
}

// Next blocks for the next changes. The slice is valid until the next call.
// When history is gone it returns a 410.
func (w *Watch) Next(ctx context.Context) ([]Change, error) {
	for {
		changes, err := w.changes(w.w.Next(ctx))
		if err != nil || len(changes) > 0 {
			return changes, err
		}
	}
}

// Poll is Next for a watch with Wake: it does not wait, may return nothing, and
// tells whether there may be more; if not, Wake is called when there is.
func (w *Watch) Poll() (changes []Change, more bool, err error) {
	batch, more, err := w.w.Poll(math.MaxInt64)
	changes, err = w.changes(batch, err)
	return changes, more, err
}

// changes are what the watch sees of a batch.
func (w *Watch) changes(batch store.Batch, err error) ([]Change, error) {
	if errors.Is(err, store.ErrCompacted) {
		return nil, tooOld(w.rev)
	}
	if err != nil {
		return nil, err
	}
	w.rev = batch.Revision
	w.buf = w.buf[:0]
	enc := w.m.object.r.encryption.Now()
	for _, ev := range batch.Events {
		if err := openEvent(enc, &ev); err != nil {
			return nil, err
		}
		if c, ok := w.m.change(&ev); ok {
			w.buf = append(w.buf, c)
		}
	}
	return w.buf, nil
}

// openEvent puts the versions of an event in the clear.
func openEvent(enc encryption.Now, ev *store.Event) (err error) {
	if ev.Type == store.EventPut {
		if ev.KV, err = openItem(enc, ev.KV); err != nil {
			return err
		}
	}
	if ev.Prev != nil {
		ev.Prev, err = openItem(enc, ev.Prev)
	}
	return err
}

// Progress returns a revision up to which everything has been delivered.
func (w *Watch) Progress() int64 { return max(w.w.Progress(), w.rev) }

// Close frees the watch.
func (w *Watch) Close() { w.w.Close() }

// change translates a store event into what a watcher with this selection
// sees: an object that stops matching is deleted to it, one that starts
// matching is added.
func (m *matcher) change(ev *store.Event) (Change, bool) {
	if ev.Type == store.EventDelete {
		if ev.Prev == nil || !m.match(ev.Prev) {
			return Change{}, false
		}
		return Change{watch.Deleted, ev.Prev, ev.KV.ModRevision}, true
	}
	now := m.match(ev.KV)
	before := ev.Prev != nil && m.match(ev.Prev)
	if ev.Prev == nil && ev.KV.CreateRevision != ev.KV.ModRevision {
		before = true // the replaced version is compacted; modified is right for every informer
	}
	switch {
	case now && before:
		return Change{watch.Modified, ev.KV, ev.KV.ModRevision}, true
	case now:
		return Change{watch.Added, ev.KV, ev.KV.ModRevision}, true
	case before && ev.Prev != nil:
		return Change{watch.Deleted, ev.Prev, ev.KV.ModRevision}, true
	}
	return Change{}, false
}
