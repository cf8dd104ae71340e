package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skiff-project/skiff/store"
)

const chaosKeys = 8

// chaosKey is the key that revision rev of TestCompactionUnderWatch writes; its value is rev.
func chaosKey(rev int64) string { return fmt.Sprint("k/", rev%chaosKeys) }

// Others compact etcd close behind its newest revision, connections break, some
// watchers are slow: each sees every revision in turn, or is told to list, and
// what it lists is whole. $SKIFF_TEST_LONG lasts two minutes.
func TestCompactionUnderWatch(t *testing.T) {
	lasts := 3 * time.Second
	if os.Getenv("SKIFF_TEST_LONG") != "" {
		lasts = 2 * time.Minute
	}
	members := startCluster(t, 1, quick...)
	p := startProxy(t, members[0].client)
	s := openStore(t, Options{Endpoints: []string{p.url()}})
	other := stock(t, members)
	var newest atomic.Int64
	newest.Store(1) // of a fresh etcd; nobody but this test writes
	write := func() {
		rev := newest.Load() + 1
		if got := stockPut(t, other, chaosKey(rev), strconv.FormatInt(rev, 10)); got != rev {
			t.Errorf("revision %d was written, want %d", got, rev)
		}
		newest.Store(rev)
	}
	for range chaosKeys {
		write()
	}
	began, first := time.Now(), newest.Load()
	var lists atomic.Int64 // by four watchers
	over := func() bool {
		took := time.Since(began)
		return took > lasts && lists.Load() >= 8 || took > lasts+time.Minute || t.Failed()
	}
	var work sync.WaitGroup
	work.Go(func() { // writes
		for !over() {
			write()
		}
	})
	work.Go(func() { // compacts, sometimes through the store
		for !over() {
			time.Sleep(time.Duration(10+rand.IntN(40)) * time.Millisecond)
			rev := newest.Load() - rand.Int64N(20)
			if rand.IntN(4) == 0 {
				_ = s.Compact(t.Context(), rev) // refused if it has been, or the connection is down
			} else {
				_, _ = other.Compact(t.Context(), rev)
			}
		}
	})
	work.Go(func() { // cuts connections
		for !over() {
			// The client looks for the server a second after it found none.
			p.cut(true)
			time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
			p.cut(false)
			time.Sleep(time.Duration(1000+rand.IntN(1000)) * time.Millisecond)
		}
	})
	for i := range 4 {
		work.Go(func() {
			c := chaosClient{t: t, s: s, first: first, slow: i%2 == 1, lists: &lists}
			for !over() {
				c.follow(over)
			}
			c.catchUp(newest.Load)
		})
	}
	work.Wait()
	t.Logf("%d writes, %d lists", newest.Load()-first, lists.Load())
	if lists.Load() < 8 {
		t.Error("no watcher was ever told to list again")
	}
}

// chaosClient lists and watches, as an informer does.
type chaosClient struct {
	t     *testing.T
	s     *Store
	first int64 // from this revision on every key exists
	slow  bool
	lists *atomic.Int64
	rev   int64 // seen up to here
}

// follow lists and then watches until it is told to list again, or enough is.
func (c *chaosClient) follow(enough func() bool) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	snap, err := c.s.Snapshot(ctx, 0)
	if err != nil {
		if ctx.Err() != nil {
			c.t.Errorf("no snapshot in 30 s: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
		return
	}
	c.lists.Add(1)
	if snap.Revision() < c.rev {
		c.t.Errorf("a list at revision %d after an event of %d", snap.Revision(), c.rev)
	}
	c.rev = snap.Revision()
	for rev := c.rev; rev > c.rev-chaosKeys; rev-- {
		if kv := snap.Get(chaosKey(rev)); kv == nil || kv.ModRevision != rev || string(kv.Value) != strconv.FormatInt(rev, 10) {
			c.t.Errorf("the list at revision %d has %+v for %s", c.rev, kv, chaosKey(rev))
		}
	}
	w, err := c.s.Watch(ctx, store.WatchRequest{Key: "k/", End: "k0", StartRevision: c.rev + 1})
	if err == nil {
		defer w.Close()
		err = c.watch(w, enough)
	}
	if err != nil && !errors.Is(err, store.ErrCompacted) {
		c.t.Errorf("watch from revision %d: %v", c.rev+1, err)
	}
}

func (c *chaosClient) watch(w store.Watcher, enough func() bool) error {
	for !enough() {
		if c.slow {
			time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), 100*time.Millisecond)
		b, err := w.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		for _, ev := range b.Events {
			want := c.rev + 1
			if kv := ev.KV; kv.ModRevision != want || kv.Key != chaosKey(want) || string(kv.Value) != strconv.FormatInt(want, 10) {
				return fmt.Errorf("event %s=%s of revision %d, want that of %d", kv.Key, kv.Value, kv.ModRevision, want)
			}
			c.rev = want
		}
	}
	return nil
}

// catchUp sees to it that the client reaches the newest revision.
func (c *chaosClient) catchUp(newest func() int64) {
	deadline := time.Now().Add(time.Minute)
	reached := func() bool { return c.rev >= newest() || time.Now().After(deadline) || c.t.Failed() }
	for !reached() {
		c.follow(reached)
	}
	if c.rev < newest() && !c.t.Failed() {
		c.t.Errorf("still at revision %d of %d after a minute", c.rev, newest())
	}
}
