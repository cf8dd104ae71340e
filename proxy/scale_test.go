package proxy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/skiff-project/skiff/internal/netnstest"
	"github.com/skiff-project/skiff/internal/nft"
)

// manyServices makes n Services of one port with two endpoints each; the returned function
// puts them into a state.
func manyServices(from, n int) func(*state) {
	v := view{node: "node", nodeIPs: []netip.Addr{netip.MustParseAddr(nodeIP)}}
	var svcs []*corev1.Service
	var slices []*discoveryv1.EndpointSlice
	for i := from; i < from+n; i++ {
		svc := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255), nil)
		svc.Spec.Ports = svc.Spec.Ports[:1]
		svcs = append(svcs, svc)
		slices = append(slices, slice(svc.Name,
			ep(fmt.Sprintf("10.244.%d.%d", i>>7&255, i<<1&255), "node"),
			ep(fmt.Sprintf("10.245.%d.%d", i>>7&255, i<<1&255|1), "other")))
	}
	return func(s *state) {
		for i, svc := range svcs {
			s.replace("ns/"+svc.Name, newFragment(s.family, v, svc, slices[i:i+1]))
		}
	}
}

// The figures of the design: 10,000 Services with 2 endpoints from scratch, and one more.
// The limits are loose, for machines busy with other things; the log has the times.
func TestTenThousandServices(t *testing.T) {
	host := netnstest.New(t)
	conn := nft.NewConn(host.Path)
	cfg := &Config{Table: "skiff-proxy", MasqueradeMark: 0x4000, NodeIPs: []netip.Addr{netip.MustParseAddr(nodeIP)}}
	s := newState(nft.IPv4, cfg)
	step := func(what string, limit time.Duration, f func() nft.Changes) {
		t.Helper()
		start := time.Now()
		c := f()
		worked := time.Since(start)
		if err := conn.Apply(c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		took := time.Since(start)
		t.Logf("%s: %v, of which in the kernel and on the way there %v", what, took.Round(10*time.Microsecond), (took - worked).Round(10*time.Microsecond))
		if took > limit {
			t.Errorf("%s took %v, limit %v", what, took, limit)
		}
	}
	many, one := manyServices(0, 10000), func() func(*state) { return manyServices(len(s.frags), 1) }
	step("10,000 Services x 2 endpoints from scratch", 10*time.Second, func() nft.Changes {
		many(s)
		return s.all()
	})
	for range 3 {
		step("one more", time.Second, func() nft.Changes {
			one()(s)
			return s.take()
		})
	}
	for _, name := range []string{"s5", "s6", "s7"} { // the first needs a new chain
		step("one endpoint less", time.Second, func() nft.Changes {
			svc := service(name, "10.96.0."+name[1:], nil)
			svc.Spec.Ports = svc.Spec.Ports[:1]
			s.replace("ns/"+name, newFragment(s.family, view{node: "node"}, svc, []*discoveryv1.EndpointSlice{slice(name, ep("10.244.0.10", "node"))}))
			return s.take()
		})
	}
	step("all anew over what is there", 10*time.Second, s.all)
}
