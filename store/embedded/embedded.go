// Package embedded is Skiff's own database: the multi-version core of
// store/mvcc, made durable by store/wal and shared by many callers.
//
// # Writing
//
// One caller at a time is the leader. It takes every call that is waiting,
// applies them to the core in order, writes their records to the log with one
// fdatasync, publishes a new View and wakes the callers; then the first call
// that queued meanwhile leads. Whoever is alone pays no goroutine switch, and
// a thousand callers share one fdatasync.
//
// The core runs ahead of the disk only inside a batch, and only the leader
// sees it: readers and watchers use the last published View, so nothing is
// read that is not durable. A failed fdatasync therefore needs no undo: the
// batch is answered with the error, and the store stops for good. Retrying is
// no option, the kernel may have dropped the dirty pages.
//
// # Watching
//
// Watchers of one range share a feed: the positions of the range's events in
// the one event log. A watcher is a cursor in its feed. See store/hub.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/hub"
	"github.com/skiff-project/skiff/store/mvcc"
	"github.com/skiff-project/skiff/store/vfs"
	"github.com/skiff-project/skiff/store/wal"
)

// Options configure a Store. The zero value is an in-memory store.
type Options struct {
	// Dir is the store's folder, made if missing; one process at a time may
	// have it open. Empty: nothing is kept and no disk is touched.
	Dir string
	// SegmentDir is wal.Options'.
	SegmentDir string
	// FS is the disk that Dir is on. Default the real one.
	FS vfs.FS
	// CheckpointBytes is the size of the log at which it is replaced by a
	// checkpoint, or the size of the last checkpoint if that is more. Default 64 MiB.
	CheckpointBytes int64
	// SegmentBytes and ExtendBytes shape the log; see wal.Options.
	SegmentBytes, ExtendBytes int64
	// NoSync leaves out every sync: acknowledged writes may be lost. For tests.
	NoSync bool
	// Decorate makes the Attrs of every version; may be nil.
	Decorate store.Decorate
	// Index makes the terms that versions are found by; may be nil.
	Index store.Index
	// QuotaBytes bounds live data and history together; puts beyond it fail
	// with store.ErrNoSpace. Default 8 GiB.
	QuotaBytes int64
	// MaxTxnOps bounds the operations of one branch of a transaction. Default 128.
	MaxTxnOps int
	// MaxRequestBytes bounds the keys and values of one transaction. Default
	// 1.5 MiB, at most 32 MiB.
	MaxRequestBytes int
	// LeaseCheckpoint is how often it is written how much of its time a lease
	// has left that has more than that; after a restart it has no more. 0:
	// never, and a restart gives it its full time again, as it does in any case
	// to one with less.
	LeaseCheckpoint time.Duration
	// Clock times leases. Default the real clock.
	Clock clock.WithTicker
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

// maxRequestBytes leaves room in a frame of the log for a batch and one more request.
const maxRequestBytes = wal.MaxPayload / 2

func (o *Options) setDefaults() {
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = 64 << 20
	}
	if o.QuotaBytes == 0 {
		o.QuotaBytes = 8 << 30
	}
	if o.MaxTxnOps == 0 {
		o.MaxTxnOps = 128
	}
	if o.MaxRequestBytes == 0 {
		o.MaxRequestBytes = 3 << 19
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Store is an embedded store. It implements store.Store.
type Store struct {
	opt Options
	hub *hub.Hub // shows the newest durable state

	mu      sync.Mutex // guards the four below
	queue   []*call    // one entry for each blocked caller
	leading bool
	stopped error         // why the store takes no more calls
	done    chan struct{} // closed when stopped is set

	committing sync.Mutex // held while a batch is written

	core          *mvcc.Core // the leader's
	log           *wal.Log   // the leader's; nil in memory
	diskFull      bool       // the leader's: the last batch found no room
	shrink        bool       // the leader's: try once whether a checkpoint makes room
	checkpointing atomic.Bool
	lessor        lessor
	work          sync.WaitGroup // background goroutines
}

var _ store.Store = (*Store)(nil)

// Open opens a store. Errors: a *LockedError if another process has the folder
// open, a *wal.CorruptError if it is damaged.
func Open(opt Options) (*Store, error) {
	opt.setDefaults()
	if opt.MaxRequestBytes > maxRequestBytes {
		return nil, fmt.Errorf("store: requests of %d bytes are too large for the log: allow %d at most", opt.MaxRequestBytes, maxRequestBytes)
	}
	s := &Store{opt: opt, done: make(chan struct{}), core: mvcc.New(opt.Decorate, opt.Index)}
	s.lessor.init(s)
	if opt.Dir != "" {
		if err := s.openLog(); err != nil {
			return nil, err
		}
	}
	s.hub = hub.New(s.core.View(), s.Err)
	s.work.Go(s.lessor.run)
	if opt.LeaseCheckpoint > 0 {
		tick := opt.Clock.NewTicker(opt.LeaseCheckpoint)
		s.work.Go(func() { s.lessor.checkpoints(tick) })
	}
	return s, nil
}

// Snapshot implements store.Store.
func (s *Store) Snapshot(ctx context.Context, rev int64) (store.Snapshot, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	return s.hub.View().At(rev)
}

// Watch implements store.Store.
func (s *Store) Watch(_ context.Context, req store.WatchRequest) (store.Watcher, error) {
	return s.hub.Watch(req)
}

// Txn implements store.Store. A context that ends while the transaction still
// waits its turn takes it back; once it is being written the call waits for
// the outcome.
func (s *Store) Txn(ctx context.Context, txn store.Txn) (store.TxnResult, error) {
	if err := checkSize(&txn, s.opt.MaxTxnOps); err != nil {
		return store.TxnResult{}, err
	}
	req, err := s.core.Prepare(&txn)
	if err != nil {
		return store.TxnResult{}, err
	}
	if req.Size() > s.opt.MaxRequestBytes {
		return store.TxnResult{}, store.ErrTooLarge
	}
	if req.ReadOnly() {
		if err := s.Err(); err != nil {
			return store.TxnResult{}, err
		}
		return s.hub.View().Read(req), nil
	}
	c := newCall()
	c.req = req
	err = s.submit(ctx, c)
	res := c.res
	c.free()
	return res, err
}

// checkSize bounds every branch of a transaction; a nested one has what the
// one around it leaves.
func checkSize(txn *store.Txn, limit int) error {
	ops := max(len(txn.If), len(txn.Then), len(txn.Else))
	if ops > limit {
		return store.ErrTooManyOps
	}
	for _, branch := range [][]store.Op{txn.Then, txn.Else} {
		for i := range branch {
			if branch[i].Kind != store.OpTxn {
				continue
			}
			if branch[i].Txn == nil {
				branch[i].Txn = &store.Txn{}
			}
			if err := checkSize(branch[i].Txn, limit-ops); err != nil {
				return err
			}
		}
	}
	return nil
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	err := s.do(ctx, func(core *mvcc.Core) error { return core.Compact(rev) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped == nil {
		s.work.Go(s.sweep)
	}
	return nil
}

// sweepStep is how many versions are freed without letting writers in.
const sweepStep = 256

// sweep frees what a compaction has forgotten, a little at a time.
func (s *Store) sweep() {
	for more := true; more; {
		if s.do(context.Background(), sweepInto(&more)) != nil {
			return
		}
	}
}

func sweepInto(more *bool) func(*mvcc.Core) error {
	return func(core *mvcc.Core) error {
		*more = core.Sweep(sweepStep)
		return nil
	}
}

// Checkpoint replaces the log by a checkpoint now and returns when that is
// durable. It does nothing in memory.
func (s *Store) Checkpoint(ctx context.Context) error {
	if s.log == nil {
		return nil
	}
	done := make(chan error, 1)
	err := s.submitOnce(ctx, call{
		do: func(*mvcc.Core) error { return nil },
		after: func() {
			if s.checkpointing.Load() {
				done <- errors.New("a checkpoint is being written already")
			} else if err := s.checkpoint(done); err != nil {
				done <- s.fail(err)
			}
		},
	})
	if err != nil {
		return err
	}
	return <-done
}

// Status implements store.Store.
func (s *Store) Status() store.Status {
	v := s.hub.View()
	live, _ := v.Bytes()
	var disk int64
	if s.log != nil {
		disk, _, _ = s.log.Sizes()
	}
	return store.Status{
		SizeBytes:       disk,
		Revision:        v.Revision(),
		CompactRevision: v.CompactRevision(),
		Keys:            int64(v.Len()),
		InUseBytes:      live,
	}
}

// Err returns why the store has stopped, or nil while it works.
func (s *Store) Err() error {
	select {
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.stopped
	default:
		return nil
	}
}

// Done is closed when the store has stopped: closed, or failed for good.
func (s *Store) Done() <-chan struct{} { return s.done }

// Close implements store.Store.
func (s *Store) Close() error {
	if !s.stop(store.ErrClosed) {
		return nil
	}
	s.committing.Lock() // the batch under way, if any, is the last
	defer s.committing.Unlock()
	s.work.Wait()
	if s.log != nil {
		return s.log.Close()
	}
	return nil
}

// stop makes every present and future call fail with err. It reports whether
// this call was the one that stopped the store.
func (s *Store) stop(err error) bool {
	s.mu.Lock()
	if s.stopped != nil {
		s.mu.Unlock()
		return false
	}
	s.stopped = err
	queue := s.queue
	s.queue = nil
	close(s.done)
	s.mu.Unlock()
	s.hub.Stop()
	for _, c := range queue {
		if !c.lead { // a leader to be finds out by itself
			c.finish(err)
		}
	}
	return true
}

// fail stops the store after an error of the disk.
func (s *Store) fail(err error) error {
	err = fmt.Errorf("store stopped: %w; restart it once the disk works again", err)
	if s.stop(err) && !errors.Is(err, store.ErrClosed) {
		s.opt.Log.Error("store stopped: nothing more is acknowledged", "err", err)
	}
	return err
}
