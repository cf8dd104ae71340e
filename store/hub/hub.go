// Package hub shows readers the newest published View of a multi-version core
// and follows it for watchers. Watchers of one range share a feed: the
// positions of the range's events in the core's event log. A watcher is a
// cursor in its feed, so a slow one costs no memory. The embedded store and
// the mirror of an etcd cluster both publish through it.
package hub

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

// Hub finds, for each event, the feeds whose range holds its key. A commit
// costs one map lookup for each distinct length of a watched prefix, however
// many watchers there are, and wakes only watchers that have an event. Of
// those who watch a prefix for one term each, as every node does its pods, only
// those whose term the event is about are looked up.
type Hub struct {
	err  func() error // why there is nothing more to come
	view atomic.Pointer[mvcc.View]

	mu       sync.Mutex
	exact    map[string]*feed // ranges of one key
	prefixes lengths          // ranges of all keys with a prefix
	terms    lengths          // of a prefix, what is about one term
	ranges   map[span]*feed   // every other range
	touched  []*feed          // scratch of publish
}

type span struct{ key, end, term string }

// lengths are feeds of prefixes, found by trying each length that there is.
type lengths struct {
	feeds  map[prefix]*feed
	count  map[int]int // length of a prefix → how many feeds
	sorted []int       // the keys of count
}

type prefix struct{ key, term string }

func newLengths() lengths { return lengths{feeds: map[prefix]*feed{}, count: map[int]int{}} }

func (l *lengths) add(f *feed) {
	l.feeds[prefix{f.key, f.term}] = f
	n := len(f.key)
	if l.count[n]++; l.count[n] == 1 {
		l.sorted = append(l.sorted, n)
		slices.Sort(l.sorted)
	}
}

func (l *lengths) remove(f *feed) {
	delete(l.feeds, prefix{f.key, f.term})
	n := len(f.key)
	if l.count[n]--; l.count[n] == 0 {
		delete(l.count, n)
		l.sorted = slices.DeleteFunc(l.sorted, func(have int) bool { return have == n })
	}
}

// of yields the feeds of prefixes of key, of one term.
func (l *lengths) of(key, term string) iter.Seq[*feed] {
	return func(yield func(*feed) bool) {
		for _, n := range l.sorted {
			if n > len(key) {
				return
			}
			if f := l.feeds[prefix{key[:n], term}]; f != nil && !yield(f) {
				return
			}
		}
	}
}

// feed is the events of one range, shared by all its watchers: their positions
// in the event log, since the feed began or the last compaction.
type feed struct {
	span
	watchers int // guarded by hub.mu

	mu      sync.Mutex
	pos     []uint64 // positions, ascending
	base    uint64   // index of pos[0]: how many were dropped
	waiting []*watcher
	touched bool // by the commit under way
	lost    bool // the events that come next are not known
	last    stretch
}

// stretch is what some watcher took of a feed. Most stand at one place, and
// share it.
type stretch struct {
	index  uint64 // of the first event
	of     int    // how many positions there were to take from
	events []store.Event
}

// New returns a hub that shows v. Watchers end with err's answer once there is
// one; Stop tells those that wait.
func New(v *mvcc.View, err func() error) *Hub {
	h := &Hub{err: err}
	h.clear()
	h.view.Store(v)
	return h
}

// Stop wakes every watcher, after err has come to have an answer.
func (h *Hub) Stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.feeds() {
		f.wakeAll()
	}
}

// View is the newest published state.
func (h *Hub) View() *mvcc.View { return h.view.Load() }

func (h *Hub) clear() {
	h.exact = map[string]*feed{}
	h.prefixes, h.terms = newLengths(), newLengths()
	h.ranges = map[span]*feed{}
}

// PrefixEnd returns the end of the range of all keys that begin with prefix,
// "\x00" (no end) if there is none.
func PrefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return "\x00"
}

// join returns the feed of a range, made if need be, and how many events it
// has held so far. The caller holds h.mu.
func (h *Hub) join(s span) (f *feed, index uint64) {
	if s.end != PrefixEnd(s.key) {
		s.term = "" // not worth it
	}
	if f = h.lookup(s); f == nil {
		f = &feed{span: s}
		switch {
		case s.end == "":
			h.exact[s.key] = f
		case s.end != PrefixEnd(s.key):
			h.ranges[s] = f
		case s.term == "":
			h.prefixes.add(f)
		default:
			h.terms.add(f)
		}
	}
	f.watchers++
	f.mu.Lock()
	defer f.mu.Unlock()
	return f, f.base + uint64(len(f.pos))
}

func (h *Hub) lookup(s span) *feed {
	switch {
	case s.end == "":
		return h.exact[s.key]
	case s.end != PrefixEnd(s.key):
		return h.ranges[s]
	case s.term == "":
		return h.prefixes.feeds[prefix{key: s.key}]
	}
	return h.terms.feeds[prefix{s.key, s.term}]
}

// leave is called by a watcher that closes.
func (h *Hub) leave(f *feed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.watchers--; f.watchers > 0 || h.lookup(f.span) != f {
		return
	}
	switch {
	case f.end == "":
		delete(h.exact, f.key)
	case f.end != PrefixEnd(f.key):
		delete(h.ranges, f.span)
	case f.term == "":
		h.prefixes.remove(f)
	default:
		h.terms.remove(f)
	}
}

// Publish makes v, the view after the one before, the newest, and tells the
// watchers. Feeds grow before the view is stored, and watchers never look past
// the view they loaded: so whoever sees a view also sees all its events in the
// feeds.
func (h *Hub) Publish(v *mvcc.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.view.Load()
	log := v.Log()
	if len(h.exact)+len(h.prefixes.feeds)+len(h.terms.feeds)+len(h.ranges) > 0 {
		for pos := old.Log().End(); pos < log.End(); pos++ {
			ev := log.At(pos)
			h.route(ev.KV.Key, pos)
			h.routeTerms(v, ev, pos)
		}
	}
	h.view.Store(v)
	touched := h.touched
	for _, f := range touched {
		f.wakeAll()
	}
	clear(touched)
	h.touched = touched[:0]
	if log.First() > old.Log().First() {
		for f := range h.feeds() {
			f.trim(log.First())
		}
	}
}

// Reset makes v the newest view though what happened between it and the one
// before is not known: every watcher ends with store.ErrCompacted.
func (h *Hub) Reset(v *mvcc.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.feeds() {
		f.mu.Lock()
		f.lost = true
		f.mu.Unlock()
		defer f.wakeAll()
	}
	h.clear()
	h.view.Store(v)
}

func (h *Hub) feeds() iter.Seq[*feed] {
	return func(yield func(*feed) bool) {
		for _, all := range []iter.Seq[*feed]{
			maps.Values(h.exact), maps.Values(h.prefixes.feeds), maps.Values(h.terms.feeds), maps.Values(h.ranges),
		} {
			for f := range all {
				if !yield(f) {
					return
				}
			}
		}
	}
}

// route appends the event at pos, of key, to every feed whose range holds it.
func (h *Hub) route(key string, pos uint64) {
	if f := h.exact[key]; f != nil {
		h.add(f, pos)
	}
	for f := range h.prefixes.of(key, "") {
		h.add(f, pos)
	}
	for _, f := range h.ranges {
		if mvcc.Contains(f.key, f.end, key) {
			h.add(f, pos)
		}
	}
}

// routeTerms appends the event at pos to the feeds of the terms it is about.
func (h *Hub) routeTerms(v *mvcc.View, ev store.Event, pos uint64) {
	if len(h.terms.feeds) == 0 {
		return
	}
	now, was := "", ""
	if ev.Type == store.EventPut {
		now = v.Term(ev.KV)
	}
	if ev.Prev != nil {
		was = v.Term(ev.Prev)
	}
	if now == store.AnyTerm || was == store.AnyTerm {
		for p, f := range h.terms.feeds {
			if strings.HasPrefix(ev.KV.Key, p.key) {
				h.add(f, pos)
			}
		}
		return
	}
	if now != "" {
		for f := range h.terms.of(ev.KV.Key, now) {
			h.add(f, pos)
		}
	}
	if was != "" && was != now {
		for f := range h.terms.of(ev.KV.Key, was) {
			h.add(f, pos)
		}
	}
}

func (h *Hub) add(f *feed, pos uint64) {
	if !f.touched {
		f.touched = true
		h.touched = append(h.touched, f)
	}
	f.mu.Lock()
	f.pos = append(f.pos, pos)
	f.mu.Unlock()
}

// trim forgets compacted events.
func (f *feed) trim(first uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, _ := slices.BinarySearch(f.pos, first)
	f.base += uint64(n)
	f.pos = slices.Clone(f.pos[n:])
	f.last = stretch{}
}

func (f *feed) wakeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.touched = false
	for i, w := range f.waiting {
		w.signal()
		f.waiting[i] = nil
	}
	f.waiting = f.waiting[:0]
}

func (f *feed) isLost() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// read returns the positions from index on that lie before end, and whether
// there are others before last. If not, w is woken by the next. It fails with
// store.ErrCompacted if the index is gone or the feed is lost.
func (f *feed) read(w *watcher, index, end, last uint64) (pos []uint64, more bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lost || index < f.base {
		return nil, false, store.ErrCompacted
	}
	pos = f.pos[index-f.base:] // what has been appended once stays as it is
	n, _ := slices.BinarySearch(pos, end)
	more = n < len(pos) && pos[n] < last
	if !more && w != nil && !w.waiting {
		w.waiting = true
		f.waiting = append(f.waiting, w)
	}
	return pos[:n], more, nil
}

// take returns the events at pos, the first of which has the given index, or
// as many as make a batch.
func (f *feed) take(log mvcc.LogView, index uint64, pos []uint64) []store.Event {
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	if last.index == index && last.of == len(pos) {
		return last.events
	}
	events := make([]store.Event, 0, min(len(pos), watchBatch))
	for size := 0; len(events) < len(pos); {
		ev, n := log.At(pos[len(events)]), len(events)
		if (n >= watchBatch || size >= watchBytes) && ev.KV.ModRevision != events[n-1].KV.ModRevision {
			break
		}
		events = append(events, ev)
		size += weight(ev)
	}
	f.mu.Lock()
	f.last = stretch{index, len(pos), events}
	f.mu.Unlock()
	return events
}
