package apiserver_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testclock "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

// Two API servers on one store: the kubernetes Service leads to both, and to
// the one that is left. They compact once an interval between them.
func TestServersThatShareAStore(t *testing.T) {
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	clock := testclock.NewFakeClock(time.Now())
	start := func(address string) (*apiserver.Server, func()) {
		s, err := apiserver.New(apiserver.Config{
			Store: st, SharedStore: true, Resources: all.Resources(), Authorizer: allowAll{},
			AdvertiseAddress: netip.MustParseAddr(address), Clock: clock,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		waitReady(t, s)
		return s, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	_, stopA := start("192.0.2.10")
	b, stopB := start("192.0.2.9")
	defer stopB()
	addresses := func() string {
		eps, err := typed(t, b).DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out := ""
		for _, e := range eps.Endpoints {
			out += e.Addresses[0] + " "
		}
		return out
	}
	if got := addresses(); got != "192.0.2.10 192.0.2.9 " {
		t.Errorf("endpoints of two servers: %s", got)
	}
	for round := int64(1); round <= 3; round++ {
		before := st.Status()
		if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: "/registry/any", Value: []byte("x")}}}); err != nil {
			t.Fatal(err)
		}
		clock.Step(5 * time.Minute)
		for range 1000 {
			if st.Status().CompactRevision > before.CompactRevision {
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // for the one that came second
		snap, err := st.Snapshot(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		kv := snap.Get("compact_rev_key")
		if kv == nil || kv.Version != round || string(kv.Value) != fmt.Sprint(st.Status().CompactRevision) || st.Status().CompactRevision > before.Revision {
			t.Fatalf("round %d: compacted at %d, compact_rev_key is %+v", round, st.Status().CompactRevision, kv)
		}
	}
	stopA()
	if got := addresses(); got != "192.0.2.9 " {
		t.Errorf("endpoints when one has stopped: %s", got)
	}
	snap, _ := st.Snapshot(t.Context(), store.Local)
	if n := snap.Count("/registry/masterleases/", "/registry/masterleases0"); n != 1 {
		t.Errorf("%d servers are announced, want 1", n)
	}
}
