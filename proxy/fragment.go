package proxy

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/skiff-project/skiff/internal/nft"
)

// proxyNameLabel on a Service hands it to another proxy.
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// endpoint is one address and port behind a Service port.
type endpoint struct {
	at          netip.AddrPort
	local       bool
	ready       bool
	serving     bool
	terminating bool
}

// frontend is where clients connect. A node port has the unspecified address.
type frontend struct {
	addr  netip.Addr
	proto nft.Proto
	port  uint16
}

func (fe frontend) key() nft.Key {
	return nft.Key{}.Addr(fe.addr).Proto(fe.proto).Port(fe.port)
}

// pick says how a connection chooses among a frontend's endpoints: one of n, the first of
// which has index offset; with a timeout, clients keep their endpoint that long.
type pick struct {
	n, offset int
	sticky    time.Duration
	nodePort  bool
}

// chain is the name of the chain that picks so.
func (p pick) chain() string {
	name := fmt.Sprintf("pick-%d", p.n)
	if p.sticky > 0 {
		name = fmt.Sprintf("sticky-%d-%ds", p.n, int(p.sticky/time.Second))
	}
	if p.offset > 0 {
		name += fmt.Sprintf("-at-%d", p.offset)
	}
	if p.nodePort {
		name = "node-" + name
	}
	return name
}

// placed is one element and the set it belongs to.
type placed struct {
	set  setID
	elem nft.Elem
}

// fragment is everything one Service asks of the kernel, in one family.
type fragment struct {
	name    string // namespace/name
	created int64  // Unix seconds; the older Service wins a contested address
	elems   []placed
	picks   []pick // each once
	masq    []pick // picks that also need their masquerading entrance
	// udp lists the UDP frontends with the endpoints that may still answer them.
	udp map[frontend][]netip.AddrPort
}

// view is what a node knows of itself.
type view struct {
	node    string
	nodeIPs []netip.Addr
}

// builder collects one fragment.
type builder struct {
	*fragment
	family nft.Family
	view   view
	svc    *corev1.Service
}

// serves reports whether the Service is ours to program.
func serves(svc *corev1.Service) bool {
	if svc == nil {
		return false
	}
	_, others := svc.Labels[proxyNameLabel]
	_, headless := svc.Labels[corev1.IsHeadlessService]
	return !others && !headless && svc.Spec.Type != corev1.ServiceTypeExternalName &&
		svc.Spec.ClusterIP != "" && svc.Spec.ClusterIP != corev1.ClusterIPNone
}

// newFragment works out a Service's part of the table; nil if it has none in this family.
func newFragment(f nft.Family, v view, svc *corev1.Service, slices []*discoveryv1.EndpointSlice) *fragment {
	if !serves(svc) {
		return nil
	}
	b := builder{family: f, view: v, svc: svc, fragment: &fragment{
		name: svc.Namespace + "/" + svc.Name, created: svc.CreationTimestamp.Unix(),
	}}
	clusterIPs := addrsOf(f, append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...))
	if len(clusterIPs) == 0 {
		return nil
	}
	for _, ip := range clusterIPs {
		b.put(setClusterIPs, nft.Key{}.Addr(ip), "")
	}
	for i := range svc.Spec.Ports {
		b.addPort(&svc.Spec.Ports[i], clusterIPs, endpointsOf(f, v.node, svc.Spec.Ports[i].Name, slices))
	}
	return b.fragment
}

func (b *builder) put(set setID, key nft.Key, val string) {
	b.elems = append(b.elems, placed{set, nft.Elem{Key: key.String(), Val: val}})
}

// targets are a Service port's usable endpoints, ordered so that one list of indexes
// serves both traffic policies.
type targets struct {
	list           []endpoint
	cluster, local pick
	any            bool // some endpoint is usable, though perhaps not by this node's policy
}

func (b *builder) addPort(p *corev1.ServicePort, clusterIPs []netip.Addr, eps []endpoint) {
	proto, ok := protoOf(p.Protocol)
	if !ok {
		return
	}
	spec := &b.svc.Spec
	internalLocal := spec.InternalTrafficPolicy != nil && *spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	externalLocal := spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	t := choose(eps, internalLocal || externalLocal)
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		t.cluster.sticky = affinityTimeout(spec)
		t.local.sticky = t.cluster.sticky
	}
	port := uint16(p.Port)
	for _, ip := range clusterIPs {
		fe := frontend{ip, proto, port}
		b.addEndpoints(fe, t, eps)
		pk := t.cluster
		if internalLocal {
			pk = t.local
		}
		b.put(setServices, fe.key(), b.verdict(pk, t, false))
	}
	for _, ip := range b.externalAddrs() {
		fe := frontend{ip, proto, port}
		b.addEndpoints(fe, t, eps)
		b.put(setServices, fe.key(), b.external(fe, t, externalLocal))
	}
	b.addNodePort(frontend{b.family.Unspecified(), proto, uint16(p.NodePort)}, t, eps, externalLocal)
	b.guard(proto, port)
}

func (b *builder) addNodePort(fe frontend, t targets, eps []endpoint, externalLocal bool) {
	if fe.port == 0 {
		return
	}
	t.cluster.nodePort, t.local.nodePort = true, true
	b.addEndpoints(fe, t, eps)
	b.put(setNodePorts, nft.Key{}.Proto(fe.proto).Port(fe.port), b.external(fe, t, externalLocal))
}

// external is the verdict for traffic to an address outside the cluster's own ranges.
func (b *builder) external(fe frontend, t targets, local bool) string {
	if !local || !t.any {
		return b.verdict(t.cluster, t, true)
	}
	b.put(setLocalPicks, fe.key(), b.verdict(t.local, t, false))
	b.put(setClusterPicks, fe.key(), b.verdict(t.cluster, t, false))
	if t.cluster.nodePort {
		return "goto " + chainNodeExtLocal
	}
	return "goto " + chainExtLocal
}

// verdict leads to the pick's chain. With nothing to pick from, clients are refused, or,
// if it is only this node that has nothing, ignored, so that they try another node.
func (b *builder) verdict(p pick, t targets, masquerade bool) string {
	switch {
	case p.n > 0 && masquerade:
		b.picks, b.masq = addPick(b.picks, p), addPick(b.masq, p)
		return "goto " + masqChain(p)
	case p.n > 0:
		b.picks = addPick(b.picks, p)
		return "goto " + p.chain()
	case t.any:
		return "drop"
	}
	return "goto " + chainReject
}

func addPick(picks []pick, p pick) []pick {
	if slices.Contains(picks, p) {
		return picks
	}
	return append(picks, p)
}

// addEndpoints lists a frontend's endpoints by index.
func (b *builder) addEndpoints(fe frontend, t targets, eps []endpoint) {
	var numbers map[netip.AddrPort]uint32
	if t.cluster.sticky > 0 {
		numbers = numberEndpoints(t.list)
	}
	for i, ep := range t.list {
		to := nft.Key{}.Addr(ep.at.Addr()).Port(ep.at.Port())
		b.put(setEndpoints, fe.key().Index(uint32(i)), to.String())
		if t.cluster.sticky > 0 {
			n := nft.Key{}.Index(numbers[ep.at])
			b.put(setStickyNumbers, fe.key().Index(uint32(i)), n.String())
			b.put(setStickyTargets, append(fe.key(), n...), to.String())
		}
		if ep.local && !slices.Contains(b.view.nodeIPs, ep.at.Addr()) {
			b.put(setHairpin, nft.Key{}.Addr(ep.at.Addr()).Addr(ep.at.Addr()), "")
		}
	}
	if fe.proto != nft.UDP {
		return
	}
	if b.udp == nil {
		b.udp = map[frontend][]netip.AddrPort{}
	}
	b.udp[fe] = []netip.AddrPort{}
	for _, ep := range eps {
		if ep.serving {
			b.udp[fe] = append(b.udp[fe], ep.at)
		}
	}
}

// numberEndpoints gives each endpoint a number that it keeps while others come and go: a
// hash, moved on where two would meet.
func numberEndpoints(list []endpoint) map[netip.AddrPort]uint32 {
	numbers, taken := map[netip.AddrPort]uint32{}, map[uint32]bool{}
	for _, ep := range list {
		if _, done := numbers[ep.at]; done {
			continue
		}
		h := fnv.New32a()
		_, _ = h.Write(ep.at.Addr().AsSlice())
		_, _ = h.Write([]byte{byte(ep.at.Port() >> 8), byte(ep.at.Port())})
		n := h.Sum32()
		for taken[n] {
			n++
		}
		numbers[ep.at], taken[n] = n, true
	}
	return numbers
}

// externalAddrs are the load balancer's addresses and the external IPs.
func (b *builder) externalAddrs() []netip.Addr {
	return dedupe(append(addrsOf(b.family, b.svc.Spec.ExternalIPs), b.balancerAddrs()...))
}

func (b *builder) balancerAddrs() []netip.Addr {
	if b.svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var ips []string
	for _, in := range b.svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			ips = append(ips, in.IP)
		}
	}
	return addrsOf(b.family, ips)
}

// guard admits only the Service's source ranges, and the node itself, to the balancer's
// addresses.
func (b *builder) guard(proto nft.Proto, port uint16) {
	if len(b.svc.Spec.LoadBalancerSourceRanges) == 0 {
		return
	}
	ranges := prefixesOf(b.family, b.svc.Spec.LoadBalancerSourceRanges)
	for _, ip := range b.balancerAddrs() {
		fe := frontend{ip, proto, port}
		b.put(setGuarded, fe.key(), "")
		for _, p := range ranges {
			b.elems = append(b.elems, placed{setSources, nft.Elem{
				Key:    fe.key().Addr(p.Masked().Addr()).String(),
				KeyEnd: fe.key().Addr(lastOf(p)).String(),
			}})
		}
	}
}

// choose filters and orders endpoints: ready ones, or, if there are none, terminating ones
// that still serve; the same among local ones alone (as upstream).
func choose(eps []endpoint, useLocal bool) targets {
	usable := func(in []endpoint) []endpoint {
		for _, want := range []func(endpoint) bool{
			func(e endpoint) bool { return e.ready },
			func(e endpoint) bool { return e.serving && e.terminating },
		} {
			var out []endpoint
			for _, e := range in {
				if want(e) {
					out = append(out, e)
				}
			}
			if len(out) > 0 {
				return out
			}
		}
		return nil
	}
	cluster := usable(eps)
	t := targets{list: cluster, cluster: pick{n: len(cluster)}, any: len(cluster) > 0}
	if !useLocal {
		return t
	}
	var onNode []endpoint
	for _, e := range eps {
		if e.local {
			onNode = append(onNode, e)
		}
	}
	local := usable(onNode)
	t.local.n = len(local)
	rest := slices.DeleteFunc(slices.Clone(cluster), func(e endpoint) bool { return slices.Contains(local, e) })
	if len(rest)+len(local) == len(cluster) {
		// Local ones first: then the same indexes serve both picks.
		t.list = append(slices.Clone(local), rest...)
		return t
	}
	t.list = append(slices.Clone(local), cluster...)
	t.cluster.offset = len(local)
	return t
}

// endpointsOf gathers a Service port's endpoints from its slices, each address and port
// once, in order of address.
func endpointsOf(f nft.Family, node, portName string, all []*discoveryv1.EndpointSlice) []endpoint {
	found := map[netip.AddrPort]endpoint{}
	for _, s := range all {
		port := slicePort(s, portName)
		if port == 0 {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			addrs := addrsOf(f, e.Addresses[:min(1, len(e.Addresses))])
			if len(addrs) == 0 {
				continue
			}
			c := &e.Conditions
			ep := endpoint{
				at:          netip.AddrPortFrom(addrs[0], port),
				local:       e.NodeName != nil && *e.NodeName == node,
				ready:       c.Ready == nil || *c.Ready,
				serving:     c.Serving == nil && (c.Ready == nil || *c.Ready) || c.Serving != nil && *c.Serving,
				terminating: c.Terminating != nil && *c.Terminating,
			}
			// Two slices may hold one endpoint while it moves: the ready one counts.
			if old, ok := found[ep.at]; !ok || !old.ready {
				found[ep.at] = ep
			}
		}
	}
	out := make([]endpoint, 0, len(found))
	for _, ep := range found {
		out = append(out, ep)
	}
	slices.SortFunc(out, func(a, b endpoint) int { return a.at.Compare(b.at) })
	return out
}

func slicePort(s *discoveryv1.EndpointSlice, name string) uint16 {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Port != nil && (p.Name == nil && name == "" || p.Name != nil && *p.Name == name) {
			return uint16(*p.Port)
		}
	}
	return 0
}

func affinityTimeout(spec *corev1.ServiceSpec) time.Duration {
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// addrsOf parses the addresses of one family, leaving out others and repetitions.
func addrsOf(f nft.Family, in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		if a, err := netip.ParseAddr(s); err == nil && nft.FamilyOf(a) == f {
			out = append(out, a.Unmap())
		}
	}
	return dedupe(out)
}

// prefixesOf parses the prefixes of one family and leaves out those inside another: the
// kernel takes no overlapping ranges.
func prefixesOf(f nft.Family, in []string) []netip.Prefix {
	var all, out []netip.Prefix
	for _, s := range in {
		if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil && nft.FamilyOf(p.Addr()) == f {
			all = append(all, p.Masked())
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
	for _, p := range all {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Contains(p.Addr()) }) {
			out = append(out, p)
		}
	}
	return out
}

func dedupe(in []netip.Addr) []netip.Addr {
	slices.SortFunc(in, netip.Addr.Compare)
	return slices.Compact(in)
}

func protoOf(p corev1.Protocol) (nft.Proto, bool) {
	switch cmp.Or(p, corev1.ProtocolTCP) {
	case corev1.ProtocolTCP:
		return nft.TCP, true
	case corev1.ProtocolUDP:
		return nft.UDP, true
	case corev1.ProtocolSCTP:
		return nft.SCTP, true
	}
	return 0, false
}

// lastOf is the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
