package embedded

import (
	"context"
	"slices"
	"sync"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

// Bounds of one batch: how long a caller may wait for others' work.
const (
	maxBatchCalls = 4096
	maxBatchBytes = 4 << 20
)

// call is one caller's work for the leader.
type call struct {
	req  *mvcc.Request               // a transaction, or
	do   func(core *mvcc.Core) error // anything else
	size int                         // of what do writes, at most; 0: it is little
	// grows says that do needs space (and is refused when there is none).
	grows bool
	// after, if set, is run by the leader once do has succeeded and is durable,
	// in commit order.
	after func()

	res  store.TxnResult
	err  error
	lead bool          // woken to lead, not because the work is done
	wake chan struct{} // capacity 1
}

var calls = sync.Pool{New: func() any { return &call{wake: make(chan struct{}, 1)} }}

func newCall() *call { return calls.Get().(*call) }

func (c *call) free() {
	*c = call{wake: c.wake}
	calls.Put(c)
}

func (c *call) finish(err error) {
	if err != nil {
		c.err, c.res = err, store.TxnResult{}
	}
	c.wake <- struct{}{}
}

func (c *call) bytes() int {
	if c.req != nil {
		return c.req.JournalBound()
	}
	return max(c.size, 64)
}

func (c *call) needsSpace() bool { return c.grows || (c.req != nil && c.req.Puts()) }

// do runs fn on the core in turn with the transactions, durable on return.
func (s *Store) do(ctx context.Context, fn func(core *mvcc.Core) error) error {
	return s.submitOnce(ctx, call{do: fn})
}

// submitOnce submits a call like the given one and returns only its error.
func (s *Store) submitOnce(ctx context.Context, like call) error {
	c := newCall()
	like.wake = c.wake
	*c = like
	err := s.submit(ctx, c)
	c.free()
	return err
}

// submit queues c and returns when it is done: durable, or refused.
func (s *Store) submit(ctx context.Context, c *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.stopped != nil {
		defer s.mu.Unlock()
		return s.stopped
	}
	s.queue = append(s.queue, c)
	if !s.leading {
		s.leading = true
		s.mu.Unlock()
		s.leadBatch(c)
		return c.err
	}
	s.mu.Unlock()
	if done := ctx.Done(); done == nil {
		<-c.wake // cheaper than a select
	} else {
		select {
		case <-c.wake:
		case <-done:
			if s.takeBack(c) {
				return ctx.Err()
			}
			<-c.wake // being written: the outcome is near, and worth knowing
		}
	}
	if c.lead {
		c.lead = false
		s.leadBatch(c)
	}
	return c.err
}

// takeBack removes a call that no leader has taken yet.
func (s *Store) takeBack(c *call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, c)
	if i < 0 || c.lead {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	return true
}

// leadBatch commits own, the first of the queue, together with what waits
// behind it, and hands the lead to the next in the queue.
func (s *Store) leadBatch(own *call) {
	s.mu.Lock()
	if s.stopped != nil {
		own.err = s.stopped
		s.mu.Unlock()
		return
	}
	batch := s.takeBatch()
	s.committing.Lock()
	s.mu.Unlock()

	err := s.commit(batch)
	s.committing.Unlock()

	s.mu.Lock()
	if len(s.queue) > 0 {
		s.queue[0].lead = true
		s.queue[0].wake <- struct{}{}
	} else {
		s.leading = false
	}
	s.mu.Unlock()
	for _, c := range batch {
		if c != own {
			c.finish(err)
		} else if err != nil {
			c.err, c.res = err, store.TxnResult{}
		}
	}
}

// takeBatch takes the calls that are committed together. The caller holds s.mu.
func (s *Store) takeBatch() []*call {
	n, size := 0, 0
	for n < len(s.queue) && n < maxBatchCalls && size < maxBatchBytes {
		size += s.queue[n].bytes()
		n++
	}
	batch := slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	return batch
}

// commit applies a batch, makes it durable and publishes it. An error is the
// outcome of every call of the batch.
func (s *Store) commit(batch []*call) error {
	noPuts, nothing, err := s.reserve(batch)
	if err != nil {
		return s.fail(err)
	}
	for _, c := range batch {
		switch {
		case nothing || noPuts && c.needsSpace():
			c.err = store.ErrNoSpace
		case c.req != nil:
			c.res, c.err = s.core.Apply(c.req)
		default:
			c.err = c.do(s.core)
		}
	}
	if err := s.persist(); err != nil {
		return s.fail(err)
	}
	s.publish(s.hub.View())
	for _, c := range batch {
		if c.after != nil && c.err == nil {
			c.after()
		}
	}
	if err := s.checkpointIfDue(); err != nil {
		s.fail(err) // the batch itself is durable
	}
	return nil
}

// publish makes the core's state the one that readers and watchers see.
func (s *Store) publish(old *mvcc.View) {
	live, history := s.core.Bytes()
	oldLive, oldHistory := old.Bytes()
	if s.core.Revision() == old.Revision() && s.core.CompactRevision() == old.CompactRevision() &&
		live == oldLive && history == oldHistory {
		return
	}
	s.hub.Publish(s.core.View())
}
