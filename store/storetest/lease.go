package storetest

import (
	"slices"
	"time"

	"github.com/skiff-project/skiff/store"
)

func (e *env) grant(id store.LeaseID, ttl int64) store.LeaseID {
	e.Helper()
	l, err := e.s.Leases().Grant(e.ctx, id, ttl)
	if err != nil {
		e.Fatalf("grant: %v", err)
	}
	if l.ID == 0 || (id != 0 && l.ID != id) || l.TTL < ttl {
		e.Fatalf("granted %+v, asked for %d of %d s", l, id, ttl)
	}
	return l.ID
}

func leased(op store.Op, id store.LeaseID) store.Op {
	op.Lease = id
	return op
}

func leaseRevoke(e *env) {
	id := e.grant(0, 600)
	e.do(leased(Put("b", "1"), id), leased(Put("a", "1"), id), Put("c", "1"))
	l, err := e.s.Leases().TimeToLive(e.ctx, id)
	if err != nil {
		e.Fatal(err)
	}
	slices.Sort(l.Keys)
	e.equal("keys", l.Keys, []string{"a", "b"})
	if l.Remaining <= 590 || l.Remaining > 600 {
		e.Errorf("%d s remaining of 600", l.Remaining)
	}
	w := e.watch("\x00", "\x00", 0)
	if err := e.s.Leases().Revoke(e.ctx, id); err != nil {
		e.Fatal(err)
	}
	w.expect("a deleted 3", "b deleted 3")
	e.equal("left", showRange(e.snap(0), "\x00", "\x00"), []string{"c=1 2/2/1"})
	empty := e.grant(0, 600)
	if err := e.s.Leases().Revoke(e.ctx, empty); err != nil {
		e.Fatal(err)
	}
	e.equal("revoking a lease without keys takes no revision", e.snap(0).Revision(), 3)
}

func leaseMoves(e *env) {
	a, b := e.grant(1, 600), e.grant(2, 600)
	e.do(leased(Put("moved", ""), a), leased(Put("freed", ""), a), leased(Put("gone", ""), a), leased(Put("kept", ""), a))
	e.do(leased(Put("moved", ""), b), Put("freed", ""), Delete("gone", ""))
	e.do(Put("gone", "again"))
	if err := e.s.Leases().Revoke(e.ctx, a); err != nil {
		e.Fatal(err)
	}
	e.equal("left", showRange(e.snap(0), "\x00", "\x00"),
		[]string{"freed= 2/3/2", "gone=again 4/4/1", "moved= 2/3/2 lease 2"})
	e.equal("compare on lease", e.txn(store.Txn{If: []store.Compare{{Key: "moved", Target: store.TargetLease, Int: 2}}}).Succeeded, true)
}

func leaseErrors(e *env) {
	leases := e.s.Leases()
	e.grant(5, 600)
	_, err := leases.Grant(e.ctx, 5, 600)
	e.wantErr("grant twice", err, store.ErrLeaseExists)
	e.grant(7, store.MaxLeaseTTL)
	if err := leases.Revoke(e.ctx, 7); err != nil {
		e.Error(err)
	}
	_, err = leases.Grant(e.ctx, 7, store.MaxLeaseTTL+1)
	e.wantErr("grant for too long", err, store.ErrLeaseTTL)
	_, err = leases.KeepAlive(e.ctx, 6)
	e.wantErr("keep an unknown lease alive", err, store.ErrLeaseNotFound)
	_, err = leases.TimeToLive(e.ctx, 6)
	e.wantErr("look at an unknown lease", err, store.ErrLeaseNotFound)
	e.wantErr("revoke an unknown lease", leases.Revoke(e.ctx, 6), store.ErrLeaseNotFound)
	l, err := leases.KeepAlive(e.ctx, 5)
	if err != nil || l.TTL != 600 {
		e.Errorf("kept alive: %+v, %v", l, err)
	}
	e.grant(4, 600)
	ids, err := leases.List(e.ctx)
	slices.Sort(ids)
	e.equal("list", ids, []store.LeaseID{4, 5})
	e.wantErr("list", err, nil)
}

func leaseExpires(e *env) {
	id := e.grant(0, 1)
	e.do(leased(Put("k", ""), id))
	w := e.watch("k", "", 0)
	start := time.Now()
	w.expect("k deleted 3")
	if took := time.Since(start); took < 500*time.Millisecond {
		e.Errorf("a lease of one second ended after %v", took)
	}
	_, err := e.s.Leases().KeepAlive(e.ctx, id)
	e.wantErr("keep alive", err, store.ErrLeaseNotFound)
}
