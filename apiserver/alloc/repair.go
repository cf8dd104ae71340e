package alloc

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/skiff-project/skiff/api"
)

// State is what a repair looks at.
type State struct {
	Services  []*corev1.Service
	Addresses []*networkingv1.IPAddress
	Ranges    []netip.Prefix
	Now       time.Time
}

// Repairs is what a repair of addresses does, in this order.
type Repairs struct {
	Delete []netip.Addr
	Create []*networkingv1.IPAddress
	Events []Event
}

// Event is a Warning about an object; all are.
type Event struct {
	About                   api.Object
	Reason, Action, Message string
}

const (
	// orphanGrace is how long an address may lack its Service: the time a
	// request that creates one may take.
	orphanGrace = time.Minute
	// raceGrace is how long an address may belong to an older Service that
	// does not have it: a create that is about to be taken back.
	raceGrace = 5 * time.Second
)

// PlanAddresses says how to make addresses and Services agree. An address
// belongs to a Service if it refers to it and the Service has it.
func PlanAddresses(s State) Repairs {
	p := planner{State: s, services: map[string]*corev1.Service{}, byIP: map[string]*networkingv1.IPAddress{}}
	for _, svc := range s.Services {
		p.services[svc.Namespace+"/"+svc.Name] = svc
	}
	for _, a := range s.Addresses {
		p.byIP[a.Name] = a
	}
	for _, svc := range s.Services {
		for _, ip := range heldIPs(svc) {
			p.service(svc, ip)
		}
	}
	for _, a := range s.Addresses {
		if a.Labels[networkingv1.LabelManagedBy] == ManagedBy && !p.replaced(a.Name) {
			p.address(a)
		}
	}
	return p.Repairs
}

type planner struct {
	State
	Repairs
	services map[string]*corev1.Service
	byIP     map[string]*networkingv1.IPAddress
}

func (p *planner) warn(about api.Object, reason, action, format string, args ...any) {
	p.Events = append(p.Events, Event{about, reason, action, fmt.Sprintf(format, args...)})
}

func (p *planner) replaced(name string) bool {
	return slices.ContainsFunc(p.Delete, func(ip netip.Addr) bool { return ip.String() == name })
}

func (p *planner) replace(svc *corev1.Service, ip netip.Addr) {
	p.Delete = append(p.Delete, ip)
	p.Create = append(p.Create, newAddress(ip, svc))
}

func refers(a *networkingv1.IPAddress) *networkingv1.ParentReference {
	if r := a.Spec.ParentRef; r != nil && r.Group == "" && r.Resource == "services" {
		return r
	}
	return nil
}

func has(svc *corev1.Service, ip string) bool { return slices.Contains(svc.Spec.ClusterIPs, ip) }

// service checks that an address of a Service is noted as its own.
func (p *planner) service(svc *corev1.Service, ip netip.Addr) {
	const action = "ClusterIPAllocation"
	family := corev1.IPv4Protocol
	if ip.Is6() {
		family = corev1.IPv6Protocol
	}
	if !slices.ContainsFunc(p.Ranges, func(r netip.Prefix) bool { return r.Contains(ip) }) {
		p.warn(svc, "ClusterIPOutOfRange", action, "Cluster IP [%v]: %s is not within any configured Service CIDR; please recreate service", family, ip)
		return
	}
	a := p.byIP[ip.String()]
	if a == nil {
		p.warn(svc, "ClusterIPNotAllocated", action, "Cluster IP [%v]: %s is not allocated; repairing", family, ip)
		a = newAddress(ip, svc)
		p.byIP[a.Name] = a
		p.Create = append(p.Create, a)
		return
	}
	wrong := func() {
		p.warn(svc, "ClusterIPNotAllocated", action, "the ClusterIP [%v]: %s for Service %s/%s has a wrong reference; repairing", family, ip, svc.Namespace, svc.Name)
		p.replace(svc, ip)
	}
	ref := refers(a)
	if ref == nil {
		wrong()
		return
	}
	if ref.Namespace != svc.Namespace || ref.Name != svc.Name {
		other := p.services[ref.Namespace+"/"+ref.Name]
		if other == nil {
			wrong()
			return
		}
		if has(other, a.Name) {
			p.warn(svc, "ClusterIPAlreadyAllocated", action, "Cluster IP [%v]:%s was assigned to multiple services; please recreate service", family, ip)
		}
		return
	}
	if a.Labels[networkingv1.LabelManagedBy] != ManagedBy || a.Labels[networkingv1.LabelIPAddressFamily] != string(family) {
		p.replace(svc, ip)
	}
}

// address checks that an address we gave is still in use.
func (p *planner) address(a *networkingv1.IPAddress) {
	const action = "IPAddressAllocation"
	ip, err := netip.ParseAddr(a.Name)
	if err != nil {
		return
	}
	age := p.Now.Sub(a.CreationTimestamp.Time)
	drop := func(reason, format string, args ...any) {
		p.warn(a, reason, action, format, args...)
		p.Delete = append(p.Delete, ip)
	}
	ref := refers(a)
	if ref == nil {
		drop("IPAddressNotAllocated", "IPAddress %s appears to have been modified, not referencing a Service %v: cleaning up", a.Name, a.Spec.ParentRef)
		return
	}
	svc := p.services[ref.Namespace+"/"+ref.Name]
	switch {
	case svc == nil && age > orphanGrace:
		drop("IPAddressNotAllocated", "IPAddress: %s for Service %s/%s appears to have leaked: cleaning up", a.Name, ref.Namespace, ref.Name)
	case svc == nil, has(svc, a.Name):
	case svc.Spec.Type == corev1.ServiceTypeExternalName && age < orphanGrace:
	case a.CreationTimestamp.After(svc.CreationTimestamp.Time) && age < raceGrace:
	default:
		drop("IPAddressWrongReference", "IPAddress: %s for Service %s/%s has a wrong reference; cleaning up", a.Name, svc.Namespace, svc.Name)
	}
}

// RepairPorts makes the node ports in memory those the stored Services have.
// A port no Service has any more is freed when two repairs in a row found it
// so: the first may have come in the middle of a request.
func (s *Services) RepairPorts(services []*corev1.Service) []Event {
	const action = "PortAllocation"
	var events []Event
	s.repair.Lock()
	defer s.repair.Unlock()
	used := map[nodePort]bool{}
	for _, svc := range services {
		for _, p := range heldPorts(svc) {
			ports := s.ports[p.protocol]
			if ports == nil {
				continue
			}
			warn := func(reason, format string, args ...any) {
				events = append(events, Event{svc, reason, action, fmt.Sprintf(format, args...)})
			}
			switch {
			case !ports.holds(p.port):
				warn("PortOutOfRange", "Port %d is not within the port range %s; please recreate service", p.port, ports.r)
			case used[p]:
				warn("PortAlreadyAllocated", "Port %d was assigned to multiple services; please recreate service", p.port)
			case ports.Take(p.port) == nil && s.repaired:
				warn("PortNotAllocated", "Port %d is not allocated; repairing", p.port)
			}
			used[p] = true
		}
	}
	leaks := map[nodePort]bool{}
	for proto, ports := range s.ports {
		for _, port := range ports.taken() {
			p := nodePort{proto, port}
			switch {
			case used[p]:
			case s.leaks[p]:
				ports.Free(port)
			default:
				leaks[p] = true
			}
		}
	}
	s.leaks, s.repaired = leaks, true
	return events
}

// Apply makes the repairs of addresses. confirm is asked again just before an
// address is noted for a Service, which may be gone by now.
func Apply(ctx context.Context, a Addresses, r Repairs, confirm func(*networkingv1.ParentReference, string) *corev1.Service) error {
	for _, ip := range r.Delete {
		if err := a.Delete(ctx, ip); err != nil {
			return fmt.Errorf("repair of cluster IP %s: %w", ip, err)
		}
	}
	for _, want := range r.Create {
		ip, err := netip.ParseAddr(want.Name)
		svc := confirm(want.Spec.ParentRef, want.Name)
		if err != nil || svc == nil {
			continue
		}
		if err := a.Create(ctx, ip, svc); err != nil && err != ErrAllocated {
			return fmt.Errorf("repair of cluster IP %s: %w", ip, err)
		}
	}
	return nil
}
