package cluster

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// podRanges, nodeRanges and serviceRanges are tried in turn: a second cluster on a machine
// gets ranges of its own.
var (
	podRanges = func() []netip.Prefix {
		var list []netip.Prefix
		for n := byte(244); n >= 224; n-- {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n, 0, 0}), 16))
		}
		return list
	}()
	nodeRanges = func() []netip.Prefix {
		var list []netip.Prefix
		for n := byte(95); n >= 64; n-- {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n, 0, 0}), 24))
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

// freeRange returns the first range that overlaps no route of this machine
// and can be claimed; if there is none, the first.
func freeRange(ranges []netip.Prefix, claim func(netip.Prefix) bool) netip.Prefix {
	used := usedRanges()
	for _, r := range ranges {
		if !overlapsAny(r, used) && (claim == nil || claim(r)) {
			return r
		}
	}
	return ranges[0]
}

// claims are the ranges a live cluster has taken for itself, so that another
// one starting at the same moment takes others. A claim is the name of an
// abstract socket that nobody listens to: names are per network namespace, as
// ranges are, and go with the process however it ends.
type claims struct{ sockets map[netip.Prefix]net.Listener }

// take claims a range; false when another process has it.
func (c *claims) take(r netip.Prefix) bool {
	if c.sockets[r] != nil {
		return true
	}
	l, err := net.Listen("unix", "@skiff-range-"+r.String())
	if err != nil {
		return false
	}
	if c.sockets == nil {
		c.sockets = map[netip.Prefix]net.Listener{}
	}
	c.sockets[r] = l
	return true
}

// check claims the ranges a cluster is to use, chosen now or kept from before.
func (c *claims) check(o Options) error {
	for _, r := range []netip.Prefix{o.PodCIDR, o.ServiceCIDR, o.NodeCIDR} {
		if r.IsValid() && !c.take(r) {
			return Problem{
				What: fmt.Sprintf("address range %s is in use by another cluster on this machine", r),
				Fix:  "stop that cluster, or choose other ranges with --pod-cidr and --service-cidr",
			}
		}
	}
	return nil
}

func (c *claims) release() {
	for _, l := range c.sockets {
		l.Close()
	}
	c.sockets = nil
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
