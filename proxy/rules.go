package proxy

import (
	"net/netip"
	"slices"

	"github.com/skiff-project/skiff/internal/nft"
)

// setID names one of the table's sets.
type setID uint8

const (
	setServices setID = iota
	setNodePorts
	setEndpoints
	setClusterPicks
	setLocalPicks
	setClusterIPs
	setHairpin
	setSticky
	setStickyNumbers
	setStickyTargets
	setGuarded
	setSources
	setCount
)

const (
	chainReject       = "reject"
	chainServices     = "services"
	chainExtLocal     = "external-local"
	chainNodeExtLocal = "node-external-local"
	chainOutside      = "mark-outside"
	chainGuard        = "source-ranges"

	priorityGuard = -110 // before DNAT, while the packet still has the Service's address
	priorityDNAT  = -100
	prioritySNAT  = 100

	// stickyClients bounds how many clients' endpoints are remembered in a family; beyond
	// it new clients are served without being remembered.
	stickyClients = 1 << 18
)

// masqChain is the entrance to a pick for connections that must come back through here.
func masqChain(p pick) string { return "masq-" + p.chain() }

// sets declares the table's sets, empty, in the order of their IDs.
func sets(f nft.Family) []nft.Set {
	addr := f.AddrType()
	front := []nft.Type{addr, nft.TypeProto, nft.TypePort}
	to, number := []nft.Type{addr, nft.TypePort}, []nft.Type{nft.TypeIndex}
	return []nft.Set{
		setServices:      {Name: "services", Key: front, Verdict: true},
		setNodePorts:     {Name: "nodeports", Key: front[1:], Verdict: true},
		setEndpoints:     {Name: "endpoints", Key: append(slices.Clone(front), number...), Data: to},
		setClusterPicks:  {Name: "cluster-picks", Key: front, Verdict: true},
		setLocalPicks:    {Name: "local-picks", Key: front, Verdict: true},
		setClusterIPs:    {Name: "cluster-ips", Key: front[:1]},
		setHairpin:       {Name: "hairpin", Key: []nft.Type{addr, addr}},
		setSticky:        {Name: "sticky", Key: append([]nft.Type{addr}, front...), Data: number, Dynamic: true, Size: stickyClients},
		setStickyNumbers: {Name: "sticky-numbers", Key: append(slices.Clone(front), number...), Data: number},
		setStickyTargets: {Name: "sticky-targets", Key: append(slices.Clone(front), number...), Data: to},
		setGuarded:       {Name: "guarded", Key: front},
		setSources:       {Name: "sources", Key: append(slices.Clone(front), addr), Interval: true},
	}
}

// baseChains are the chains that do not depend on which Services there are.
func baseChains(f nft.Family, cfg *Config) []nft.Chain {
	toServices := []nft.Rule{nft.NewRule(nft.Jump(chainServices))}
	guard := []nft.Rule{nft.NewRule(nft.StateNew(), nft.In("guarded", f.Daddr(), nft.L4Proto(), nft.Dport()), nft.Goto(chainGuard))}
	return []nft.Chain{
		{Name: "guard", Hook: nft.Prerouting, Type: "filter", Priority: priorityGuard, Rules: guard},
		{Name: "prerouting", Hook: nft.Prerouting, Type: "nat", Priority: priorityDNAT, Rules: toServices},
		{Name: "output", Hook: nft.Output, Type: "nat", Priority: priorityDNAT, Rules: toServices},
		{Name: "postrouting", Hook: nft.Postrouting, Type: "nat", Priority: prioritySNAT, Rules: []nft.Rule{
			nft.NewRule(nft.MarkSet(cfg.MasqueradeMark), nft.DropMark(cfg.MasqueradeMark), nft.Masquerade()),
			nft.NewRule(nft.In("hairpin", f.Saddr(), f.Daddr()), nft.Masquerade()),
		}},
		{Name: chainServices, Rules: serviceRules(f, cfg)},
		{Name: chainOutside, Rules: outsideRules(f, cfg)},
		{Name: chainReject, Rules: []nft.Rule{nft.NewRule(f.Reject())}},
		{Name: chainGuard, Rules: []nft.Rule{
			nft.NewRule(nft.NotIn("sources", f.Daddr(), nft.L4Proto(), nft.Dport(), f.Saddr()), nft.Drop()),
		}},
		{Name: chainExtLocal, Rules: extLocalRules(f, cfg, f.Daddr())},
		{Name: chainNodeExtLocal, Rules: extLocalRules(f, cfg, nft.ConstAddr(f.Unspecified()))},
	}
}

// serviceRules dispatch a new connection. The reject is in a nat chain, which sees each
// connection once, before it is routed: so clients are refused even where no route leads
// to the Service ranges.
func serviceRules(f nft.Family, cfg *Config) []nft.Rule {
	rules := []nft.Rule{
		nft.NewRule(nft.In("cluster-ips", f.Daddr()), nft.Jump(chainOutside)),
		nft.NewRule(nft.Vmap("services", f.Daddr(), nft.L4Proto(), nft.Dport())),
	}
	for _, p := range cfg.nodePortRanges(f) {
		rules = append(rules, nft.NewRule(f.Dst(p, false), nft.DstLocal(), nft.Vmap("nodeports", nft.L4Proto(), nft.Dport())))
	}
	rules = append(rules, nft.NewRule(nft.In("cluster-ips", f.Daddr()), nft.Goto(chainReject)))
	for _, p := range ofFamily(f, cfg.ServiceCIDRs) {
		rules = append(rules, nft.NewRule(f.Dst(p, false), nft.Drop()))
	}
	return rules
}

// outsideRules mark connections to a ClusterIP that come from outside the pods' ranges:
// the endpoint's answer might not come back through this node otherwise.
func outsideRules(f nft.Family, cfg *Config) []nft.Rule {
	inside := ofFamily(f, cfg.ClusterCIDRs)
	if len(inside) == 0 {
		return nil
	}
	var rules []nft.Rule
	for _, p := range inside {
		rules = append(rules, nft.NewRule(f.Src(p, false), nft.Return()))
	}
	return append(rules, nft.NewRule(nft.AddMark(cfg.MasqueradeMark)))
}

// extLocalRules serve externalTrafficPolicy Local: pods and the node itself may use every
// endpoint, others only the node's own, whose answers keep the client's address.
func extLocalRules(f nft.Family, cfg *Config, vip nft.Field) []nft.Rule {
	var rules []nft.Rule
	for _, p := range ofFamily(f, cfg.ClusterCIDRs) {
		rules = append(rules, nft.NewRule(f.Src(p, false), nft.Vmap("cluster-picks", vip, nft.L4Proto(), nft.Dport())))
	}
	return append(rules,
		nft.NewRule(nft.SrcLocal(), nft.AddMark(cfg.MasqueradeMark), nft.Vmap("cluster-picks", vip, nft.L4Proto(), nft.Dport())),
		nft.NewRule(nft.Vmap("local-picks", vip, nft.L4Proto(), nft.Dport())),
		nft.NewRule(nft.Drop())) // see pickChain
}

// pickChain sends a connection to one of a frontend's endpoints. It names no Service: all
// that have as many endpoints share it.
//
// A transaction becomes visible between two packets, but also between two lookups of one:
// a packet may be sent here for N endpoints and find that the Service just shrank. Then
// the first endpoint takes it, or, if there is none any more, the packet is dropped: were
// it let pass, conntrack would hold the connection to the address as it is.
func pickChain(f nft.Family, p pick) nft.Chain {
	vip := f.Daddr()
	if p.nodePort {
		vip = nft.ConstAddr(f.Unspecified())
	}
	dnat := func(which nft.Field) nft.Rule {
		return nft.NewRule(f.DNAT("endpoints", vip, nft.L4Proto(), nft.Dport(), which))
	}
	random := nft.Random(uint32(p.n), uint32(p.offset))
	var rules []nft.Rule
	if p.sticky > 0 {
		s := nft.Sticky{Clients: "sticky", Numbers: "sticky-numbers", Targets: "sticky-targets", Timeout: p.sticky}
		// What follows these two serves clients that cannot be remembered, being too many.
		rules = append(rules, nft.NewRule(f.StickyKnown(s, vip)), nft.NewRule(f.StickyNew(s, vip, random)))
	}
	rules = append(rules, dnat(random))
	if p.n+p.offset > 1 {
		rules = append(rules, dnat(nft.Random(1, 0)))
	}
	return nft.Chain{Name: p.chain(), Rules: append(rules, nft.NewRule(nft.Drop()))}
}

// masqueradeChain marks, then picks.
func masqueradeChain(p pick, mark uint32) nft.Chain {
	return nft.Chain{Name: masqChain(p), Rules: []nft.Rule{nft.NewRule(nft.AddMark(mark)), nft.NewRule(nft.Goto(p.chain()))}}
}

func ofFamily(f nft.Family, in []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range in {
		if nft.FamilyOf(p.Addr()) == f {
			out = append(out, p.Masked())
		}
	}
	return out
}
