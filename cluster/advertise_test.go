package cluster

import (
	"net/netip"
	"testing"
)

func TestAdvertisedAddress(t *testing.T) {
	for _, c := range []struct{ bound, host, want string }{
		{"192.0.2.7", "192.0.2.2", "192.0.2.7"},
		{"0.0.0.0", "192.0.2.2", "192.0.2.2"},
		{"127.0.0.1", "192.0.2.2", "192.0.2.2"}, // the kubernetes Service needs an endpoint that is not loopback
		{"127.0.0.1", "", "127.0.0.1"},
	} {
		host := func() netip.Addr { a, _ := netip.ParseAddr(c.host); return a }
		if got := advertisedFor(netip.MustParseAddr(c.bound), host); got.String() != c.want {
			t.Errorf("bound to %s on host %q: %s, want %s", c.bound, c.host, got, c.want)
		}
	}
}
