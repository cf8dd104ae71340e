package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
)

// Services allocates cluster IPs and node ports as Services are written.
type Services struct {
	// Addresses must be set before the first Service is written.
	Addresses Addresses
	// ports are a number space per protocol.
	ports map[corev1.Protocol]*Ports

	repair   sync.Mutex // one repair of ports at a time
	repaired bool       // the stored ports have been seen once
	leaks    map[nodePort]bool
}

// NewServices returns an allocator with no port allocated: see RepairPorts.
func NewServices(ports PortRange) (*Services, error) {
	s := &Services{ports: map[corev1.Protocol]*Ports{}}
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		var err error
		if s.ports[p], err = NewPorts(ports); err != nil {
			return nil, err
		}
	}
	return s, nil
}

type nodePort struct {
	protocol corev1.Protocol
	port     int
}

// heldIPs are the addresses a Service has.
func heldIPs(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, text := range append(slices.Clone(svc.Spec.ClusterIPs), svc.Spec.ClusterIP) {
		if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// heldPorts are the node ports a Service has. Ports of one number on several
// protocols are several.
func heldPorts(svc *corev1.Service) []nodePort {
	var out []nodePort
	add := func(p nodePort) {
		if p.port != 0 && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	for i := range svc.Spec.Ports {
		add(nodePort{protocolOf(&svc.Spec.Ports[i]), int(svc.Spec.Ports[i].NodePort)})
	}
	add(nodePort{corev1.ProtocolTCP, int(svc.Spec.HealthCheckNodePort)})
	return out
}

func protocolOf(p *corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

func (s *Services) take(p nodePort) error {
	if a := s.ports[p.protocol]; a != nil {
		return a.Take(p.port)
	}
	return nil
}

func (s *Services) free(p nodePort) {
	if a := s.ports[p.protocol]; a != nil {
		a.Free(p.port)
	}
}

// allocation is what one write took, to be given back if it fails, and what
// it stops using, to be given back if it succeeds.
type allocation struct {
	s         *Services
	ctx       context.Context // outlives the request: what was taken must be given back
	dryRun    bool
	takenIPs  []netip.Addr
	takenPort []nodePort
	oldIPs    []netip.Addr
	oldPorts  []nodePort
}

func (a *allocation) finish(done bool) {
	ips, ports := a.takenIPs, a.takenPort
	if done {
		ips, ports = a.oldIPs, a.oldPorts
	}
	for _, ip := range ips {
		if !a.dryRun {
			a.s.Addresses.Delete(a.ctx, ip) //nolint:errcheck // the repair finds what is left over
		}
	}
	for _, p := range ports {
		a.s.free(p)
	}
}

// Begin allocates for a Service about to be written (registry.Config.Begin).
func (s *Services) Begin(ctx context.Context, obj, old api.Object, dryRun bool) (func(bool), error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil, nil
	}
	var before *corev1.Service
	if old != nil {
		before = old.(*corev1.Service)
		keepAllocated(svc, before)
	}
	defaultFamilies(svc)
	if before == nil || !slices.Equal(before.Spec.IPFamilies, svc.Spec.IPFamilies) {
		if err := s.checkFamilies(svc); err != nil {
			return nil, err
		}
	}
	a := &allocation{s: s, ctx: context.WithoutCancel(ctx), dryRun: dryRun}
	if err := a.addresses(ctx, svc, before); err != nil {
		a.finish(false)
		return nil, err
	}
	if err := a.nodePorts(svc, before); err != nil {
		a.finish(false)
		return nil, err
	}
	a.released(svc, before)
	if dryRun {
		return func(bool) { a.finish(false) }, nil
	}
	return a.finish, nil
}

// Deleted gives back what a removed Service had.
func (s *Services) Deleted(obj api.Object) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return
	}
	a := &allocation{s: s, ctx: context.Background(), oldIPs: heldIPs(svc), oldPorts: heldPorts(svc)}
	a.finish(true)
}

func wantsIP(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.ClusterIP != corev1.ClusterIPNone
}

func wantsPorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	}
	return false
}

// keepAllocated copies forward what the client left out of an update.
func keepAllocated(svc, old *corev1.Service) {
	if wantsIP(svc) && wantsIP(old) {
		if svc.Spec.ClusterIP == "" {
			svc.Spec.ClusterIP = old.Spec.ClusterIP
		}
		if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName && old.Spec.Type != corev1.ServiceTypeExternalName &&
		svc.Spec.ClusterIP == old.Spec.ClusterIP {
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs, svc.Spec.IPFamilies, svc.Spec.IPFamilyPolicy = "", nil, nil, nil
	}
	if svc.Spec.IPFamilyPolicy == nil && svc.Spec.Type != corev1.ServiceTypeExternalName {
		svc.Spec.IPFamilyPolicy = old.Spec.IPFamilyPolicy
	}
	if len(svc.Spec.IPFamilies) == 0 && svc.Spec.Type != corev1.ServiceTypeExternalName {
		svc.Spec.IPFamilies = slices.Clone(old.Spec.IPFamilies)
	}
	if !wantsPorts(svc) || !wantsPorts(old) {
		return
	}
	used := map[int32]bool{}
	for i := range svc.Spec.Ports {
		used[svc.Spec.Ports[i].NodePort] = true
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		for j := range old.Spec.Ports {
			o := &old.Spec.Ports[j]
			if p.NodePort == 0 && o.Port == p.Port && protocolOf(o) == protocolOf(p) && !used[o.NodePort] {
				p.NodePort = o.NodePort
				used[o.NodePort] = true
			}
		}
	}
	if svc.Spec.HealthCheckNodePort == 0 && needsHealthPort(svc) && needsHealthPort(old) {
		svc.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

func needsHealthPort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// defaultFamilies fills the dual-stack fields: SingleStack IPv4 unless asked otherwise.
func defaultFamilies(svc *corev1.Service) {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if svc.Spec.ClusterIP == "" && len(svc.Spec.ClusterIPs) > 0 {
		svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	}
	if svc.Spec.ClusterIP != "" && len(svc.Spec.ClusterIPs) == 0 {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	if svc.Spec.IPFamilyPolicy == nil {
		single := corev1.IPFamilyPolicySingleStack
		if svc.Spec.ClusterIP == corev1.ClusterIPNone && len(svc.Spec.Selector) == 0 {
			single = corev1.IPFamilyPolicyRequireDualStack // selectorless headless: whatever its endpoints are
		}
		svc.Spec.IPFamilyPolicy = &single
		if single == corev1.IPFamilyPolicyRequireDualStack && len(svc.Spec.IPFamilies) == 0 {
			svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		}
	}
	if len(svc.Spec.IPFamilies) == 0 {
		family := corev1.IPv4Protocol
		if ip, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil && ip.Is6() {
			family = corev1.IPv6Protocol
		}
		svc.Spec.IPFamilies = []corev1.IPFamily{family}
	}
}

// checkFamilies refuses families there is no range of.
func (s *Services) checkFamilies(svc *corev1.Service) error {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone && len(svc.Spec.Selector) == 0 {
		return nil
	}
	families := map[corev1.IPFamily]bool{}
	for _, p := range s.Addresses.Ranges() {
		if p.Addr().Is4() {
			families[corev1.IPv4Protocol] = true
		} else {
			families[corev1.IPv6Protocol] = true
		}
	}
	spec := field.NewPath("spec")
	if p := svc.Spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicyRequireDualStack && len(families) < 2 {
		return invalidService(svc, field.Invalid(spec.Child("ipFamilyPolicy"), *p, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range svc.Spec.IPFamilies { // validation refuses those that are none
		if !families[f] && (f == corev1.IPv4Protocol || f == corev1.IPv6Protocol) {
			return invalidService(svc, field.Invalid(spec.Child("ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	return nil
}

func invalidService(svc *corev1.Service, err *field.Error) error {
	return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, svc.Name, field.ErrorList{err})
}

func (a *allocation) addresses(ctx context.Context, svc, before *corev1.Service) error {
	if !wantsIP(svc) {
		return nil
	}
	var have []netip.Addr
	if before != nil {
		have = heldIPs(before)
	}
	path := field.NewPath("spec", "clusterIPs")
	if svc.Spec.ClusterIP == "" {
		v4 := svc.Spec.IPFamilies[0] == corev1.IPv4Protocol
		ip, err := nextIP(ctx, a.s.Addresses, v4, svc, a.dryRun)
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: %w", err))
		}
		a.takenIPs = append(a.takenIPs, ip)
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ip.String(), []string{ip.String()}
		return nil
	}
	for _, ip := range heldIPs(svc) {
		if slices.Contains(have, ip) {
			continue
		}
		if err := takeIP(ctx, a.s.Addresses, ip, svc, a.dryRun); err != nil {
			return invalidService(svc, field.Invalid(path, svc.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %v", ip, err)))
		}
		a.takenIPs = append(a.takenIPs, ip)
	}
	return nil
}

func (a *allocation) nodePorts(svc, before *corev1.Service) error {
	if svc.Spec.Type != corev1.ServiceTypeNodePort && svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		if before != nil && wantsPorts(before) {
			for i := range svc.Spec.Ports {
				svc.Spec.Ports[i].NodePort = 0 // ports asked for by an earlier type go with it
			}
		}
		return nil
	}
	var have []nodePort
	if before != nil {
		have = heldPorts(before)
	}
	for i := range svc.Spec.Ports {
		if err := a.nodePort(svc, i, have); err != nil {
			return err
		}
	}
	if needsHealthPort(svc) {
		return a.healthPort(svc, have)
	}
	return nil
}

// nodePort allocates the node port of one port. Ports of the same asked-for
// number on different protocols may share it.
func (a *allocation) nodePort(svc *corev1.Service, i int, have []nodePort) error {
	p := &svc.Spec.Ports[i]
	proto := protocolOf(p)
	path := field.NewPath("spec", "ports").Index(i).Child("nodePort")
	if p.NodePort != 0 {
		np := nodePort{proto, int(p.NodePort)}
		if slices.Contains(have, np) || slices.Contains(a.takenPort, np) {
			return nil
		}
		if err := a.s.take(np); err != nil {
			return invalidService(svc, field.Invalid(path, p.NodePort, err.Error()))
		}
		a.takenPort = append(a.takenPort, np)
		return nil
	}
	if !wantsPorts(svc) {
		return nil
	}
	for j := range i { // the same port number on another protocol gets the same node port
		o := &svc.Spec.Ports[j]
		if o.Port == p.Port && protocolOf(o) != proto && o.NodePort != 0 {
			np := nodePort{proto, int(o.NodePort)}
			if a.s.take(np) == nil {
				a.takenPort = append(a.takenPort, np)
				p.NodePort = o.NodePort
				return nil
			}
		}
	}
	ports := a.s.ports[proto]
	if ports == nil {
		return invalidService(svc, field.NotSupported(path.Root().Child("protocol"), proto, []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}))
	}
	n, err := ports.Next()
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
	}
	a.takenPort = append(a.takenPort, nodePort{proto, n})
	p.NodePort = int32(n)
	return nil
}

func (a *allocation) healthPort(svc *corev1.Service, have []nodePort) error {
	if svc.Spec.HealthCheckNodePort == 0 {
		n, err := a.s.ports[corev1.ProtocolTCP].Next()
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a HealthCheck NodePort: %w", err))
		}
		a.takenPort = append(a.takenPort, nodePort{corev1.ProtocolTCP, n})
		svc.Spec.HealthCheckNodePort = int32(n)
		return nil
	}
	np := nodePort{corev1.ProtocolTCP, int(svc.Spec.HealthCheckNodePort)}
	if slices.Contains(have, np) {
		return nil
	}
	if err := a.s.take(np); err != nil {
		return apierrors.NewInternalError(errors.Join(fmt.Errorf("failed to allocate requested HealthCheck NodePort %d", np.port), err))
	}
	a.takenPort = append(a.takenPort, np)
	return nil
}

// released notes what the new Service no longer holds.
func (a *allocation) released(svc, before *corev1.Service) {
	if before == nil {
		return
	}
	ips, ports := heldIPs(svc), heldPorts(svc)
	for _, ip := range heldIPs(before) {
		if !slices.Contains(ips, ip) {
			a.oldIPs = append(a.oldIPs, ip)
		}
	}
	for _, p := range heldPorts(before) {
		if !slices.Contains(ports, p) {
			a.oldPorts = append(a.oldPorts, p)
		}
	}
}
