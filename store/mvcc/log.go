package mvcc

import (
	"slices"
	"sort"

	"github.com/skiff-project/skiff/store"
)

// logChunk is the number of events of one chunk of the log.
const logChunk = 512

// eventLog is the append-only list of changes. An event's position never
// changes; chunks are shared with the views, which never look past their end.
type eventLog struct {
	chunks []*[logChunk]store.Event
	base   uint64 // position of chunks[0][0]
	first  uint64 // first readable position
	end    uint64 // position after the last event
}

func (l *eventLog) append(ev store.Event) {
	if i := l.end - l.base; i == uint64(len(l.chunks))*logChunk {
		// The directory is copied, not appended to in place, only when it is
		// full; views keep their own slice header either way.
		l.chunks = append(l.chunks, new([logChunk]store.Event))
	}
	i := l.end - l.base
	l.chunks[i/logChunk][i%logChunk] = ev
	l.end++
}

// drop forgets whole chunks before position keep.
func (l *eventLog) drop(keep uint64) {
	n := min(int((keep-l.base)/logChunk), len(l.chunks))
	if n > 0 {
		l.chunks = slices.Clone(l.chunks[n:])
		l.base += uint64(n) * logChunk
	}
}

func (l *eventLog) at(pos uint64) store.Event {
	i := pos - l.base
	return l.chunks[i/logChunk][i%logChunk]
}

// find returns the position of the first event at or after revision rev.
func (l *eventLog) find(rev int64) uint64 {
	n := sort.Search(int(l.end-l.first), func(i int) bool {
		return l.at(l.first+uint64(i)).KV.ModRevision >= rev
	})
	return l.first + uint64(n)
}

func (l *eventLog) view() LogView { return LogView{*l} }

// LogView is an immutable stretch of the event log, addressed by position.
type LogView struct{ l eventLog }

// First is the first readable position: events before it are compacted.
func (v LogView) First() uint64 { return v.l.first }

// End is the position after the last event.
func (v LogView) End() uint64 { return v.l.end }

// At returns the event at pos, First() <= pos < End().
func (v LogView) At(pos uint64) store.Event { return v.l.at(pos) }

// Find returns the position of the first event at or after revision rev.
func (v LogView) Find(rev int64) uint64 { return v.l.find(rev) }
