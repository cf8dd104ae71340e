package etcdstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/storetest"
)

func put(key, value string) store.Txn { return store.Txn{Then: []store.Op{storetest.Put(key, value)}} }

func mustTxn(t testing.TB, s store.Store, txn store.Txn) store.TxnResult {
	t.Helper()
	res, err := s.Txn(t.Context(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// stock is another client of the same etcd.
func stock(t testing.TB, members []*member) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: urls(members), Logger: clientv3.NewCtxClient(t.Context()).GetLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func stockPut(t testing.TB, c *clientv3.Client, key, value string) int64 {
	t.Helper()
	resp, err := c.Put(t.Context(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// next collects n events, which must come in order and without repeats.
func next(t testing.TB, w store.Watcher, n int) (out []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(out) < n {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("after %v: %v", out, err)
		}
		for _, ev := range b.Events {
			out = append(out, fmt.Sprintf("%s=%s@%d", ev.KV.Key, ev.KV.Value, ev.KV.ModRevision))
		}
	}
	return out
}

// Keys live in etcd below the prefix; others are none of the store's, but
// transactions reach them, as upstream's compact_rev_key needs.
func TestPrefixStandsForRoot(t *testing.T) {
	members := startCluster(t, 1, quick...)
	c := stock(t, members)
	stockPut(t, c, "/other/pods/a", "theirs")
	stockPut(t, c, "/mine/pods/a", "before")
	s := openStore(t, Options{Endpoints: urls(members), Root: "/registry/", Prefix: "/mine/",
		Decorate: func(key string, value []byte) any { return key + ":" + string(value) }})
	w, err := s.Watch(t.Context(), store.WatchRequest{Key: "/registry/", End: "/registry0"})
	if err != nil {
		t.Fatal(err)
	}
	if kv := mustTxn(t, s, put("/registry/pods/b", "1")).Results[0].KV; kv.Attrs != "/registry/pods/b:1" {
		t.Errorf("attrs of a put: %v", kv.Attrs)
	}
	rev := stockPut(t, c, "compact_rev_key", "1")
	snap, err := s.Snapshot(t.Context(), 0)
	if err != nil || snap.Revision() != rev || snap.Count("\x00", "\x00") != 2 {
		t.Fatalf("revision %d, %d keys, %v; want revision %d, 2 keys", snap.Revision(), snap.Count("\x00", "\x00"), err, rev)
	}
	if kv := snap.Get("/registry/pods/a"); kv == nil || string(kv.Value) != "before" || kv.Attrs != "/registry/pods/a:before" {
		t.Errorf("what was there before: %+v", kv)
	}
	res := mustTxn(t, s, store.Txn{
		If:   []store.Compare{{Key: "compact_rev_key", Target: store.TargetVersion, Int: 1}},
		Then: []store.Op{storetest.Put("compact_rev_key", "2")},
	})
	if !res.Succeeded || res.Results[0].KV.ModRevision != rev+1 {
		t.Errorf("compact_rev_key: %+v", res)
	}
	res = mustTxn(t, s, store.Txn{Then: []store.Op{storetest.Get("compact_rev_key", ""), storetest.Delete("/registry/", "/registry0")}})
	if got := res.Results[0].KVs; len(got) != 1 || string(got[0].Value) != "2" || res.Results[1].Deleted != 2 {
		t.Errorf("%+v, deleted %d", got, res.Results[1].Deleted)
	}
	if got := fmt.Sprint(next(t, w, 3)); got != fmt.Sprintf("[/registry/pods/b=1@%d /registry/pods/a=@%d /registry/pods/b=@%d]", rev-1, rev+2, rev+2) {
		t.Error(got)
	}
	left, err := c.Get(t.Context(), "", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	if err != nil || len(left.Kvs) != 2 {
		t.Errorf("in etcd: %v, %v", left, err)
	}
}

// The event log is bounded: who is slower learns of it, and old snapshots come
// from etcd as long as that has them.
func TestHistoryIsBounded(t *testing.T) {
	members := startCluster(t, 1, quick...)
	s := openStore(t, Options{Endpoints: urls(members), HistoryEvents: 20})
	w, err := s.Watch(t.Context(), store.WatchRequest{Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	mustTxn(t, s, put("other", "x"))
	for i := range 50 {
		mustTxn(t, s, put("k", strconv.Itoa(i)))
	}
	if _, err := w.Next(t.Context()); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("slow watcher: %v, want ErrCompacted", err)
	}
	snap, err := s.Snapshot(t.Context(), 5)
	if err != nil || string(snap.Get("k").Value) != "2" || snap.Revision() != 5 {
		t.Fatalf("old snapshot: %+v, %v", snap, err)
	}
	now, _ := s.Snapshot(t.Context(), store.Local)
	if snap.Get("other") != now.Get("other") {
		t.Error("one version is two pointers in an old snapshot and the newest")
	}
	if err := s.Compact(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshot(t.Context(), 5); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("snapshot of a compacted revision: %v", err)
	}
}

// A second store on the same etcd has the history of the first, as far back as
// etcd has it.
func TestHistorySurvivesRestart(t *testing.T) {
	members := startCluster(t, 1, quick...)
	s := openStore(t, Options{Endpoints: urls(members)})
	for i := range 5 {
		mustTxn(t, s, put("k", strconv.Itoa(i)))
	}
	if err := s.Compact(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	again := openStore(t, Options{Endpoints: urls(members)})
	w, err := again.Watch(t.Context(), store.WatchRequest{Key: "k", StartRevision: 4})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(next(t, w, 3)); got != "[k=2@4 k=3@5 k=4@6]" {
		t.Error(got)
	}
	// Whether revision 3 itself had other changes, nobody can tell any more.
	if _, err := again.Watch(t.Context(), store.WatchRequest{Key: "k", StartRevision: 3}); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from the compacted revision: %v, want ErrCompacted", err)
	}
}

// The watch goes on where it was when connections break.
func TestWatchSurvivesCutConnections(t *testing.T) {
	members := startCluster(t, 1, quick...)
	p := startProxy(t, members[0].client)
	s := openStore(t, Options{Endpoints: []string{p.url()}})
	w, err := s.Watch(t.Context(), store.WatchRequest{Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	const puts = 300
	done := make(chan struct{})
	c := stock(t, members)
	go func() {
		defer close(done)
		for i := range puts {
			if _, err := c.Put(t.Context(), "k", strconv.Itoa(i)); err != nil {
				t.Error(err)
				return
			}
			if i%60 == 30 {
				p.cut(false)
			}
		}
	}()
	got := next(t, w, puts)
	<-done
	for i, ev := range got {
		if want := fmt.Sprintf("k=%d@%d", i, i+2); ev != want {
			t.Fatalf("event %d is %s, want %s", i, ev, want)
		}
	}
}

// What was compacted away while the connection was down is not made up for:
// watchers hear of it, the mirror is whole again.
func TestMissedHistoryIsErrCompacted(t *testing.T) {
	members := startCluster(t, 1, quick...)
	c := stock(t, members)
	p := startProxy(t, members[0].client)
	s := openStore(t, Options{Endpoints: []string{p.url()}})
	kept := mustTxn(t, s, put("kept", "x")).Results[0].KV
	w, err := s.Watch(t.Context(), store.WatchRequest{Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	idle, _ := s.Watch(t.Context(), store.WatchRequest{Key: "idle", StartRevision: 2})
	p.cut(true)
	var rev int64
	for i := range 10 {
		rev = stockPut(t, c, "k", strconv.Itoa(i))
	}
	if _, err := c.Compact(t.Context(), rev-1); err != nil {
		t.Fatal(err)
	}
	if snap, err := s.Snapshot(t.Context(), store.Local); err != nil || snap.Get("k") != nil {
		t.Errorf("the mirror while cut off: %v", err)
	}
	p.cut(false)
	snap, err := s.Snapshot(t.Context(), 0)
	if err != nil || snap.Revision() != rev || string(snap.Get("k").Value) != "9" {
		t.Fatalf("snapshot: %+v, %v", snap, err)
	}
	if snap.Get("kept") != kept {
		t.Error("an unchanged version has another pointer")
	}
	for _, w := range []store.Watcher{w, idle} {
		if _, err := w.Next(t.Context()); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("watcher: %v, want ErrCompacted", err)
		}
		w.Close()
	}
	again, err := s.Watch(t.Context(), store.WatchRequest{Key: "k", StartRevision: rev})
	if err != nil {
		t.Fatal(err)
	}
	mustTxn(t, s, put("k", "last"))
	if got := fmt.Sprint(next(t, again, 2)); got != fmt.Sprintf("[k=9@%d k=last@%d]", rev, rev+1) {
		t.Error(got)
	}
}

// An answer that is lost leaves a write's outcome open; it is not sent again.
func TestUnknownOutcome(t *testing.T) {
	members := startCluster(t, 1, quick...)
	c := stock(t, members)
	p := startProxy(t, members[0].client)
	s := openStore(t, Options{Endpoints: []string{p.url()}})
	p.mute()
	errs := make(chan error)
	go func() {
		_, err := s.Txn(t.Context(), put("k", "once"))
		errs <- err
	}()
	for {
		resp, err := c.Get(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Kvs) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.cut(false)
	if err := <-errs; !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("error %v, want ErrOutcomeUnknown", err)
	}
	snap, err := s.Snapshot(t.Context(), 0)
	if err != nil || snap.Get("k") == nil || snap.Get("k").Version != 1 {
		t.Errorf("the write: %+v, %v; want version 1", snap, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p.mute()
	if _, err := s.Txn(ctx, put("k", "late")); !errors.Is(err, store.ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("out of time: %v, want ErrOutcomeUnknown and the deadline", err)
	}
}

// Without etcd: old and local reads work, others end in time, and a write that
// was never sent does not claim to have been.
func TestEtcdAway(t *testing.T) {
	members := startCluster(t, 1, quick...)
	s := openStore(t, Options{Endpoints: urls(members)})
	mustTxn(t, s, put("k", "v"))
	members[0].cmd.Process.Kill()
	members[0].cmd.Wait()
	if snap, err := s.Snapshot(t.Context(), 2); err != nil || snap.Get("k") == nil {
		t.Errorf("mirrored revision: %v", err)
	}
	if snap, err := s.Snapshot(t.Context(), store.Local); err != nil || snap.Get("k") == nil {
		t.Errorf("local: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Snapshot(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("linearizable: %v, want the deadline", err)
	}
	var err error
	for range 100 { // the first may meet the dying connection
		if _, err = s.Txn(t.Context(), put("k", "w")); !errors.Is(err, store.ErrOutcomeUnknown) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil || errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("write: %v, want an error that is sure", err)
	}
	blocked := make(chan error)
	w, _ := s.Watch(t.Context(), store.WatchRequest{Key: "k", StartRevision: 3})
	go func() {
		_, err := w.Next(t.Context())
		blocked <- err
	}()
	go func() {
		_, err := s.Snapshot(t.Context(), 0)
		blocked <- err
	}()
	time.Sleep(20 * time.Millisecond)
	s.Close()
	for range 2 {
		if err := <-blocked; !errors.Is(err, store.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// Readers that wait at the same moment share one read of etcd.
func TestLinearizableReadsAreCoalesced(t *testing.T) {
	members := startCluster(t, 1, quick...)
	s := openStore(t, Options{Endpoints: urls(members)})
	before := handled(t, members[0], "Range")
	const readers = 200
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			if _, err := s.Snapshot(t.Context(), 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := handled(t, members[0], "Range") - before; n > readers/4 {
		t.Errorf("%d readers cost %d reads of etcd", readers, n)
	}
}

// handled asks a member how many calls of a method it has answered.
func handled(t testing.TB, m *member, method string) (n int) {
	t.Helper()
	resp, err := http.Get(m.url() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		l := lines.Text()
		if strings.HasPrefix(l, "grpc_server_handled_total") && strings.Contains(l, `grpc_method="`+method+`"`) && strings.Contains(l, `"OK"`) {
			v, err := strconv.ParseFloat(l[strings.LastIndexByte(l, ' ')+1:], 64)
			if err != nil {
				t.Fatal(err)
			}
			n += int(v)
		}
	}
	return n
}
