package network

import (
	"net/netip"
	"strings"

	"github.com/skiff-project/skiff/internal/nft"
)

const (
	priorityDNAT   = -100
	priorityFilter = 0
	prioritySNAT   = 100

	icmpRedirect  = 5
	icmp6Redirect = 137

	hostPortsAny = "hostports"
	hostPortsAt  = "hostports-at"
	hairpin      = "hostport-hairpin"
)

// desiredTables says what the kernel must hold: one table for each family that has a pod
// CIDR.
func desiredTables(cfg Config, cidrs []netip.Prefix, ports []hostPort) []*nft.Table {
	var out []*nft.Table
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		var mine []netip.Prefix
		for _, c := range cidrs {
			if nft.FamilyOf(c.Addr()) == f {
				mine = append(mine, c)
			}
		}
		if len(mine) == 0 {
			continue
		}
		out = append(out, &nft.Table{
			Family: f, Name: cfg.Table,
			Sets:   hostPortSets(f, ports),
			Chains: append(natChains(f), trafficChains(f, cfg, mine)...),
		})
	}
	return out
}

// natChains lead host ports to their pods. Loopback is left alone: rewriting it would
// need route_localnet, which opens the host's loopback services to its neighbours.
func natChains(f nft.Family) []nft.Chain {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if f == nft.IPv6 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	toPods := []nft.Rule{
		nft.NewRule(f.Dst(loopback, true), nft.DstLocal(), f.DNAT(hostPortsAt, f.Daddr(), nft.L4Proto(), nft.Dport())),
		nft.NewRule(f.Dst(loopback, true), nft.DstLocal(), f.DNAT(hostPortsAny, nft.L4Proto(), nft.Dport())),
	}
	return []nft.Chain{
		{Name: "prerouting", Hook: nft.Prerouting, Type: "nat", Priority: priorityDNAT, Rules: toPods},
		{Name: "output", Hook: nft.Output, Type: "nat", Priority: priorityDNAT, Rules: toPods},
	}
}

// trafficChains masquerade what leaves the cluster and keep the bridge quiet.
func trafficChains(f nft.Family, cfg Config, cidrs []netip.Prefix) []nft.Chain {
	var snat, forward []nft.Rule
	snat = append(snat, nft.NewRule(nft.In(hairpin, f.Saddr(), f.Daddr()), nft.Masquerade()))
	for _, c := range cfg.ClusterCIDRs {
		if nft.FamilyOf(c.Addr()) == f {
			snat = append(snat, nft.NewRule(f.Dst(c, false), nft.Accept()))
			forward = append(forward, nft.NewRule(f.Dst(c, false), nft.Accept()))
		}
	}
	multicast := netip.MustParsePrefix("224.0.0.0/4")
	redirect := f.ICMPType(icmpRedirect, "redirect")
	if f == nft.IPv6 {
		multicast = netip.MustParsePrefix("ff00::/8")
		redirect = f.ICMPType(icmp6Redirect, "nd-redirect")
	}
	for _, c := range cidrs {
		snat = append(snat, nft.NewRule(f.Src(c, false), f.Dst(multicast, true), nft.NotOutIface(cfg.Bridge), nft.Masquerade()))
		// NAT passes over what conntrack cannot place; it must not leave with a pod's address.
		forward = append(forward, nft.NewRule(f.Src(c, false), nft.NotOutIface(cfg.Bridge), nft.StateInvalid(), nft.Drop()))
	}
	return []nft.Chain{
		{Name: "postrouting", Hook: nft.Postrouting, Type: "nat", Priority: prioritySNAT, Rules: snat},
		{Name: "forward", Hook: nft.Forward, Type: "filter", Priority: priorityFilter, Rules: forward},
		// Pods of one node talk through the gateway on purpose: it must not send them past itself.
		{Name: "quiet", Hook: nft.Output, Type: "filter", Priority: priorityFilter, Rules: []nft.Rule{
			nft.NewRule(nft.OutIface(cfg.Bridge), redirect, nft.Drop()),
		}},
	}
}

func hostPortSets(f nft.Family, ports []hostPort) []nft.Set {
	addr := f.AddrType()
	to := []nft.Type{addr, nft.TypePort}
	any := nft.Set{Name: hostPortsAny, Key: []nft.Type{nft.TypeProto, nft.TypePort}, Data: to}
	at := nft.Set{Name: hostPortsAt, Key: []nft.Type{addr, nft.TypeProto, nft.TypePort}, Data: to}
	pin := nft.Set{Name: hairpin, Key: []nft.Type{addr, addr}}
	for _, p := range ports {
		proto, ok := protoOf(p.Protocol)
		if !ok || nft.FamilyOf(p.pod) != f {
			continue
		}
		val := nft.Key{}.Addr(p.pod).Port(p.ContainerPort).String()
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			at.Elems = put(at.Elems, nft.Elem{Key: nft.Key{}.Addr(p.HostIP).Proto(proto).Port(p.HostPort).String(), Val: val})
		} else {
			any.Elems = put(any.Elems, nft.Elem{Key: nft.Key{}.Proto(proto).Port(p.HostPort).String(), Val: val})
		}
		pin.Elems = put(pin.Elems, nft.Elem{Key: nft.Key{}.Addr(p.pod).Addr(p.pod).String()})
	}
	return []nft.Set{any, at, pin}
}

// put adds an element, replacing one with the same key.
func put(elems []nft.Elem, e nft.Elem) []nft.Elem {
	for i := range elems {
		if elems[i].Key == e.Key {
			elems[i] = e
			return elems
		}
	}
	return append(elems, e)
}

func protoOf(name string) (nft.Proto, bool) {
	switch strings.ToUpper(name) {
	case "", "TCP":
		return nft.TCP, true
	case "UDP":
		return nft.UDP, true
	case "SCTP":
		return nft.SCTP, true
	}
	return 0, false
}
