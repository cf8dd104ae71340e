package alloc

import (
	"errors"
	"net/netip"
	"testing"
)

func TestIPs(t *testing.T) {
	for _, tc := range []struct {
		cidr   string
		usable int
		last   string
	}{
		{"10.0.0.0/29", 6, "10.0.0.6"},
		{"10.96.0.0/24", 254, "10.96.0.254"},
		{"fd00::/120", 255, "fd00::ff"},
	} {
		a, err := NewIPs(netip.MustParsePrefix(tc.cidr))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Take(netip.MustParseAddr(tc.last)); err != nil {
			t.Errorf("%s: %v", tc.last, err)
		}
		seen := map[netip.Addr]bool{netip.MustParseAddr(tc.last): true}
		for {
			ip, err := a.Next()
			if errors.Is(err, ErrFull) {
				break
			}
			if seen[ip] || !a.Prefix().Contains(ip) {
				t.Fatalf("%s given twice or outside %s", ip, tc.cidr)
			}
			seen[ip] = true
		}
		if len(seen) != tc.usable {
			t.Errorf("%s: %d addresses, want %d", tc.cidr, len(seen), tc.usable)
		}
		if seen[a.Prefix().Addr()] {
			t.Errorf("%s: the network address was given", tc.cidr)
		}
		a.Free(netip.MustParseAddr(tc.last))
		if ip, err := a.Next(); err != nil || ip.String() != tc.last {
			t.Errorf("freed %s, got %s, %v", tc.last, ip, err)
		}
		if err := a.Take(netip.MustParseAddr("192.0.2.1")); err == nil {
			t.Error("an address outside the range was taken")
		}
	}
	if _, err := NewIPs(netip.MustParsePrefix("10.0.0.0/30")); err == nil {
		t.Error("a range of four addresses was accepted")
	}
}

func TestPorts(t *testing.T) {
	p, err := NewPorts(PortRange{100, 103})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Take(101); err != nil {
		t.Error(err)
	}
	if err := p.Take(101); !errors.Is(err, ErrPortAllocated) {
		t.Errorf("taken twice: %v", err)
	}
	if err := p.Take(99); err == nil {
		t.Error("a port outside the range was taken")
	}
	for range 3 {
		if _, err := p.Next(); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Next(); !errors.Is(err, ErrFull) {
		t.Errorf("full range: %v", err)
	}
}
