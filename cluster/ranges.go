package cluster

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// podRanges and serviceRanges are tried in turn: a second cluster on a machine
// gets ranges of its own.
var (
	podRanges = func() []netip.Prefix {
		var list []netip.Prefix
		for n := byte(244); n >= 224; n-- {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n, 0, 0}), 16))
		}
		return list
	}()
	serviceRanges = func() []netip.Prefix {
		var list []netip.Prefix
		for n := byte(96); n < 224; n += 16 {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n, 0, 0}), 12))
		}
		return list
	}()
)

// freeRange returns the first range that overlaps no route of this machine;
// if all do, the first.
func freeRange(ranges []netip.Prefix) netip.Prefix {
	used := usedRanges()
	for _, r := range ranges {
		if !overlapsAny(r, used) {
			return r
		}
	}
	return ranges[0]
}

func overlapsAny(r netip.Prefix, used []netip.Prefix) bool {
	for _, u := range used {
		if r.Overlaps(u) {
			return true
		}
	}
	return false
}

// usedRanges are the destinations of this machine's IPv4 routes, but for the default one.
func usedRanges() []netip.Prefix {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	var used []netip.Prefix
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 {
			used = append(used, p)
		}
	}
	return used
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits), ok
}
