package alloc

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/store"
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

// leakedAfter is how many repairs must find a taken port that no Service has
// until it is free again: the first may have come in the middle of a request.
const leakedAfter = 3

// portRepairs is what a repair of ports comes to.
type portRepairs struct {
	taken  *big.Int
	leaks  map[int]int // by port: repairs that found it without a Service
	freed  []int
	events []Event
}

// planPorts says which ports are taken, given what is noted as taken and what
// the Services have. leaks are those of the repair before.
func planPorts(noted *big.Int, r PortRange, services []*corev1.Service, leaks map[int]int) portRepairs {
	out := portRepairs{taken: new(big.Int), leaks: map[int]int{}}
	for _, svc := range services {
		for _, port := range heldPorts(svc) {
			warn := func(reason, format string, args ...any) {
				out.events = append(out.events, Event{svc, reason, "PortAllocation", fmt.Sprintf(format, args...)})
			}
			switch {
			case !r.holds(port):
				warn("PortOutOfRange", "Port %d is not within the port range %s; please recreate service", port, r)
				continue
			case out.taken.Bit(port) == 1:
				warn("PortAlreadyAllocated", "Port %d was assigned to multiple services; please recreate service", port)
			case noted.Bit(port) == 0:
				warn("PortNotAllocated", "Port %d is not allocated; repairing", port)
			}
			out.taken.SetBit(out.taken, port, 1)
		}
	}
	for port := r.First; port <= r.Last; port++ {
		if noted.Bit(port) == 0 || out.taken.Bit(port) == 1 {
			continue
		}
		if n := leaks[port] + 1; n < leakedAfter {
			out.leaks[port] = n
			out.taken.SetBit(out.taken, port, 1)
		} else {
			out.freed = append(out.freed, port)
		}
	}
	return out
}

// Repair makes the stored node ports those that Services have, and stores them
// for the range of this server if they are missing, unreadable or of another.
// It returns what is to be told about Services. services must list what is
// stored when it is called; it may be called several times.
func (p *Ports) Repair(ctx context.Context, services func() ([]*corev1.Service, error)) ([]Event, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range attempts {
		k, err := p.read(ctx)
		if err != nil {
			return nil, err
		}
		// After the ports: those of each Service listed were noted before it was stored.
		list, err := services()
		if err != nil {
			return nil, err
		}
		plan := planPorts(&k.taken, p.r, list, p.leaks)
		done, err := p.write(ctx, k, plan.taken)
		if errors.Is(err, store.ErrOutcomeUnknown) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		if done {
			p.leaks = plan.leaks
			if k.broken != nil {
				p.log.Warn("the node ports noted in the store were unreadable; they are those of the stored Services now", "key", portsKey, "error", k.broken)
			}
			if len(plan.freed) > 0 {
				p.log.Warn("node ports that no Service has are free again", "ports", plan.freed)
			}
			return plan.events, nil
		}
	}
	return nil, fmt.Errorf("%s was changed %d times by others meanwhile", portsKey, attempts)
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
