package embedded

import (
	"container/heap"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

// lessor knows when leases end. Which leases exist, and their keys, is the
// core's; the lessor follows it after every durable grant and revoke.
type lessor struct {
	s      *Store
	change chan struct{} // capacity 1: the earliest deadline may have moved

	mu     sync.Mutex
	leases map[store.LeaseID]*deadline
	queue  deadlines
}

// deadline is a lease as the clock sees it. The clock is monotonic, so that
// setting the time of day neither ends nor prolongs a lease.
type deadline struct {
	id    store.LeaseID
	ttl   time.Duration
	at    time.Time
	index int  // in the queue
	noted bool // what is left of it was written, which a restart would go by
}

func (l *lessor) init(s *Store) {
	l.s = s
	l.change = make(chan struct{}, 1)
	l.leases = map[store.LeaseID]*deadline{}
}

// Leases implements store.Store.
func (s *Store) Leases() store.Leases { return &s.lessor }

// Grant implements store.Leases.
func (l *lessor) Grant(ctx context.Context, id store.LeaseID, ttl int64) (store.Lease, error) {
	ttl = max(ttl, 1)
	chosen := id == 0
	for {
		if chosen {
			id = store.LeaseID(rand.Int64N(1<<63-1) + 1)
		}
		err := l.s.submitOnce(ctx, call{
			grows: true,
			do:    func(core *mvcc.Core) error { return core.Grant(id, ttl) },
			after: func() { l.add(id, mvcc.Life{TTL: ttl}) },
		})
		if err == store.ErrLeaseExists && chosen {
			continue
		}
		if err != nil {
			return store.Lease{}, err
		}
		return store.Lease{ID: id, TTL: ttl, Remaining: ttl}, nil
	}
}

// add starts a lease's time, or what is left of it.
func (l *lessor) add(id store.LeaseID, life mvcc.Life) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &deadline{id: id, ttl: time.Duration(life.TTL) * time.Second, noted: life.Left != 0}
	left := life.TTL
	if d.noted {
		left = life.Left
	}
	d.at = l.s.opt.Clock.Now().Add(time.Duration(left) * time.Second)
	l.leases[id] = d
	heap.Push(&l.queue, d)
	l.notify()
}

// Revoke implements store.Leases.
func (l *lessor) Revoke(ctx context.Context, id store.LeaseID) error {
	return l.s.submitOnce(ctx, call{
		do:    func(core *mvcc.Core) error { return core.Revoke(id) },
		after: func() { l.drop(id) },
	})
}

func (l *lessor) drop(id store.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.leases[id]; d != nil {
		delete(l.leases, id)
		heap.Remove(&l.queue, d.index)
	}
}

// KeepAlive implements store.Leases.
func (l *lessor) KeepAlive(ctx context.Context, id store.LeaseID) (store.Lease, error) {
	if err := l.s.Err(); err != nil {
		return store.Lease{}, err
	}
	l.mu.Lock()
	now := l.s.opt.Clock.Now()
	d := l.leases[id]
	if d == nil || !now.Before(d.at) {
		l.mu.Unlock()
		return store.Lease{}, store.ErrLeaseNotFound
	}
	d.at = now.Add(d.ttl)
	heap.Fix(&l.queue, d.index)
	noted := d.noted
	l.mu.Unlock()
	if noted {
		if err := l.forget(ctx, id); err != nil {
			return store.Lease{}, err
		}
	}
	ttl := int64(d.ttl / time.Second)
	return store.Lease{ID: id, TTL: ttl, Remaining: ttl}, nil
}

// forget writes that a lease has all its time again.
func (l *lessor) forget(ctx context.Context, id store.LeaseID) error {
	return l.s.submitOnce(ctx, call{do: func(core *mvcc.Core) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if d := l.leases[id]; d != nil {
			d.noted = false
		}
		if err := core.SetLeft(id, 0); err != store.ErrLeaseNotFound {
			return err
		}
		return nil
	}})
}

// maxNoted is how many leases are written of at a time.
const maxNoted = 1000

// checkpoints notes at every tick what long leases have left.
func (l *lessor) checkpoints(tick clock.Ticker) {
	defer tick.Stop()
	for {
		select {
		case <-tick.C():
		case <-l.s.done:
			return
		}
		ids, _ := l.List(context.Background()) // a store that has stopped has none
		for part := range slices.Chunk(ids, maxNoted) {
			err := l.s.submitOnce(context.Background(), call{size: len(part) * 32, do: func(core *mvcc.Core) error { return l.note(core, part) }})
			if err != nil {
				break // the store has stopped or is full: after a restart leases live longer
			}
		}
	}
}

// note writes what those of the leases have left that outlive the next time.
// It looks at the clock in turn with the writers: what renews a lease after
// that finds it noted, and writes so behind it.
func (l *lessor) note(core *mvcc.Core, ids []store.LeaseID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.s.opt.Clock.Now()
	for _, id := range ids {
		d := l.leases[id]
		if d == nil {
			continue
		}
		left := d.at.Sub(now)
		if left <= l.s.opt.LeaseCheckpoint {
			continue
		}
		if err := core.SetLeft(id, int64(left/time.Second)); err != nil && err != store.ErrLeaseNotFound {
			return err
		}
		d.noted = true
	}
	return nil
}

// TimeToLive implements store.Leases.
func (l *lessor) TimeToLive(ctx context.Context, id store.LeaseID) (store.Lease, error) {
	lease := store.Lease{ID: id}
	// Asked in turn with the writers: the core may be ahead of the disk.
	err := l.s.do(ctx, func(core *mvcc.Core) (err error) {
		lease.TTL, lease.Keys, err = core.Lease(id)
		return err
	})
	if err != nil {
		return store.Lease{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.s.opt.Clock.Now()
	d := l.leases[id]
	if d == nil || !now.Before(d.at) {
		return store.Lease{}, store.ErrLeaseNotFound
	}
	lease.Remaining = int64(d.at.Sub(now) / time.Second) // whole seconds, as etcd
	return lease, nil
}

// List implements store.Leases.
func (l *lessor) List(ctx context.Context) ([]store.LeaseID, error) {
	if err := l.s.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Collect(maps.Values(l.leases))
	slices.SortFunc(all, func(a, b *deadline) int { return a.at.Compare(b.at) })
	ids := make([]store.LeaseID, len(all))
	for i, d := range all {
		ids[i] = d.id
	}
	return ids, nil
}

func (l *lessor) notify() {
	select {
	case l.change <- struct{}{}:
	default:
	}
}

// run revokes leases as they end. It sleeps while there is none.
func (l *lessor) run() {
	for l.s.Err() == nil {
		id, wait := l.earliest()
		if id != 0 && wait <= 0 {
			// The only error beside a stopped store is that a client has
			// revoked it meanwhile.
			l.Revoke(context.Background(), id)
			continue
		}
		l.sleep(id != 0, wait)
	}
}

// sleep waits for d if timed, for a change of the deadlines, or for the end.
func (l *lessor) sleep(timed bool, d time.Duration) {
	var ring <-chan time.Time
	if timed {
		timer := l.s.opt.Clock.NewTimer(d)
		defer timer.Stop()
		ring = timer.C()
	}
	select {
	case <-ring:
	case <-l.change:
	case <-l.s.done:
	}
}

// earliest returns the lease that ends first, 0 for none, and in how long.
func (l *lessor) earliest() (store.LeaseID, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return 0, 0
	}
	return l.queue[0].id, l.queue[0].at.Sub(l.s.opt.Clock.Now())
}

// deadlines is a heap, the earliest first.
type deadlines []*deadline

func (q deadlines) Len() int           { return len(q) }
func (q deadlines) Less(i, j int) bool { return q[i].at.Before(q[j].at) }

func (q deadlines) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *deadlines) Push(x any) {
	d := x.(*deadline)
	d.index = len(*q)
	*q = append(*q, d)
}

func (q *deadlines) Pop() any {
	old := *q
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return d
}
