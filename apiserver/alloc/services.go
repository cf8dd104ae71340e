package alloc

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/core"
)

// Services allocates cluster IPs and node ports as Services are written. Both
// fields must be set before the first is.
type Services struct {
	Addresses Addresses
	Ports     *Ports
	Counters  *Counters // of allocations, or nil
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

// heldPorts are the node ports a Service has, each once.
func heldPorts(svc *corev1.Service) []int {
	var out []int
	add := func(port int32) {
		if port != 0 && !slices.Contains(out, int(port)) {
			out = append(out, int(port))
		}
	}
	for i := range svc.Spec.Ports {
		add(svc.Spec.Ports[i].NodePort)
	}
	add(svc.Spec.HealthCheckNodePort)
	return out
}

// allocation is what one write took, to be given back if it fails, and what
// it stops using, to be given back if it succeeds.
type allocation struct {
	s          *Services
	ctx        context.Context // outlives the request: what was taken must be given back
	dryRun     bool            // nothing is taken
	takenIPs   []netip.Addr
	takenPorts []int
	oldIPs     []netip.Addr
	oldPorts   []int
}

func (a *allocation) finish(done bool) {
	if a.dryRun {
		return
	}
	ips, ports := a.takenIPs, a.takenPorts
	if done {
		ips, ports = a.oldIPs, a.oldPorts
	}
	for _, ip := range ips {
		a.s.Addresses.Delete(a.ctx, ip) //nolint:errcheck // the repair finds what is left over
	}
	a.s.Ports.free(a.ctx, ports) //nolint:errcheck // as above
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
	if claims := claimsOf(svc, before); len(claims) > 0 {
		var err error
		a.takenPorts, err = s.Ports.take(ctx, claims, dryRun)
		if !dryRun {
			s.Counters.claimed(claims, err)
		}
		if err != nil {
			a.finish(false)
			return nil, err
		}
	}
	a.released(svc, before)
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
		if !a.dryRun {
			a.s.Counters.address(a.s.Addresses.Ranges(), ip, v4, false, err)
		}
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
		err := takeIP(ctx, a.s.Addresses, ip, svc, a.dryRun)
		if !a.dryRun {
			a.s.Counters.address(a.s.Addresses.Ranges(), ip, ip.Is4(), true, err)
		}
		if err != nil {
			return invalidService(svc, field.Invalid(path, svc.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %v", ip, err)))
		}
		a.takenIPs = append(a.takenIPs, ip)
	}
	return nil
}

// claimsOf are the node ports that a Service, which was before (nil: it is
// new), is to get. Those asked for by number come first, lest another gets one.
func claimsOf(svc, before *corev1.Service) (out []*claim) {
	if t := svc.Spec.Type; t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer {
		if before == nil {
			out = claimsOfNew(svc)
		} else {
			out = claimsOfChanged(svc, heldPorts(before))
		}
	}
	if core.NeedsHealthCheckPort(svc) && (before == nil || !core.NeedsHealthCheckPort(before)) {
		port := svc.Spec.HealthCheckNodePort
		what := fmt.Sprintf("failed to allocate requested HealthCheck NodePort %d", port)
		if port == 0 {
			what = "failed to allocate a HealthCheck NodePort 0"
		}
		out = append(out, &claim{port, []*int32{&svc.Spec.HealthCheckNodePort}, func(err error) error {
			return apierrors.NewInternalError(fmt.Errorf("%s: %w", what, err))
		}})
	}
	slices.SortStableFunc(out, func(a, b *claim) int { return min(int(b.port), 1) - min(int(a.port), 1) })
	return out
}

// claimsOfNew: ports of one number on several protocols get one node port.
func claimsOfNew(svc *corev1.Service) (out []*claim) {
	of := map[int32]*claim{} // by the Service's port
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		c := of[p.Port]
		switch {
		case p.NodePort == 0 && !core.NeedsNodePorts(svc):
		case c == nil:
			c = claimOf(svc, i, p.NodePort)
			for j := i; c.port == 0 && j < len(svc.Spec.Ports); j++ {
				if o := svc.Spec.Ports[j]; o.Port == p.Port {
					c.port = o.NodePort
				}
			}
			of[p.Port], out = c, append(out, c)
		case p.NodePort == 0:
			c.into = append(c.into, &p.NodePort)
		case p.NodePort != c.port:
			out = append(out, claimOf(svc, i, p.NodePort))
		}
	}
	return out
}

// claimsOfChanged: what the Service has it keeps, on whatever port.
func claimsOfChanged(svc *corev1.Service, held []int) (out []*claim) {
	for i := range svc.Spec.Ports {
		port := svc.Spec.Ports[i].NodePort
		switch {
		case port == 0 && !core.NeedsNodePorts(svc):
		case port != 0 && slices.Contains(held, int(port)):
		case port != 0 && slices.ContainsFunc(out, func(c *claim) bool { return c.port == port }):
		default:
			out = append(out, claimOf(svc, i, port))
		}
	}
	return out
}

// claimOf is the claim of the i-th port of a Service to a node port (0: to any).
func claimOf(svc *corev1.Service, i int, port int32) *claim {
	c := &claim{port: port, into: []*int32{&svc.Spec.Ports[i].NodePort}}
	c.fail = func(err error) error {
		if c.port == 0 {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
		}
		return invalidService(svc, field.Invalid(field.NewPath("spec", "ports").Index(i).Child("nodePort"), c.port, err.Error()))
	}
	return c
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
