package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skiff-project/skiff/internal/nft"
)

// udpFlows lists UDP frontends with the endpoints that may answer them. A UDP flow has no
// end: as long as its client sends, conntrack would keep it at an endpoint that has gone,
// or unrewritten if it is older than the rules.
type udpFlows map[frontend][]netip.AddrPort

// udpChanges are the frontends whose flows must be looked at, by family.
type udpChanges map[nft.Family]udpFlows

// note compares a Service's old and new fragment. Flows matter if an endpoint has left or
// the frontend is new; a first endpoint counts, for until then packets passed unrewritten.
func (c udpChanges) note(f nft.Family, old, next *fragment) {
	var was, is map[frontend][]netip.AddrPort
	if old != nil {
		was = old.udp
	}
	if next != nil {
		is = next.udp
	}
	add := func(fe frontend, eps []netip.AddrPort) {
		if c[f] == nil {
			c[f] = udpFlows{}
		}
		c[f][fe] = eps
	}
	for fe, eps := range was {
		now := is[fe]
		left := slices.ContainsFunc(eps, func(e netip.AddrPort) bool { return !slices.Contains(now, e) })
		if left || len(eps) == 0 && len(now) > 0 {
			add(fe, now)
		}
	}
	for fe, eps := range is {
		if _, known := was[fe]; !known {
			add(fe, eps)
		}
	}
}

// stale reports whether a flow was sent to one of the frontends and is not answered by
// one of its endpoints.
func (u udpFlows) stale(nodeIPs []netip.Addr, flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != uint8(nft.UDP) {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	src, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 {
		return false
	}
	dst, src = dst.Unmap(), src.Unmap()
	eps, ok := u[frontend{dst, nft.UDP, flow.Forward.DstPort}]
	if !ok && slices.Contains(nodeIPs, dst) {
		eps, ok = u[frontend{nft.FamilyOf(dst).Unspecified(), nft.UDP, flow.Forward.DstPort}]
		// A flow the node itself answers may be a host program's on the same port.
		ok = ok && src != dst
	}
	return ok && !slices.Contains(eps, netip.AddrPortFrom(src, flow.Reverse.SrcPort))
}

// flowFilter adapts udpFlows to netlink.
type flowFilter struct {
	udpFlows
	nodeIPs []netip.Addr
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return f.stale(f.nodeIPs, flow)
}

// forgetFlows removes stale UDP flows from conntrack. Failing is no reason to hold up
// Services: it is logged, and flows end by themselves once their clients pause.
func (p *Proxy) forgetFlows(c udpChanges) {
	for f, flows := range c {
		if err := deleteFlows(p.cfg.Netns, f, flowFilter{flows, p.cfg.NodeIPs}); err != nil {
			p.log.Warn("stale UDP flows may remain", "family", f, "err", err)
		}
	}
}

func deleteFlows(path string, f nft.Family, filter flowFilter) error {
	ns := netns.None()
	if path != "" {
		var err error
		if ns, err = netns.GetFromPath(path); err != nil {
			return fmt.Errorf("open network namespace %s: %w", path, err)
		}
		defer func() { _ = ns.Close() }()
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	fam := netlink.InetFamily(unix.AF_INET)
	if f == nft.IPv6 {
		fam = unix.AF_INET6
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, fam, filter); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete conntrack entries: %w", err)
	}
	return nil
}
