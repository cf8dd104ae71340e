package storetest

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/skiff-project/skiff/store"
)

func freshStore(e *env) {
	s := e.snap(0)
	e.equal("revision", s.Revision(), 1)
	e.equal("keys", s.Count("\x00", "\x00"), 0)
	st := e.s.Status()
	e.equal("status", fmt.Sprint(st.Revision, st.CompactRevision, st.Keys), "1 0 0")
}

func revisions(e *env) {
	for want := int64(2); want < 6; want++ {
		e.equal("revision", e.do(Put("k", fmt.Sprint(want))), want)
	}
	e.equal("two puts and a delete share one", e.do(Put("a", "1"), Put("b", "1"), Delete("k", "")), 6)
	e.equal("keys", showRange(e.snap(0), "a", "z"), []string{"a=1 6/6/1", "b=1 6/6/1"})
	e.equal("status revision", e.s.Status().Revision, 6)
	e.equal("status keys", e.s.Status().Keys, 2)
}

func versions(e *env) {
	e.do(Put("k", "a"))
	e.do(Put("k", "b"))
	e.equal("after two puts", show(e.snap(0).Get("k")), []string{"k=b 2/3/2"})
	e.do(Delete("k", ""))
	e.equal("after deletion", show(e.snap(0).Get("k")), []string{"none"})
	e.do(Put("k", "c"))
	e.equal("created again", show(e.snap(0).Get("k")), []string{"k=c 5/5/1"})
}

func noRevision(e *env) {
	e.do(Put("k", "v"))
	e.equal("range", e.do(Get("k", "")), 2)
	e.equal("deleting nothing", e.do(Delete("x", "z")), 2)
	res := e.txn(store.Txn{If: []store.Compare{ModIs("k", 99)}, Then: []store.Op{Put("k", "w")}})
	e.equal("failed compare", fmt.Sprint(res.Succeeded, res.Revision, len(res.Results)), "false 2 0")
	e.equal("empty txn", e.txn(store.Txn{}).Revision, 2)
	e.equal("next change", e.do(Put("k", "w")), 3)
}

func compares(e *env) {
	e.do(Put("k", "m"))
	e.do(Put("k", "m"))
	cases := []struct {
		cmp  store.Compare
		want bool
	}{
		{store.Compare{Key: "k", Target: store.TargetMod, Int: 3}, true},
		{store.Compare{Key: "k", Target: store.TargetMod, Relation: store.Greater, Int: 2}, true},
		{store.Compare{Key: "k", Target: store.TargetMod, Relation: store.Less, Int: 3}, false},
		{store.Compare{Key: "k", Target: store.TargetMod, Relation: store.NotEqual, Int: 3}, false},
		{store.Compare{Key: "k", Target: store.TargetCreate, Int: 2}, true},
		{store.Compare{Key: "k", Target: store.TargetVersion, Int: 2}, true},
		{store.Compare{Key: "k", Target: store.TargetLease, Int: 0}, true},
		{store.Compare{Key: "k", Target: store.TargetValue, Value: []byte("m")}, true},
		{store.Compare{Key: "k", Target: store.TargetValue, Relation: store.Less, Value: []byte("n")}, true},
		{store.Compare{Key: "k", Target: store.TargetValue, Relation: store.Greater, Value: []byte("m")}, false},
		{store.Compare{Key: "none", Target: store.TargetMod, Int: 0}, true},
		{store.Compare{Key: "none", Target: store.TargetVersion, Relation: store.Greater, Int: 0}, false},
		{store.Compare{Key: "none", Target: store.TargetCreate, Relation: store.NotEqual, Int: 1}, true},
		{store.Compare{Key: "none", Target: store.TargetValue, Relation: store.NotEqual, Value: []byte("x")}, false},
	}
	for _, c := range cases {
		// The put on the other branch makes it a transaction for the writer;
		// the second time it is read-only. Both must agree.
		w := e.txn(store.Txn{If: []store.Compare{c.cmp}, Then: []store.Op{Get("k", "")}, Else: []store.Op{Delete("x", "")}})
		r := e.txn(store.Txn{If: []store.Compare{c.cmp}, Then: []store.Op{Get("k", "")}})
		if w.Succeeded != c.want || r.Succeeded != c.want {
			e.Errorf("%+v: %v and %v, want %v", c.cmp, w.Succeeded, r.Succeeded, c.want)
		}
	}
	two := []store.Compare{ModIs("k", 3), ModIs("k", 4)}
	e.equal("all must hold", e.txn(store.Txn{If: two}).Succeeded, false)
}

func rangeCompare(e *env) {
	e.do(Put("a1", "x"), Put("a2", "y"))
	cmp := func(end, value string) store.Compare {
		return store.Compare{Key: "a", End: end, Target: store.TargetValue, Value: []byte(value)}
	}
	for _, c := range []struct {
		cmp  store.Compare
		want bool
	}{
		{cmp("a2", "x"), true}, {cmp("b", "x"), false}, {cmp("a1", ""), false},
		{store.Compare{Key: "a", End: "a1", Target: store.TargetVersion}, true}, // as of a missing key
		{store.Compare{Key: "a", End: "a1", Target: store.TargetMod, Relation: store.Greater}, false},
	} {
		e.equal(fmt.Sprintf("%+v", c.cmp), e.txn(store.Txn{If: []store.Compare{c.cmp}}).Succeeded, c.want)
		e.equal("writer agrees", e.txn(store.Txn{If: []store.Compare{c.cmp}, Else: []store.Op{Delete("x", "")}}).Succeeded, c.want)
	}
}

func opsInOrder(e *env) {
	e.do(Put("a", "old"))
	res := e.txn(store.Txn{Then: []store.Op{
		Get("a", "z"), Put("b", "new"), Get("a", "z"), Delete("a", ""), Get("a", "z"), Delete("a", "b"),
	}})
	e.equal("before", show(res.Results[0].KVs...), []string{"a=old 2/2/1"})
	e.equal("put", show(res.Results[1].KV), []string{"b=new 3/3/1"})
	e.equal("after put", show(res.Results[2].KVs...), []string{"a=old 2/2/1", "b=new 3/3/1"})
	e.equal("deleted", res.Results[3].Deleted, 1)
	e.equal("after delete", show(res.Results[4].KVs...), []string{"b=new 3/3/1"})
	e.equal("deleted again", res.Results[5].Deleted, 0)
}

func nestedTxn(e *env) {
	e.do(Put("a", "1"))
	inner := store.Txn{If: []store.Compare{ModIs("a", 2)}, Then: []store.Op{Put("b", "then")}, Else: []store.Op{Put("b", "else")}}
	// The inner compare is decided before the outer put runs.
	res := e.txn(store.Txn{Then: []store.Op{Put("a", "2"), Nested(inner), Get("b", "")}})
	e.equal("inner branch", res.Results[1].Txn.Succeeded, true)
	e.equal("after", show(res.Results[2].KVs...), []string{"b=then 3/3/1"})
	e.equal("one revision", e.snap(0).Revision(), 3)
	res = e.txn(store.Txn{Then: []store.Op{Nested(inner)}})
	e.equal("inner branch", res.Results[0].Txn.Succeeded, false)
	e.equal("after", show(e.snap(0).Get("b")), []string{"b=else 3/4/2"})
	read := store.Txn{If: []store.Compare{ModIs("a", 3)}, Then: []store.Op{Get("a", "")}}
	res = e.txn(store.Txn{Then: []store.Op{Nested(read)}})
	e.equal("read-only nested", show(res.Results[0].Txn.Results[0].KVs...), []string{"a=2 2/3/2"})
}

func prevKV(e *env) {
	ask := func(op store.Op) store.Op {
		op.PrevKV = true
		return op
	}
	res := e.txn(store.Txn{Then: []store.Op{ask(Put("a", "1")), ask(Put("b", "1"))}})
	e.equal("creation", len(res.Results[0].Prev), 0)
	res = e.txn(store.Txn{Then: []store.Op{ask(Put("a", "2")), Put("b", "2")}})
	e.equal("replaced", show(res.Results[0].Prev...), []string{"a=1 2/2/1"})
	e.equal("not asked for", len(res.Results[1].Prev), 0)
	res = e.txn(store.Txn{Then: []store.Op{ask(Delete("a", "z"))}})
	e.equal("deleted", show(res.Results[0].Prev...), []string{"a=2 2/3/2", "b=2 2/3/2"})
}

func ignore(e *env) {
	l, err := e.s.Leases().Grant(e.ctx, 7, 600)
	if err != nil {
		e.Fatal(err)
	}
	p := Put("k", "v")
	p.Lease = l.ID
	e.do(p)
	e.do(store.Op{Kind: store.OpPut, Key: "k", Value: []byte("w"), IgnoreLease: true})
	e.equal("lease kept", show(e.snap(0).Get("k")), []string{"k=w 2/3/2 lease 7"})
	e.do(store.Op{Kind: store.OpPut, Key: "k", IgnoreValue: true})
	e.equal("value kept", show(e.snap(0).Get("k")), []string{"k=w 2/4/3"})
	_, err = e.s.Txn(e.ctx, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: "none", IgnoreValue: true}}})
	e.wantErr("value of a missing key", err, store.ErrKeyNotFound)
}

func badTxns(e *env) {
	leased := Put("b", "x")
	leased.Lease = 12345
	either := store.Txn{Then: []store.Op{Put("a", "1")}, Else: []store.Op{Put("a", "2")}}
	many := make([]store.Op, 100_000)
	for i := range many {
		many[i] = Put(fmt.Sprint("k", i), "")
	}
	cases := []struct {
		name string
		ops  []store.Op
		want error
	}{
		{"no key", []store.Op{Put("", "x")}, store.ErrEmptyKey},
		{"put twice", []store.Op{Put("a", "1"), Put("a", "2")}, store.ErrDuplicateKey},
		{"put and delete", []store.Op{Put("b", "1"), Delete("a", "c")}, store.ErrDuplicateKey},
		{"put inside and out", []store.Op{Nested(either), Put("a", "1")}, store.ErrDuplicateKey},
		{"put inside a deleted range", []store.Op{Nested(either), Delete("a", "")}, store.ErrDuplicateKey},
		{"branches that exclude each other", []store.Op{Nested(either)}, nil},
		{"unknown lease after a good put", []store.Op{Put("a", "x"), leased}, store.ErrLeaseNotFound},
		{"too many operations", many, store.ErrTooManyOps},
		{"too large", []store.Op{Put("a", strings.Repeat("x", 64<<20))}, store.ErrTooLarge},
	}
	for _, c := range cases {
		before := e.snap(0)
		_, err := e.s.Txn(e.ctx, store.Txn{Then: c.ops})
		e.wantErr(c.name, err, c.want)
		if c.want != nil {
			e.equal(c.name+": nothing happened", e.snap(0).Revision(), before.Revision())
			e.equal(c.name+": nothing there", showRange(e.snap(0), "\x00", "\x00"), showRange(before, "\x00", "\x00"))
		}
	}
}

func ranges(e *env) {
	for _, k := range []string{"b/2", "a", "b/1", "c", "b", "b0", "\xff\xff"} {
		e.do(Put(k, ""))
	}
	keys := func(key, end string) string {
		var out []string
		for kv := range e.snap(0).Range(key, end) {
			out = append(out, kv.Key)
		}
		if n := e.snap(0).Count(key, end); n != len(out) {
			e.Errorf("Count(%q, %q) = %d, Range has %d", key, end, n, len(out))
		}
		return fmt.Sprintf("%q", out)
	}
	e.equal("prefix", keys("b/", "b0"), `["b/1" "b/2"]`)
	e.equal("one", keys("b", ""), `["b"]`)
	e.equal("none", keys("bb", ""), `[]`)
	e.equal("empty interval", keys("c", "a"), `[]`)
	e.equal("from", keys("b0", "\x00"), `["b0" "c" "\xff\xff"]`)
	e.equal("all", keys("\x00", "\x00"), `["a" "b" "b/1" "b/2" "b0" "c" "\xff\xff"]`)
	for kv := range e.snap(0).Range("\x00", "\x00") {
		e.equal("stopping early", kv.Key, "a")
		break
	}
}

func snapshotStable(e *env) {
	e.do(Put("a", "1"), Put("b", "1"))
	s := e.snap(0)
	want := showRange(s, "\x00", "\x00")
	e.do(Put("a", "2"), Delete("b", ""), Put("c", "2"))
	e.equal("after changes", showRange(s, "\x00", "\x00"), want)
	if err := e.s.Compact(e.ctx, 3); err != nil {
		e.Fatal(err)
	}
	e.equal("after compaction", showRange(s, "\x00", "\x00"), want)
	e.equal("revision", s.Revision(), 2)
}

func oldRevisions(e *env) {
	var want [][]string
	step := func(ops ...store.Op) {
		e.do(ops...)
		want = append(want, showRange(e.snap(0), "\x00", "\x00"))
	}
	step(Put("a", "1"))
	step(Put("a", "2"), Put("b", "1"))
	step(Delete("a", ""))
	step(Put("a", "3"))
	step(Delete("a", "z"))
	for i, w := range want {
		s := e.snap(int64(i + 2))
		e.equal(fmt.Sprint("at ", i+2), showRange(s, "\x00", "\x00"), w)
		e.equal("count", s.Count("\x00", "\x00"), len(w))
		e.equal("revision", s.Revision(), i+2)
	}
	e.equal("one key", show(e.snap(3).Get("a")), []string{"a=2 2/3/2"})
	_, err := e.s.Snapshot(e.ctx, 7)
	e.wantErr("snapshot at 7", err, store.ErrFutureRevision)
}

func local(e *env) {
	for i := range 20 {
		rev := e.do(Put("k", fmt.Sprint(i)))
		s := e.snap(store.Local)
		e.equal("revision", s.Revision(), rev)
		e.equal("value", string(s.Get("k").Value), fmt.Sprint(i))
	}
}

// Counters that go up by compare and put: none is lost, and a snapshot taken
// after an increment never shows an older one.
func serialized(e *env) {
	const writers, each = 8, 25
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				s, err := e.s.Snapshot(e.ctx, 0)
				if err != nil {
					e.Error(err)
					return
				}
				var mod int64
				n := 0
				if kv := s.Get("counter"); kv != nil {
					mod = kv.ModRevision
					n, _ = strconv.Atoi(string(kv.Value))
				}
				res, err := e.s.Txn(e.ctx, store.Txn{If: []store.Compare{ModIs("counter", mod)}, Then: []store.Op{Put("counter", strconv.Itoa(n+1))}})
				if err != nil {
					e.Error(err)
					return
				}
				if res.Succeeded {
					done++
				} else if res.Revision <= s.Revision() {
					e.Errorf("the compare failed at revision %d, but the snapshot of revision %d was the newest", res.Revision, s.Revision())
				}
			}
		})
	}
	wg.Wait()
	e.equal("counter", show(e.snap(0).Get("counter")), []string{fmt.Sprintf("counter=%d 2/%d/%d", writers*each, writers*each+1, writers*each)})
}

func identity(e *env) {
	w := e.watch("k", "", 0)
	res := e.txn(store.Txn{Then: []store.Op{Put("k", "v")}})
	kv := e.snap(0).Get("k")
	ev := w.events(1)[0]
	e.do(Put("k", "w"))
	old := e.snap(2).Get("k")
	prev := w.events(1)[0].Prev
	if kv != ev.KV || kv != old || kv != prev || res.Results[0].KV != kv {
		e.Errorf("one version, several pointers: snapshot %p, event %p, old snapshot %p, prev %p, result %p",
			kv, ev.KV, old, prev, res.Results[0].KV)
	}
}

func compaction(e *env) {
	e.do(Put("a", "1"))
	e.do(Put("a", "2"))
	e.do(Put("b", "1"))
	e.do(Delete("b", ""))
	e.do(Put("a", "3"))
	e.wantErr("compact the future", e.s.Compact(e.ctx, 7), store.ErrFutureRevision)
	if err := e.s.Compact(e.ctx, 4); err != nil {
		e.Fatal(err)
	}
	e.wantErr("compact again", e.s.Compact(e.ctx, 4), store.ErrCompacted)
	e.wantErr("compact before", e.s.Compact(e.ctx, 3), store.ErrCompacted)
	for rev := int64(1); rev < 4; rev++ {
		_, err := e.s.Snapshot(e.ctx, rev)
		e.wantErr(fmt.Sprint("snapshot at ", rev), err, store.ErrCompacted)
	}
	e.equal("at 4", showRange(e.snap(4), "a", "z"), []string{"a=2 2/3/2", "b=1 4/4/1"})
	e.equal("at 5", showRange(e.snap(5), "a", "z"), []string{"a=2 2/3/2"})
	e.equal("at 6", showRange(e.snap(6), "a", "z"), []string{"a=3 2/6/3"})
	e.equal("status", e.s.Status().CompactRevision, 4)
}

func closed(e *env) {
	w := e.watch("k", "", 0)
	if err := e.s.Close(); err != nil {
		e.Fatal(err)
	}
	_, err := e.s.Txn(e.ctx, store.Txn{Then: []store.Op{Put("k", "v")}})
	e.wantErr("Txn", err, store.ErrClosed)
	_, err = e.s.Snapshot(e.ctx, 0)
	e.wantErr("Snapshot", err, store.ErrClosed)
	_, err = e.s.Watch(e.ctx, store.WatchRequest{Key: "k"})
	e.wantErr("Watch", err, store.ErrClosed)
	_, err = w.w.Next(e.ctx)
	e.wantErr("Next", err, store.ErrClosed)
	e.wantErr("Compact", e.s.Compact(e.ctx, 1), store.ErrClosed)
	_, err = e.s.Leases().Grant(e.ctx, 1, 1)
	e.wantErr("Grant", err, store.ErrClosed)
	e.wantErr("Close", e.s.Close(), nil)
}
