// Package etcdstore is the store contract on a real etcd cluster.
//
// # Reading
//
// One watch of etcd's whole keyspace feeds a multi-version core (store/mvcc),
// the structure the embedded store keeps its data in: snapshots at old
// revisions, the event log and watchers are the same code. Each revision of
// etcd has at least one event, so a gap in the watch shows by itself, and the
// mirror is made anew from a list. Only keys below Options.Prefix are kept.
//
// A linearizable snapshot asks etcd for its newest revision, once for all
// callers that wait, and then waits until the mirror has reached it.
//
// # Writing
//
// A transaction is one Txn of etcd's, sent once. Its result is put together
// from the mirror when that has reached its revision: so the writer reads its
// own write, and one version is one pointer everywhere.
package etcdstore

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/hub"
	"github.com/skiff-project/skiff/store/mvcc"
)

// Options configure a Store.
type Options struct {
	// Endpoints are etcd's client URLs, all of one cluster. Required.
	Endpoints []string
	// TLS is used for https endpoints.
	TLS *tls.Config
	// Root is the part of the keyspace that is mirrored: keys that begin with
	// it. Reads and watches see nothing else; transactions reach every key.
	// Default everything.
	Root string
	// Prefix is what stands in etcd in the place of Root. Default Root.
	Prefix string
	// HistoryEvents and HistoryBytes bound what is kept of the past for slow
	// watchers and old snapshots. Default 100,000 events, 64 MiB.
	HistoryEvents int
	HistoryBytes  int64
	// Decorate makes the Attrs of every version; may be nil.
	Decorate store.Decorate
	// Index makes the terms that versions are found by; may be nil.
	Index store.Index
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

// Store is a store on an etcd cluster. It implements store.Store.
type Store struct {
	opt    Options
	client *clientv3.Client
	kv     pb.KVClient
	watch  pb.WatchClient
	lease  pb.LeaseClient
	ctx    context.Context // ends at Close
	end    context.CancelFunc
	hub    *hub.Hub
	work   sync.WaitGroup

	mu     sync.Mutex // guards the mirror being made
	core   *mvcc.Core
	target int64 // revision to reach before the core is shown; 0: it is shown

	index index
	old   struct { // the last snapshot that was older than the mirror
		sync.Mutex
		view *mvcc.View
	}
}

var _ store.Store = (*Store)(nil)

// Open connects to etcd and returns when the mirror is whole, or with the
// reason when ctx ends before.
func Open(ctx context.Context, opt Options) (*Store, error) {
	if len(opt.Endpoints) == 0 {
		return nil, errors.New("etcd: no endpoints are given")
	}
	if opt.Prefix == "" {
		opt.Prefix = opt.Root
	}
	if opt.HistoryEvents == 0 {
		opt.HistoryEvents = 100_000
	}
	if opt.HistoryBytes == 0 {
		opt.HistoryBytes = 64 << 20
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{opt: opt}
	s.ctx, s.end = context.WithCancel(context.Background())
	client, err := clientv3.New(clientv3.Config{
		Endpoints: opt.Endpoints, TLS: opt.TLS, Context: s.ctx,
		// As often as etcd allows: a member that hangs is left after 15 s.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second, PermitWithoutStream: true,
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(once)},
		Logger:      clientv3.NewCtxClient(s.ctx).GetLogger(), // discards; errors are reported where they matter
	})
	if err != nil {
		s.end()
		return nil, err
	}
	conn := client.ActiveConnection()
	s.client, s.kv, s.watch, s.lease = client, pb.NewKVClient(conn), pb.NewWatchClient(conn), pb.NewLeaseClient(conn)
	s.hub = hub.New(mvcc.New(nil, nil).View(), s.Err)
	s.index.moved = make(chan struct{})
	if err := s.list(ctx); err != nil {
		s.Close()
		return nil, err
	}
	target := s.target
	s.work.Go(s.run)
	if _, err := s.reach(ctx, target); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Err returns store.ErrClosed once the store is closed.
func (s *Store) Err() error {
	if s.ctx.Err() != nil {
		return store.ErrClosed
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	if s.ctx.Err() != nil {
		return nil
	}
	s.index.Lock()
	s.end() // nobody starts to ask any more
	s.index.Unlock()
	s.hub.Stop()
	s.client.Close() // says only that the context has ended
	s.work.Wait()
	return nil
}

// Snapshot implements store.Store.
func (s *Store) Snapshot(ctx context.Context, rev int64) (store.Snapshot, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	v := s.hub.View()
	if rev == 0 || rev > v.Revision() {
		now, err := s.current(ctx)
		if err != nil {
			return nil, err
		}
		if rev > now {
			return nil, store.ErrFutureRevision
		}
		if v, err = s.reach(ctx, cmp.Or(rev, now)); err != nil {
			return nil, err
		}
	}
	snap, err := v.At(rev)
	if errors.Is(err, store.ErrCompacted) && rev > 0 {
		return s.fetch(ctx, rev)
	}
	return snap, err
}

// fetch reads a snapshot from etcd that the mirror has forgotten. The last one
// is kept, for whoever reads it page by page.
func (s *Store) fetch(ctx context.Context, rev int64) (store.Snapshot, error) {
	s.old.Lock()
	defer s.old.Unlock()
	if v := s.old.view; v != nil && v.Revision() == rev {
		return v, nil
	}
	core, _, err := s.load(ctx, rev)
	if err != nil {
		return nil, err
	}
	s.old.view = core.View()
	return s.old.view, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, req store.WatchRequest) (store.Watcher, error) {
	if req.StartRevision == 0 {
		snap, err := s.Snapshot(ctx, 0)
		if err != nil {
			return nil, err
		}
		req.StartRevision = snap.Revision() + 1
	}
	return s.hub.Watch(req)
}

// Compact implements store.Store. If somebody else has compacted etcd further,
// the mirror forgets the history at or below rev nevertheless.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	if err := s.Err(); err != nil {
		return err
	}
	_, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: rev})
	if err = s.failure(ctx, err, true); err != nil && !errors.Is(err, store.ErrCompacted) {
		return err
	}
	if _, err := s.reach(ctx, rev); err != nil {
		return err
	}
	s.old.Lock()
	s.old.view = nil
	s.old.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core != nil && s.core.Compact(rev) == nil {
		for s.core.Sweep(1 << 16) {
		}
		s.show()
	}
	return err
}

// Status implements store.Store. Sizes are the mirror's.
func (s *Store) Status() store.Status {
	v := s.hub.View()
	live, old := v.Bytes()
	return store.Status{
		Revision: v.Revision(), CompactRevision: v.CompactRevision(), Keys: int64(v.Len()),
		SizeBytes: live + old, InUseBytes: live,
	}
}
