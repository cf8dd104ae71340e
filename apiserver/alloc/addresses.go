package alloc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/registry"
)

// ManagedBy is the value of the label on the IPAddresses Services hold.
const ManagedBy = "ipallocator.k8s.io"

// DefaultCIDR is the name of the ServiceCIDR that stands for the range the
// server was configured with.
const DefaultCIDR = "kubernetes"

// ErrMismatch is an address in none of the ranges.
var ErrMismatch = errors.New("the provided network does not match the current range")

// Addresses is where it is kept which address belongs to which Service.
type Addresses interface {
	// Ranges are the ranges addresses are taken from.
	Ranges() []netip.Prefix
	// Has reports whether an address is taken.
	Has(ctx context.Context, ip netip.Addr) bool
	// Create takes an address for a Service, or answers ErrAllocated.
	Create(ctx context.Context, ip netip.Addr, svc *corev1.Service) error
	// Delete gives an address back; one that is not taken is ignored.
	Delete(ctx context.Context, ip netip.Addr) error
}

// subnet is a range as addresses are taken from it: the lower part is left to
// those who ask for an address by name until the upper one is full.
type subnet struct {
	prefix      netip.Prefix
	first       netip.Addr
	size, lower uint64 // usable addresses, and how many of them are the lower part
}

func newSubnet(p netip.Prefix) (subnet, error) {
	p = p.Masked()
	host := p.Addr().BitLen() - p.Bits()
	if host < 3 || host > 64 {
		return subnet{}, fmt.Errorf("service CIDR %s cannot be used: it must have 8 to 2^64 addresses", p)
	}
	size := uint64(1)<<host - 1 // all but the network address
	if p.Addr().Is4() {
		size-- // the broadcast address
	}
	return subnet{prefix: p, first: p.Addr().Next(), size: size, lower: min(max(16, size/16), 256, size-1)}, nil
}

// at returns the n-th usable address.
func (s subnet) at(n uint64) netip.Addr {
	if s.first.Is4() {
		raw := s.first.As4()
		binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(raw[:])+uint32(n))
		return netip.AddrFrom4(raw)
	}
	raw := s.first.As16()
	binary.BigEndian.PutUint64(raw[8:], binary.BigEndian.Uint64(raw[8:])+n)
	return netip.AddrFrom16(raw)
}

// usable reports whether ip is one of the subnet's addresses.
func (s subnet) usable(ip netip.Addr) bool {
	return s.prefix.Contains(ip) && !ip.Less(s.first) && !s.at(s.size-1).Less(ip)
}

// takeIP takes a given address for svc.
func takeIP(ctx context.Context, a Addresses, ip netip.Addr, svc *corev1.Service, dryRun bool) error {
	for _, p := range a.Ranges() {
		s, err := newSubnet(p)
		if err != nil || !p.Contains(ip) {
			continue
		}
		switch {
		case !s.usable(ip):
			return fmt.Errorf("the provided IP (%v) is not in the valid range. The range of valid IPs is %s", ip, p)
		case dryRun:
			return nil
		}
		return a.Create(ctx, ip, svc)
	}
	return ErrMismatch
}

// nextIP takes any free address of a family for svc. A dry run is answered
// with the network address, as upstream does.
func nextIP(ctx context.Context, a Addresses, v4 bool, svc *corev1.Service, dryRun bool) (netip.Addr, error) {
	for _, p := range a.Ranges() {
		s, err := newSubnet(p)
		if err != nil || p.Addr().Is4() != v4 {
			continue
		}
		if dryRun {
			return s.prefix.Addr(), nil
		}
		for _, part := range [][2]uint64{{s.lower, s.size}, {0, s.lower}} {
			ip, err := nextOf(ctx, a, s, part, svc)
			if !errors.Is(err, ErrFull) {
				return ip, err
			}
		}
	}
	return netip.Addr{}, ErrFull
}

// nextOf takes a free address of the part [from, to) of a subnet, looking from a random one on.
func nextOf(ctx context.Context, a Addresses, s subnet, part [2]uint64, svc *corev1.Service) (netip.Addr, error) {
	n := part[1] - part[0]
	start := rand.Uint64N(n)
	for i := range n {
		ip := s.at(part[0] + (start+i)%n)
		if a.Has(ctx, ip) {
			continue
		}
		if err := a.Create(ctx, ip, svc); !errors.Is(err, ErrAllocated) {
			return ip, err
		}
		if err := ctx.Err(); err != nil {
			return netip.Addr{}, err
		}
	}
	return netip.Addr{}, ErrFull
}

// Objects keeps addresses as IPAddress objects and ranges as ServiceCIDRs, so
// that several servers, and other users of the ranges, agree.
type Objects struct {
	Registry *registry.Registry // of ipaddresses
	Default  netip.Prefix       // the range while no ServiceCIDR named kubernetes says otherwise
	CIDRs    func() ([]api.Object, error)
}

// NewObjects checks that the default range can be used.
func NewObjects(reg *registry.Registry, def netip.Prefix, cidrs func() ([]api.Object, error)) (*Objects, error) {
	_, err := newSubnet(def)
	return &Objects{Registry: reg, Default: def.Masked(), CIDRs: cidrs}, err
}

// Ranges implements Addresses: those of ServiceCIDRs that are ready.
func (o *Objects) Ranges() []netip.Prefix {
	list, err := o.CIDRs()
	if err != nil {
		return []netip.Prefix{o.Default}
	}
	var out []netip.Prefix
	known := false
	for _, obj := range list {
		c, ok := obj.(*networkingv1.ServiceCIDR)
		if !ok {
			continue
		}
		known = known || c.Name == DefaultCIDR
		cond := meta.FindStatusCondition(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
		ready := cond != nil && cond.Status == metav1.ConditionTrue
		if c.Name == DefaultCIDR { // in use before anybody has said that it is ready
			ready = cond == nil || cond.Status != metav1.ConditionFalse
		}
		if !ready || c.DeletionTimestamp != nil {
			continue
		}
		for _, text := range c.Spec.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	if !known {
		out = append([]netip.Prefix{o.Default}, out...)
	}
	return out
}

// Has implements Addresses.
func (o *Objects) Has(ctx context.Context, ip netip.Addr) bool {
	_, err := o.Registry.Get(ctx, "", ip.String(), "")
	return err == nil
}

// Create implements Addresses.
func (o *Objects) Create(ctx context.Context, ip netip.Addr, svc *corev1.Service) error {
	_, err := o.Registry.Create(ctx, registry.Write{Name: ip.String()}, newAddress(ip, svc))
	if apierrors.IsAlreadyExists(err) {
		return ErrAllocated
	}
	return err
}

// Delete implements Addresses.
func (o *Objects) Delete(ctx context.Context, ip netip.Addr) error {
	_, _, err := o.Registry.Delete(ctx, registry.Write{Name: ip.String()}, &metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// newAddress is the object that says a Service has an address.
func newAddress(ip netip.Addr, svc *corev1.Service) *networkingv1.IPAddress {
	family := corev1.IPv4Protocol
	if ip.Is6() {
		family = corev1.IPv6Protocol
	}
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: ip.String(), Labels: map[string]string{
			networkingv1.LabelIPAddressFamily: string(family), networkingv1.LabelManagedBy: ManagedBy,
		}},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: svc.Namespace, Name: svc.Name}},
	}
}
