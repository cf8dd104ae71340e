package hub

import (
	"context"
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
	wake  chan struct{} // capacity 1: there may be something to see
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
		h: h, start: start, last: min(start-1, v.Revision()),
		wake: make(chan struct{}, 1),
	}
	w.feed, w.index = h.join(req.Key, req.End)
	w.hist, w.histEnd = v.Log().Find(start), v.Log().End()
	return w, nil
}

func (w *watcher) signal() {
	w.waiting = false
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
		batch, more, err := w.advance(w.h.view.Load())
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

// advance moves the cursor over the next events up to v. more says that there
// may be others without waiting.
func (w *watcher) advance(v *mvcc.View) (b store.Batch, more bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hist < w.histEnd {
		return w.scan(v)
	}
	pos, all, err := w.feed.read(w, w.index, v.Log().End(), watchBatch)
	if err != nil || len(pos) == 0 {
		// A view published since v woke those who waited before w did.
		return store.Batch{}, v != w.h.view.Load(), err
	}
	if pos[0] < v.Log().First() {
		return store.Batch{}, false, store.ErrCompacted
	}
	b.Events = make([]store.Event, 0, len(pos))
	for i, size := 0, 0; i < len(pos); i++ {
		if size >= watchBytes {
			all = false
			break
		}
		b.Events = append(b.Events, v.Log().At(pos[i]))
		size += weight(b.Events[i])
	}
	if !all {
		b.Events, err = w.wholeRevisions(v, b.Events)
		if err != nil {
			return store.Batch{}, false, err
		}
	}
	w.index += uint64(len(b.Events))
	b.Revision = v.Revision()
	if !all {
		b.Revision = b.Events[len(b.Events)-1].KV.ModRevision
	}
	b.Events = slices.DeleteFunc(b.Events, func(ev store.Event) bool { return ev.KV.ModRevision < w.start })
	w.last = max(w.last, b.Revision)
	return b, true, nil
}

// weight is about how many bytes an event is for whoever sends it.
func weight(ev store.Event) int {
	n := len(ev.KV.Key) + len(ev.KV.Value)
	if ev.Prev != nil {
		n += len(ev.Prev.Value)
	}
	return n
}

// wholeRevisions drops the last revision of events if it may be incomplete,
// or completes it if it is the only one.
func (w *watcher) wholeRevisions(v *mvcc.View, events []store.Event) ([]store.Event, error) {
	last := events[len(events)-1].KV.ModRevision
	if first := events[0].KV.ModRevision; first != last {
		n := len(events)
		for events[n-1].KV.ModRevision == last {
			n--
		}
		return events[:n], nil
	}
	// One revision larger than a batch: its events stand together in the log.
	pos, _, err := w.feed.read(nil, w.index, v.Log().Find(last+1), int(v.Log().End()))
	if err != nil {
		return nil, err
	}
	events = events[:0]
	for _, p := range pos {
		events = append(events, v.Log().At(p))
	}
	return events, nil
}

// scan looks through the log for events from before the feed began.
func (w *watcher) scan(v *mvcc.View) (b store.Batch, more bool, err error) {
	log := v.Log()
	if w.feed.isLost() || w.hist < log.First() {
		return store.Batch{}, false, store.ErrCompacted
	}
	rev := w.last
	for looked, size := 0, 0; w.hist < w.histEnd; w.hist++ {
		ev := log.At(w.hist)
		if ev.KV.ModRevision != rev && (len(b.Events) >= watchBatch || size >= watchBytes || looked >= watchScan) {
			break
		}
		looked++
		rev = ev.KV.ModRevision
		if mvcc.Contains(w.feed.key, w.feed.end, ev.KV.Key) {
			b.Events = append(b.Events, ev)
			size += weight(ev)
		}
	}
	if w.hist == w.histEnd {
		// History reaches up to the newest revision, unless events came since.
		if pos, _, err := w.feed.read(nil, w.index, v.Log().End(), 1); err == nil && len(pos) == 0 {
			rev = max(rev, v.Revision())
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
	pos, _, err := w.feed.read(nil, w.index, v.Log().End(), 1)
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
