// Package storetest is the executable specification of store.Store: every
// implementation passes Run. Tests are named after the clause they prove.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/skiff-project/skiff/store"
)

// patience bounds every wait of the suite.
const patience = 10 * time.Second

// Run runs the suite. open returns a fresh, empty store with this package's
// Index and arranges for it to be closed when the test ends.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		run  func(*env)
	}{
		{"FreshStoreIsAtRevisionOneWithNoKeys", freshStore},
		{"EachChangingTxnTakesTheNextRevision", revisions},
		{"VersionsCountPutsSinceCreation", versions},
		{"ReadOnlyAndFailedTxnsTakeNoRevision", noRevision},
		{"ComparesDecideTheBranch", compares},
		{"CompareOfARangeHoldsForEveryKey", rangeCompare},
		{"OpsOfOneTxnSeeEachOther", opsInOrder},
		{"NestedTxn", nestedTxn},
		{"PrevKVReturnsWhatWasReplaced", prevKV},
		{"IgnoreValueAndLeaseKeepThem", ignore},
		{"BadTxnsAreRefusedWhole", badTxns},
		{"RangesAreHalfOpenAndOrdered", ranges},
		{"SnapshotsDoNotChange", snapshotStable},
		{"OldRevisionsStayReadable", oldRevisions},
		{"LocalSnapshotHasOneOwnWrites", local},
		{"ConcurrentTxnsAreSerialized", serialized},
		{"SameVersionIsSamePointer", identity},
		{"CompactionForgetsOnlyWhatIsSuperseded", compaction},
		{"WatchFromNow", watchNow},
		{"WatchReplaysHistory", watchHistory},
		{"WatchKeepsARevisionTogether", watchWhole},
		{"WatchOfTheFutureWaits", watchFuture},
		{"WatchBelowCompactionIsRefused", watchCompacted},
		{"SlowWatcherLearnsOfCompaction", watchOvertaken},
		{"ProgressNeverPassesAnUndeliveredEvent", progress},
		{"ClosedWatcherReturnsErrClosed", watchClose},
		{"CancelledNextLosesNothing", watchCancel},
		{"PollGoesUpToARevision", poll},
		{"PolledWatchersMissNothing", pollAll},
		{"RangeTermFindsWhatHasTheTerm", termRange},
		{"WatchOfATermSeesThemComeAndGo", termWatch},
		{"TermsAgreeWithLookingAtEverything", termRandom},
		{"LeaseRevocationDeletesItsKeysInOneRevision", leaseRevoke},
		{"LeaseFollowsTheKeysLastPut", leaseMoves},
		{"LeaseErrors", leaseErrors},
		{"LeaseExpires", leaseExpires},
		{"ClosedStoreReturnsErrClosed", closed},
		{"RandomHistoriesAgreeWithTheModel", random},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
			t.Cleanup(cancel)
			tt.run(&env{T: t, s: open(t), ctx: ctx})
		})
	}
}

// env is one test's store with shorthands that fail the test.
type env struct {
	*testing.T
	s   store.Store
	ctx context.Context
}

// Put, Get, Delete and Nested make operations.
func Put(key, value string) store.Op {
	return store.Op{Kind: store.OpPut, Key: key, Value: []byte(value)}
}

// Get reads [key, end).
func Get(key, end string) store.Op { return store.Op{Kind: store.OpRange, Key: key, End: end} }

// Delete deletes [key, end).
func Delete(key, end string) store.Op { return store.Op{Kind: store.OpDelete, Key: key, End: end} }

// Nested runs a transaction inside another.
func Nested(txn store.Txn) store.Op { return store.Op{Kind: store.OpTxn, Txn: &txn} }

// ModIs compares a key's mod revision; 0 means it must not exist.
func ModIs(key string, rev int64) store.Compare {
	return store.Compare{Key: key, Target: store.TargetMod, Int: rev}
}

func (e *env) txn(txn store.Txn) store.TxnResult {
	e.Helper()
	res, err := e.s.Txn(e.ctx, txn)
	if err != nil {
		e.Fatalf("txn: %v", err)
	}
	return res
}

// do runs operations and returns the revision after.
func (e *env) do(ops ...store.Op) int64 {
	e.Helper()
	return e.txn(store.Txn{Then: ops}).Revision
}

func (e *env) snap(rev int64) store.Snapshot {
	e.Helper()
	s, err := e.s.Snapshot(e.ctx, rev)
	if err != nil {
		e.Fatalf("snapshot at %d: %v", rev, err)
	}
	return s
}

func (e *env) watch(key, end string, start int64) *watch {
	e.Helper()
	w, err := e.s.Watch(e.ctx, store.WatchRequest{Key: key, End: end, StartRevision: start})
	if err != nil {
		e.Fatalf("watch: %v", err)
	}
	e.Cleanup(w.Close)
	return &watch{e, w}
}

func (e *env) wantErr(what string, err, want error) {
	e.Helper()
	if !errors.Is(err, want) {
		e.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func (e *env) equal(what string, got, want any) {
	e.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		e.Errorf("%s:\n got %s\nwant %s", what, g, w)
	}
}

// show writes versions as text: key=value create/mod/version[ lease].
func show(kvs ...*store.KV) []string {
	var out []string
	for _, kv := range kvs {
		if kv == nil {
			out = append(out, "none")
			continue
		}
		s := fmt.Sprintf("%s=%s %d/%d/%d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
		if kv.Lease != 0 {
			s += fmt.Sprintf(" lease %d", kv.Lease)
		}
		out = append(out, s)
	}
	return out
}

func showRange(s store.Snapshot, key, end string) []string {
	return show(slices.Collect(s.Range(key, end))...)
}

func showEvents(events []store.Event) []string {
	var out []string
	for _, ev := range events {
		if ev.Type == store.EventDelete {
			out = append(out, fmt.Sprintf("%s deleted %d", ev.KV.Key, ev.KV.ModRevision))
		} else {
			out = append(out, show(ev.KV)[0])
		}
	}
	return out
}

// watch is a watcher with shorthands.
type watch struct {
	e *env
	w store.Watcher
}

// events returns the next n events, checking order and whole revisions.
func (w *watch) events(n int) []store.Event {
	w.e.Helper()
	var all []store.Event
	for len(all) < n {
		ctx, cancel := context.WithTimeout(w.e.ctx, patience)
		b, err := w.w.Next(ctx)
		cancel()
		if err != nil {
			w.e.Fatalf("after %d of %d events: %v", len(all), n, err)
		}
		for _, ev := range b.Events {
			if len(all) > 0 && ev.KV.ModRevision < all[len(all)-1].KV.ModRevision {
				w.e.Fatalf("revision %d after %d", ev.KV.ModRevision, all[len(all)-1].KV.ModRevision)
			}
			if ev.KV.ModRevision > b.Revision {
				w.e.Fatalf("event of revision %d in a batch up to %d", ev.KV.ModRevision, b.Revision)
			}
			all = append(all, ev)
		}
	}
	if len(all) != n {
		w.e.Fatalf("%d events, want %d: %v", len(all), n, showEvents(all))
	}
	return all
}

func (w *watch) expect(want ...string) {
	w.e.Helper()
	w.e.equal("events", showEvents(w.events(len(want))), want)
}

// nothing checks that no event is waiting.
func (w *watch) nothing() {
	w.e.Helper()
	ctx, cancel := context.WithTimeout(w.e.ctx, 20*time.Millisecond)
	defer cancel()
	for {
		b, err := w.w.Next(ctx)
		if err != nil {
			w.e.wantErr("Next with nothing to deliver", err, context.DeadlineExceeded)
			return
		}
		if len(b.Events) > 0 {
			w.e.Fatalf("unexpected events %v", showEvents(b.Events))
		}
	}
}
