package hub

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

const (
	// watchBatch is about how many events one Next returns at most; a
	// revision is never split.
	watchBatch = 1024
	// watchBytes is about how many bytes of keys and values they have at most:
	// what a slow client's stream holds is one batch.
	watchBytes = 1 << 20
	// watchScan is how many events of history are looked at before the
	// caller's context is looked at again.
	watchScan = 16384
)

// watcher is a cursor: first through the event log, up to where its feed
// began, then through its feed.
type watcher struct {
	h     *Hub
	feed  *feed
	start int64         // first revision wanted
	poll  func()        // tells a reader that polls, or nil
	wake  chan struct{} // tells one that waits, capacity 1: there may be something to see
	once  sync.Once

	next     sync.Mutex // held by Next: one reader at a time
	mu       sync.Mutex // guards the cursor
	hist     uint64     // next position of history to look at
	histEnd  uint64     // where history ends and the feed takes over
	index    uint64     // next event of the feed
	last     int64      // revision of the last batch
	waiting  bool       // in feed.waiting; guarded by feed.mu
	finished atomic.Bool
}

// Watch is store.Store's Watch over what the hub publishes.
func (h *Hub) Watch(req store.WatchRequest) (store.Watcher, error) {
	if err := h.err(); err != nil {
		return nil, err
	}
	if req.Key == "" {
		return nil, store.ErrEmptyKey
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.view.Load()
	start := req.StartRevision
	if start == 0 {
		start = v.Revision() + 1
	}
	if start < v.Since() || start < 0 {
		return nil, store.ErrCompacted
	}
	w := &watcher{
		h: h, start: start, poll: req.Wake, last: min(start-1, v.Revision()),
		wake: make(chan struct{}, 1),
	}
	w.feed, w.index = h.join(span{req.Key, req.End, req.Term})
	w.hist, w.histEnd = v.Log().Find(start), v.Log().End()
	return w, nil
}

func (w *watcher) signal() {
	w.waiting = false
	if w.poll != nil {
		w.poll()
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Next implements store.Watcher.
func (w *watcher) Next(ctx context.Context) (store.Batch, error) {
	w.next.Lock()
	defer w.next.Unlock()
	for {
		if w.finished.Load() {
			return store.Batch{}, store.ErrClosed
		}
		if err := w.h.err(); err != nil {
			return store.Batch{}, err
		}
		if err := ctx.Err(); err != nil {
			return store.Batch{}, err
		}
		// The view is loaded before the feed is read: a feed is lost before the
		// view that follows is seen.
		batch, more, err := w.advance(w.h.view.Load(), math.MaxInt64)
		if err != nil || len(batch.Events) > 0 {
			return batch, err
		}
		if more || w.finished.Load() || w.h.err() != nil { // who stops now wakes those that waited before
			continue
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
		}
	}
}

// Poll implements store.Watcher.
func (w *watcher) Poll(upTo int64) (b store.Batch, more bool, err error) {
	if err := w.h.err(); err != nil {
		return store.Batch{}, false, err
	}
	b, more, err = w.advance(w.h.view.Load(), upTo)
	if w.finished.Load() {
		return store.Batch{}, false, store.ErrClosed
	}
	return b, more || w.h.err() != nil, err // who stops now wakes those that waited before
}

// advance moves the cursor over the next events up to v, or up to a revision
// before it. more says that there may be others without waiting.
func (w *watcher) advance(v *mvcc.View, upTo int64) (b store.Batch, more bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hist < w.histEnd {
		return w.scan(v, upTo)
	}
	b.Revision = v.Revision()
	end := v.Log().End()
	if upTo < b.Revision {
		b.Revision, end = upTo, v.Log().Find(upTo+1)
	}
	pos, more, err := w.feed.read(w, w.index, end, v.Log().End())
	if err == nil && len(pos) > 0 && pos[0] < v.Log().First() {
		err = store.ErrCompacted
	}
	if err != nil {
		return store.Batch{}, false, err
	}
	if len(pos) > 0 {
		b.Events = w.feed.take(v.Log(), w.index, pos)
		w.index += uint64(len(b.Events))
		if len(b.Events) < len(pos) {
			more = true
			b.Revision = b.Events[len(b.Events)-1].KV.ModRevision
		}
		for len(b.Events) > 0 && b.Events[0].KV.ModRevision < w.start {
			b.Events = b.Events[1:]
		}
	}
	w.last = max(w.last, b.Revision)
	// A view published since v woke those who waited before w did.
	return b, more || v != w.h.view.Load(), nil
}

// weight is about how many bytes an event is for whoever sends it.
func weight(ev store.Event) int {
	n := len(ev.KV.Key) + len(ev.KV.Value)
	if ev.Prev != nil {
		n += len(ev.Prev.Value)
	}
	return n
}

// scan looks through the log for events from before the feed began.
func (w *watcher) scan(v *mvcc.View, upTo int64) (b store.Batch, more bool, err error) {
	log := v.Log()
	if w.feed.isLost() || w.hist < log.First() {
		return store.Batch{}, false, store.ErrCompacted
	}
	rev := w.last
	for looked, size := 0, 0; w.hist < w.histEnd; w.hist++ {
		ev := log.At(w.hist)
		if ev.KV.ModRevision > upTo ||
			ev.KV.ModRevision != rev && (len(b.Events) >= watchBatch || size >= watchBytes || looked >= watchScan) {
			break
		}
		looked++
		rev = ev.KV.ModRevision
		if mvcc.Contains(w.feed.key, w.feed.end, ev.KV.Key) && (w.feed.term == "" || v.About(w.feed.term, ev)) {
			b.Events = append(b.Events, ev)
			size += weight(ev)
		}
	}
	if w.hist == w.histEnd {
		// History reaches up to the newest revision, unless events came since.
		if pos, _, err := w.feed.read(nil, w.index, v.Log().End(), 0); err == nil && len(pos) == 0 {
			rev = max(rev, min(v.Revision(), upTo))
		}
	}
	w.last = rev
	b.Revision = rev
	return b, true, nil
}

// Progress implements store.Watcher.
func (w *watcher) Progress() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.h.view.Load()
	if w.hist < w.histEnd {
		return w.last
	}
	pos, _, err := w.feed.read(nil, w.index, v.Log().End(), 0)
	if err == nil && len(pos) == 0 {
		w.last = max(w.last, v.Revision())
	}
	return w.last
}

// Close implements store.Watcher.
func (w *watcher) Close() {
	w.once.Do(func() {
		w.finished.Store(true)
		w.feed.mu.Lock()
		w.signal()
		w.feed.waiting = slices.DeleteFunc(w.feed.waiting, func(o *watcher) bool { return o == w })
		w.feed.mu.Unlock()
		w.h.leave(w.feed)
	})
}
