package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/store"
)

// leader returns the member that leads.
func leader(t *testing.T, members []*member) *member {
	t.Helper()
	for range 200 {
		for _, m := range members {
			c := stock(t, []*member{m})
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			st, err := c.Status(ctx, m.url())
			cancel()
			c.Close()
			if err == nil && st.Leader == st.Header.MemberId {
				return m
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("no member leads")
	return nil
}

// traffic writes numbered keys through one store and reads through another,
// as two API servers would, and keeps what each must be able to rely on.
type traffic struct {
	t       *testing.T
	writer  *Store
	reader  *Store
	acked   sync.Map // number → revision
	last    atomic.Int64
	unknown atomic.Int64
	reads   atomic.Int64
	failed  atomic.Int64
}

func numbered(n int64) string { return fmt.Sprintf("w/%06d", n) }

func (tr *traffic) write(ctx context.Context) {
	for n := 1; ctx.Err() == nil; n++ {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		res, err := tr.writer.Txn(try, put(numbered(int64(n)), "x"))
		cancel()
		switch {
		case err == nil:
			tr.acked.Store(n, res.Revision)
			tr.last.Store(int64(n))
		case errors.Is(err, store.ErrOutcomeUnknown):
			tr.unknown.Add(1)
		default:
			tr.failed.Add(1)
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (tr *traffic) read(ctx context.Context) {
	for ctx.Err() == nil {
		must := tr.last.Load()
		try, cancel := context.WithTimeout(ctx, 15*time.Second)
		snap, err := tr.reader.Snapshot(try, 0)
		cancel()
		if err != nil {
			continue
		}
		tr.reads.Add(1)
		// Each write has a key of its own: one of unknown outcome may take effect at any later time.
		if must > 0 && snap.Get(numbered(must)) == nil {
			tr.t.Errorf("stale read at revision %d: %s was acknowledged before it began", snap.Revision(), numbered(must))
		}
	}
}

// Leaders hang and die while two stores work on the cluster: no linearizable
// read is stale, no acknowledged write is lost, the watch has no gap and no
// repeat.
func TestLeaderChanges(t *testing.T) {
	members := startCluster(t, 3, "--heartbeat-interval=50", "--election-timeout=500")
	tr := &traffic{t: t, writer: openStore(t, Options{Endpoints: urls(members)}), reader: openStore(t, Options{Endpoints: urls(members)})}
	w, err := tr.reader.Watch(t.Context(), store.WatchRequest{Key: "w/", End: "w0", StartRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { tr.write(ctx) })
	for range 4 {
		wg.Go(func() { tr.read(ctx) })
	}
	time.Sleep(time.Second)
	hung := leader(t, members)
	hung.cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(4 * time.Second)
	before := tr.reads.Load()
	time.Sleep(2 * time.Second)
	if tr.reads.Load() == before {
		t.Error("no read works two seconds after a new leader must have been there")
	}
	hung.cmd.Process.Signal(syscall.SIGCONT)
	time.Sleep(time.Second)
	dead := leader(t, members)
	dead.cmd.Process.Kill()
	dead.cmd.Wait()
	time.Sleep(2 * time.Second)
	dead.start(t)
	time.Sleep(2 * time.Second)
	stop()
	wg.Wait()
	tr.verify(members, w)
}

// verify compares what etcd has at the end with what was acknowledged and with
// what the watcher saw.
func (tr *traffic) verify(members []*member, w store.Watcher) {
	t := tr.t
	all, err := stock(t, members).Get(t.Context(), "w/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]int64{}
	seen := next(t, w, len(all.Kvs))
	for i, kv := range all.Kvs {
		have[string(kv.Key)] = kv.ModRevision
		if want := fmt.Sprintf("%s=x@%d", kv.Key, kv.ModRevision); i < len(seen) && seen[i] != want {
			t.Fatalf("event %d is %s, want %s", i, seen[i], want)
		}
		if kv.Version != 1 {
			t.Errorf("%s was written %d times", kv.Key, kv.Version)
		}
	}
	if len(seen) != len(all.Kvs) {
		t.Errorf("%d events of %d keys", len(seen), len(all.Kvs))
	}
	acked := 0
	for n, rev := range tr.acked.Range {
		acked++
		if key := numbered(int64(n.(int))); have[key] != rev.(int64) {
			t.Errorf("the write of %s was acknowledged at revision %d, etcd has it at %d", key, rev, have[key])
		}
	}
	t.Logf("%d writes acknowledged, %d of unknown outcome, %d refused, %d reads", acked, tr.unknown.Load(), tr.failed.Load(), tr.reads.Load())
	if acked == 0 || tr.reads.Load() == 0 {
		t.Error("nothing worked")
	}
}
