// Package dns is the cluster's DNS server: Kubernetes' DNS specification 1.1 on every
// node, and the host's resolvers for names outside the cluster.
//
// Answer is pure: from a Snapshot of Services, EndpointSlices and Namespaces and a question
// it makes the message. Server reads the sockets, bounds the work and forwards.
package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const (
	// ttl of every record of the cluster's zone, in seconds.
	ttl = 5
	// schemaVersion is what dns-version.<zone> TXT says.
	schemaVersion = "1.1.0"
	// maxChain bounds how far CNAMEs are followed inside the zone.
	maxChain = 8
)

// Snapshot is what is known of the cluster when a question is answered. All names are
// Kubernetes names, in lower case.
type Snapshot interface {
	// Service returns a Service, or nil.
	Service(namespace, name string) *corev1.Service
	// EndpointSlices returns a Service's EndpointSlices.
	EndpointSlices(namespace, service string) []*discoveryv1.EndpointSlice
	// Namespace reports whether a Namespace exists.
	Namespace(name string) bool
	// ServicesByIP returns the Services with a cluster IP.
	ServicesByIP(ip netip.Addr) []*corev1.Service
	// EndpointsByIP returns the EndpointSlices with an address.
	EndpointsByIP(ip netip.Addr) []*discoveryv1.EndpointSlice
}

// Zone is the cluster's DNS name space.
type Zone struct {
	// Domain is the cluster domain in lower case with a final dot: "cluster.local.".
	Domain string
	// PodCIDRs and ServiceCIDRs would be needed to own whole reverse zones; questions for
	// addresses that no Service or endpoint has are left to the upstream servers instead.
}

// Result is how a question ended.
type Result uint8

// The results. Only Outside leaves the message without an answer.
const (
	Answered Result = iota
	Outside         // the name is not the cluster's: ask upstream
)

// records collects an answer.
type records struct {
	zone   Zone
	snap   Snapshot
	qname  string // as the client wrote it
	qtype  uint16
	answer []dns.RR
	extra  []dns.RR
	exists bool // the name exists, perhaps with other types
}

// Answer makes the answer to req's first question from the snapshot. With Outside, the
// message is nil.
func Answer(z Zone, snap Snapshot, req *dns.Msg) (*dns.Msg, Result) {
	q := req.Question[0]
	name := strings.ToLower(q.Name)
	r := &records{zone: z, snap: snap, qname: q.Name, qtype: q.Qtype}
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		return nil, Outside
	}
	switch {
	case name == z.Domain || strings.HasSuffix(name, "."+z.Domain):
		r.forward(name)
	case strings.HasSuffix(name, ".in-addr.arpa.") || strings.HasSuffix(name, ".ip6.arpa."):
		if !r.reverse(name) {
			return nil, Outside
		}
	default:
		return nil, Outside
	}
	return r.message(req), Answered
}

// message puts the records together: NXDOMAIN if there is no such name, an empty answer
// if it has nothing of the type; both with the SOA that says how long that holds.
func (r *records) message(req *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(req)
	m.Authoritative = true
	m.Answer, m.Extra = r.answer, r.extra
	if len(r.answer) == 0 {
		if !r.exists {
			m.Rcode = dns.RcodeNameError
		}
		m.Ns = []dns.RR{r.soa()}
	}
	return m
}

// forward answers a name inside the zone.
func (r *records) forward(name string) {
	rest := strings.TrimSuffix(strings.TrimSuffix(name, r.zone.Domain), ".")
	var labels []string
	if rest != "" {
		labels = strings.Split(rest, ".")
	}
	slices.Reverse(labels)
	switch {
	case len(labels) == 0:
		r.apex()
	case labels[0] == "svc":
		r.service(labels[1:])
	case labels[0] == "pod":
		r.pod(labels[1:])
	case rest == "dns-version":
		r.exists = true
		if r.wants(dns.TypeTXT) {
			r.add(&dns.TXT{Hdr: r.hdr(r.qname, dns.TypeTXT), Txt: []string{schemaVersion}})
		}
	case rest == "ns.dns":
		r.exists = true
	case rest == "dns":
		r.exists = true
	}
}

// apex answers for the zone itself.
func (r *records) apex() {
	r.exists = true
	if r.wants(dns.TypeSOA) {
		r.add(r.soa())
	}
	if r.wants(dns.TypeNS) {
		r.add(&dns.NS{Hdr: r.hdr(r.qname, dns.TypeNS), Ns: "ns.dns." + r.zone.Domain})
	}
}

// service answers names below svc; labels run from the namespace leftwards.
func (r *records) service(labels []string) {
	switch len(labels) {
	case 0:
		r.exists = true
		return
	case 1:
		r.exists = r.snap.Namespace(labels[0])
		return
	}
	svc := r.snap.Service(labels[0], labels[1])
	if svc == nil {
		return
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		r.externalName(svc, labels[2:])
		return
	}
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
	// A Service that has no address yet has no records either.
	if !headless && svc.Spec.ClusterIP == "" {
		return
	}
	switch rest := labels[2:]; {
	case len(rest) == 0 && headless:
		r.headless(svc, "")
	case len(rest) == 0:
		r.clusterIP(svc)
	case len(rest) == 1 && !strings.HasPrefix(rest[0], "_") && headless:
		r.headless(svc, rest[0])
	case len(rest) == 1 && strings.HasPrefix(rest[0], "_"):
		r.exists = r.hasPort(svc, func(_, proto string) bool { return "_"+proto == rest[0] })
	case len(rest) == 2 && strings.HasPrefix(rest[0], "_") && strings.HasPrefix(rest[1], "_"):
		r.srv(svc, rest[1][1:], rest[0][1:])
	}
}

func (r *records) externalName(svc *corev1.Service, rest []string) {
	if len(rest) > 0 || svc.Spec.ExternalName == "" {
		return
	}
	r.exists = true
	target := strings.TrimSuffix(svc.Spec.ExternalName, ".") + "."
	if a, err := netip.ParseAddr(svc.Spec.ExternalName); err == nil {
		r.address(r.qname, a)
		return
	}
	if len(r.answer) > maxChain || r.has(target) {
		return
	}
	r.add(&dns.CNAME{Hdr: r.hdr(r.qname, dns.TypeCNAME), Target: target})
	if r.qtype == dns.TypeCNAME {
		return
	}
	if low := strings.ToLower(target); strings.HasSuffix(low, "."+r.zone.Domain) {
		// Inside the zone: give the target's records along.
		saved := r.qname
		r.qname = target
		r.forward(low)
		r.qname, r.exists = saved, true
	}
}

func (r *records) has(owner string) bool {
	return slices.ContainsFunc(r.answer, func(rr dns.RR) bool { return strings.EqualFold(rr.Header().Name, owner) })
}

func (r *records) clusterIP(svc *corev1.Service) {
	r.exists = true
	for _, s := range clusterIPs(svc) {
		if a, err := netip.ParseAddr(s); err == nil {
			r.address(r.qname, a)
		}
	}
}

func clusterIPs(svc *corev1.Service) []string {
	if len(svc.Spec.ClusterIPs) > 0 {
		return svc.Spec.ClusterIPs
	}
	return []string{svc.Spec.ClusterIP}
}

// target is one endpoint of a headless Service.
type target struct {
	host string // its hostname, or its address with dashes
	addr netip.Addr
}

// headless answers with the endpoints' addresses: all, or those of one hostname.
func (r *records) headless(svc *corev1.Service, host string) {
	for _, t := range r.targets(svc, nil) {
		if host == "" || t.host == host {
			r.exists = true
			r.address(r.qname, t.addr)
		}
	}
	// The spec leaves a Service without endpoints open; as upstream's server, it does not exist.
}

// targets lists a headless Service's usable endpoints; with a port, those that have it.
func (r *records) targets(svc *corev1.Service, port func(*discoveryv1.EndpointPort) bool) []target {
	var out []target
	for _, s := range r.snap.EndpointSlices(svc.Namespace, svc.Name) {
		if port != nil && !slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool { return port(&p) }) {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.Conditions.Ready != nil && !*e.Conditions.Ready && !svc.Spec.PublishNotReadyAddresses {
				continue
			}
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				if err != nil {
					continue
				}
				t := target{dashed(a), a}
				if e.Hostname != nil && *e.Hostname != "" {
					t.host = *e.Hostname
				}
				out = append(out, t)
			}
		}
	}
	slices.SortFunc(out, func(a, b target) int { return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.host, b.host)) })
	return slices.Compact(out)
}

// dashed writes an address as one label.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

// srv answers _port._proto.service.
func (r *records) srv(svc *corev1.Service, port, proto string) {
	base := svc.Name + "." + svc.Namespace + ".svc." + r.zone.Domain
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		for _, s := range r.snap.EndpointSlices(svc.Namespace, svc.Name) {
			for i := range s.Ports {
				p := &s.Ports[i]
				if p.Name == nil || p.Port == nil || *p.Name != port || !sameProto(p.Protocol, proto) {
					continue
				}
				for _, t := range r.targetsOf(svc, s) {
					r.addSRV(uint16(*p.Port), t.host+"."+base, t.addr)
				}
			}
		}
		return
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.Name != port || !sameProto(&p.Protocol, proto) {
			continue
		}
		for _, ip := range clusterIPs(svc) {
			if a, err := netip.ParseAddr(ip); err == nil {
				r.addSRV(uint16(p.Port), base, a)
			}
		}
	}
}

// targetsOf lists the usable endpoints of one slice.
func (r *records) targetsOf(svc *corev1.Service, s *discoveryv1.EndpointSlice) []target {
	one := records{snap: single{r.snap, s}}
	return one.targets(svc, nil)
}

// single is a Snapshot that sees one EndpointSlice.
type single struct {
	Snapshot
	slice *discoveryv1.EndpointSlice
}

// EndpointSlices implements Snapshot.
func (s single) EndpointSlices(string, string) []*discoveryv1.EndpointSlice {
	return []*discoveryv1.EndpointSlice{s.slice}
}

func (r *records) hasPort(svc *corev1.Service, match func(name, proto string) bool) bool {
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.Name != "" && match(p.Name, strings.ToLower(string(cmp.Or(p.Protocol, corev1.ProtocolTCP)))) {
			return true
		}
	}
	return false
}

func sameProto(p *corev1.Protocol, name string) bool {
	proto := corev1.ProtocolTCP
	if p != nil && *p != "" {
		proto = *p
	}
	return strings.EqualFold(string(proto), name)
}

// addSRV adds an SRV record once for its target, and the target's address beside it.
func (r *records) addSRV(port uint16, host string, a netip.Addr) {
	r.exists = true
	if !r.wants(dns.TypeSRV) {
		return
	}
	srv := &dns.SRV{Hdr: r.hdr(r.qname, dns.TypeSRV), Priority: 0, Weight: 100, Port: port, Target: host}
	if !slices.ContainsFunc(r.answer, func(rr dns.RR) bool {
		o, ok := rr.(*dns.SRV)
		return ok && o.Target == host && o.Port == port
	}) {
		r.add(srv)
	}
	r.extra = append(r.extra, addressRecord(host, a))
}

// pod answers <address with dashes>.<namespace>.pod.
func (r *records) pod(labels []string) {
	switch len(labels) {
	case 0:
		r.exists = true
	case 1:
		r.exists = r.snap.Namespace(labels[0])
	case 2:
		if !r.snap.Namespace(labels[0]) {
			return
		}
		for _, sep := range []string{".", ":"} {
			if a, err := netip.ParseAddr(strings.ReplaceAll(labels[1], "-", sep)); err == nil {
				r.exists = true
				r.address(r.qname, a)
				return
			}
		}
	}
}

// reverse answers a PTR question for a Service's or endpoint's address; false if nobody
// here has it.
func (r *records) reverse(name string) bool {
	a, ok := reverseAddr(name)
	if !ok {
		return false
	}
	found := false
	ptr := func(host string) {
		found, r.exists = true, true
		if r.wants(dns.TypePTR) {
			r.add(&dns.PTR{Hdr: r.hdr(r.qname, dns.TypePTR), Ptr: host + ".svc." + r.zone.Domain})
		}
	}
	for _, svc := range r.snap.ServicesByIP(a) {
		ptr(svc.Name + "." + svc.Namespace)
	}
	if found {
		return true
	}
	for _, s := range r.snap.EndpointsByIP(a) {
		name := s.Labels[discoveryv1.LabelServiceName]
		svc := r.snap.Service(s.Namespace, name)
		if svc == nil || svc.Spec.ClusterIP != corev1.ClusterIPNone {
			continue
		}
		for _, t := range r.targetsOf(svc, s) {
			if t.addr == a {
				ptr(t.host + "." + name + "." + s.Namespace)
			}
		}
	}
	return found
}

// reverseAddr reads the address in a name below in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	rest, _ := strings.CutSuffix(name, ".ip6.arpa.")
	parts := strings.Split(rest, ".")
	if len(parts) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		b.WriteString(parts[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// wants reports whether records of the type answer the question.
func (r *records) wants(t uint16) bool { return r.qtype == t || r.qtype == dns.TypeANY }

// address adds an address record if it is of the type asked for.
func (r *records) address(owner string, a netip.Addr) {
	rr := addressRecord(owner, a)
	if !r.wants(rr.Header().Rrtype) {
		return
	}
	for _, have := range r.answer {
		if dns.IsDuplicate(have, rr) {
			return
		}
	}
	r.add(rr)
}

func addressRecord(owner string, a netip.Addr) dns.RR {
	a = a.Unmap()
	if a.Is4() {
		return &dns.A{Hdr: header(owner, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: a.AsSlice()}
}

func (r *records) add(rr dns.RR) { r.answer = append(r.answer, rr) }

func (r *records) hdr(owner string, t uint16) dns.RR_Header { return header(owner, t) }

func header(owner string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

// soa is the zone's start of authority. Its serial does not matter: nobody transfers the zone.
func (r *records) soa() *dns.SOA {
	return &dns.SOA{Hdr: header(r.zone.Domain, dns.TypeSOA), Ns: "ns.dns." + r.zone.Domain,
		Mbox: "hostmaster." + r.zone.Domain, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl}
}
