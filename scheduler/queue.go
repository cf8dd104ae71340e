package scheduler

import (
	"container/heap"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/scheduler/core"
)

const (
	firstBackoff = time.Second
	maxBackoff   = 10 * time.Second
	// maxParked is after what time a parked pod is tried again even if nothing
	// has happened that could help it.
	maxParked = 5 * time.Minute
	// longWait is how long an empty queue sleeps.
	longWait = time.Hour
)

// entry is a pod that waits for a node. It is in one of the queue's places.
type entry struct {
	pod      *core.Pod
	place    place
	added    time.Time // order among equals
	attempts int
	until    time.Time       // end of the back-off, or of parking
	rejected map[string]bool // plugins that refused a node the last time
	index    int             // in the heap of its place
}

type place uint8

const (
	inNone    place = iota
	inActive        // ready, by priority
	inBackoff       // ready later, by time
	inParked        // waits for something to change, by time
	inGated         // has scheduling gates
)

// queue holds one entry for each pod that waits. It knows no clock: callers
// say what time it is.
type queue struct {
	all     map[types.UID]*entry
	active  entryHeap
	backoff entryHeap
	parked  entryHeap
}

func newQueue() *queue {
	byTime := func(a, b *entry) bool { return a.until.Before(b.until) }
	return &queue{
		all: map[types.UID]*entry{},
		active: entryHeap{less: func(a, b *entry) bool {
			if a.pod.Priority != b.pod.Priority {
				return a.pod.Priority > b.pod.Priority
			}
			return a.added.Before(b.added)
		}},
		backoff: entryHeap{less: byTime},
		parked:  entryHeap{less: byTime},
	}
}

func (q *queue) heapOf(p place) *entryHeap {
	switch p {
	case inActive:
		return &q.active
	case inBackoff:
		return &q.backoff
	case inParked:
		return &q.parked
	}
	return nil
}

// move puts an entry into a place.
func (q *queue) move(e *entry, to place) {
	if h := q.heapOf(e.place); h != nil {
		heap.Remove(h, e.index)
	}
	e.place = to
	if h := q.heapOf(to); h != nil {
		heap.Push(h, e)
	}
}

// set adds a pod, or replaces what is known of it. changed says that the pod
// may fit now if it did not before.
func (q *queue) set(p *core.Pod, changed bool, now time.Time) {
	e := q.all[p.UID]
	if e == nil {
		e = &entry{added: now}
		q.all[p.UID] = e
		changed = true
	}
	was := e.place
	q.move(e, inNone) // its order may change with the pod
	e.pod = p
	switch {
	case len(p.Spec.SchedulingGates) > 0:
		q.move(e, inGated)
	case was == inNone || was == inGated || was == inParked && changed:
		q.ready(e, now)
	default:
		q.move(e, was)
	}
}

// ready moves an entry to where it waits for its turn.
func (q *queue) ready(e *entry, now time.Time) {
	if until := e.backoffEnd(); until.After(now) {
		e.until = until
		q.move(e, inBackoff)
		return
	}
	q.move(e, inActive)
}

// backoffEnd is when the entry may be tried again.
func (e *entry) backoffEnd() time.Time {
	if e.attempts == 0 {
		return time.Time{}
	}
	d := firstBackoff
	for i := 1; i < e.attempts && d < maxBackoff; i++ {
		d *= 2
	}
	return e.added.Add(min(d, maxBackoff))
}

// pop takes the pod whose turn it is, nil if none is ready.
func (q *queue) pop(now time.Time) *entry {
	for len(q.backoff.e) > 0 && !q.backoff.e[0].until.After(now) {
		q.move(q.backoff.e[0], inActive)
	}
	for len(q.parked.e) > 0 && !q.parked.e[0].until.After(now) {
		q.move(q.parked.e[0], inActive)
	}
	if len(q.active.e) == 0 {
		return nil
	}
	e := q.active.e[0]
	q.move(e, inNone)
	e.attempts++
	return e
}

// wait is how long it takes at most until pop has something.
func (q *queue) wait(now time.Time) time.Duration {
	d := longWait
	if len(q.backoff.e) > 0 {
		d = min(d, q.backoff.e[0].until.Sub(now))
	}
	if len(q.parked.e) > 0 {
		d = min(d, q.parked.e[0].until.Sub(now))
	}
	return d
}

// park keeps a popped entry until something changes for it.
func (q *queue) park(e *entry, rejected map[string]bool, now time.Time) {
	e.rejected = rejected
	e.added, e.until = now, now.Add(maxParked)
	q.all[e.pod.UID] = e
	q.move(e, inParked)
}

// retry keeps a popped entry for its back-off only.
func (q *queue) retry(e *entry, now time.Time) {
	e.added = now
	q.all[e.pod.UID] = e
	q.ready(e, now)
}

func (q *queue) remove(uid types.UID) {
	if e := q.all[uid]; e != nil {
		q.move(e, inNone)
		delete(q.all, uid)
	}
}

// entryHeap is a heap of entries.
type entryHeap struct {
	e    []*entry
	less func(a, b *entry) bool
}

func (h *entryHeap) Len() int           { return len(h.e) }
func (h *entryHeap) Less(i, j int) bool { return h.less(h.e[i], h.e[j]) }

func (h *entryHeap) Swap(i, j int) {
	h.e[i], h.e[j] = h.e[j], h.e[i]
	h.e[i].index, h.e[j].index = i, j
}

func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(h.e)
	h.e = append(h.e, e)
}

func (h *entryHeap) Pop() any {
	last := len(h.e) - 1
	e := h.e[last]
	h.e[last] = nil
	h.e = h.e[:last]
	return e
}
