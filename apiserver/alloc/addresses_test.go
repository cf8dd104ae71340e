package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

// memory keeps addresses in a map.
type memory struct {
	ranges []netip.Prefix
	taken  map[netip.Addr]string
}

func newMemory(ranges ...string) *memory {
	m := &memory{taken: map[netip.Addr]string{}}
	for _, r := range ranges {
		m.ranges = append(m.ranges, netip.MustParsePrefix(r))
	}
	return m
}

func (m *memory) Ranges() []netip.Prefix                        { return m.ranges }
func (m *memory) Has(_ context.Context, ip netip.Addr) bool     { return m.taken[ip] != "" }
func (m *memory) Delete(_ context.Context, ip netip.Addr) error { delete(m.taken, ip); return nil }

func (m *memory) Create(_ context.Context, ip netip.Addr, svc *corev1.Service) error {
	if m.taken[ip] != "" {
		return ErrAllocated
	}
	m.taken[ip] = svc.Name
	return nil
}

func TestAddresses(t *testing.T) {
	ctx, svc := t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}}
	for _, tc := range []struct {
		cidr   string
		usable int
		last   string
	}{
		{"10.0.0.0/29", 6, "10.0.0.6"},
		{"10.96.0.0/24", 254, "10.96.0.254"},
		{"fd00::/120", 255, "fd00::ff"},
	} {
		m, last := newMemory(tc.cidr), netip.MustParseAddr(tc.last)
		if err := takeIP(ctx, m, last, svc, false); err != nil {
			t.Errorf("%s: %v", tc.last, err)
		}
		if err := takeIP(ctx, m, last, svc, false); !errors.Is(err, ErrAllocated) {
			t.Errorf("%s taken twice: %v", tc.last, err)
		}
		if ip, err := nextIP(ctx, m, last.Is4(), svc, true); err != nil || ip != m.ranges[0].Addr() || len(m.taken) != 1 {
			t.Errorf("dry run: %s, %v", ip, err)
		}
		for {
			ip, err := nextIP(ctx, m, last.Is4(), svc, false)
			if errors.Is(err, ErrFull) {
				break
			}
			if err != nil || !m.ranges[0].Contains(ip) {
				t.Fatalf("%s is outside %s, %v", ip, tc.cidr, err)
			}
		}
		if len(m.taken) != tc.usable || m.taken[m.ranges[0].Addr()] != "" {
			t.Errorf("%s: %d addresses, want %d without the network's", tc.cidr, len(m.taken), tc.usable)
		}
		delete(m.taken, last)
		if ip, err := nextIP(ctx, m, last.Is4(), svc, false); err != nil || ip != last {
			t.Errorf("freed %s, got %s, %v", tc.last, ip, err)
		}
		if err := takeIP(ctx, m, netip.MustParseAddr("192.0.2.1"), svc, false); !errors.Is(err, ErrMismatch) {
			t.Errorf("an address outside the range was taken: %v", err)
		}
	}
	if _, err := newSubnet(netip.MustParsePrefix("10.0.0.0/30")); err == nil {
		t.Error("a range of four addresses was accepted")
	}
	m := newMemory("10.0.0.0/24")
	if err := takeIP(ctx, m, netip.MustParseAddr("10.0.0.255"), svc, false); err == nil || !strings.Contains(err.Error(), "The range of valid IPs is 10.0.0.0/24") {
		t.Errorf("broadcast address: %v", err)
	}
	for range 238 { // the lower 16 are left for those who ask
		if ip, err := nextIP(ctx, m, true, svc, false); err != nil || ip.Less(netip.MustParseAddr("10.0.0.17")) {
			t.Fatalf("%s given while the upper part has free ones, %v", ip, err)
		}
	}
}

func TestRanges(t *testing.T) {
	now := metav1.Now()
	cidr := func(name, text string, status metav1.ConditionStatus) *networkingv1.ServiceCIDR {
		c := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{text}}}
		if status != "" {
			c.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: status}}
		}
		return c
	}
	dying := cidr("dying", "10.5.0.0/24", metav1.ConditionTrue)
	dying.DeletionTimestamp = &now
	for _, tc := range []struct {
		name   string
		stored []api.Object
		want   string
	}{
		{"before anything is stored", nil, "[10.0.0.0/24]"},
		{"just created", []api.Object{cidr("kubernetes", "10.0.0.0/24", "")}, "[10.0.0.0/24]"},
		{"ready", []api.Object{cidr("kubernetes", "10.0.0.0/24", "True"), cidr("more", "10.4.0.7/24", "True")}, "[10.0.0.0/24 10.4.0.0/24]"},
		{"another that is not ready", []api.Object{cidr("kubernetes", "10.0.0.0/24", "True"), cidr("more", "10.4.0.0/24", "")}, "[10.0.0.0/24]"},
		{"on its way out", []api.Object{cidr("kubernetes", "10.0.0.0/24", "False"), dying}, "[]"},
	} {
		o, err := NewObjects(nil, netip.MustParsePrefix("10.0.0.0/24"), func() ([]api.Object, error) { return tc.stored, nil })
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(o.Ranges()); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// TestRepairPlan reads as: what is stored, and what the repair does and says.
func TestRepairPlan(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	service := func(name string, ips ...string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ips[0], ClusterIPs: ips},
		}
	}
	address := func(ip, owner string, age time.Duration) *networkingv1.IPAddress {
		a := newAddress(netip.MustParseAddr(ip), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: owner}})
		a.CreationTimestamp = metav1.NewTime(now.Add(-age))
		return a
	}
	foreign := address("10.0.0.9", "x", time.Hour)
	foreign.Labels = nil
	gateway := address("10.0.0.5", "x", time.Hour)
	gateway.Spec.ParentRef.Resource = "gateways"
	unlabelled := address("10.0.0.6", "six", time.Hour)
	delete(unlabelled.Labels, networkingv1.LabelIPAddressFamily)
	for _, tc := range []struct {
		name      string
		services  []*corev1.Service
		addresses []*networkingv1.IPAddress
		want      []string
	}{
		{"all is well", []*corev1.Service{service("a", "10.0.0.1")}, []*networkingv1.IPAddress{address("10.0.0.1", "a", time.Hour), foreign}, nil},
		{"missing", []*corev1.Service{service("a", "10.0.0.1")}, nil, []string{"create 10.0.0.1 for a", "ClusterIPNotAllocated"}},
		{"headless", []*corev1.Service{service("a", "None")}, nil, nil},
		{"out of range", []*corev1.Service{service("a", "10.9.0.1")}, nil, []string{"ClusterIPOutOfRange"}},
		{"refers to something else", []*corev1.Service{service("five", "10.0.0.5")}, []*networkingv1.IPAddress{gateway}, []string{"delete 10.0.0.5", "create 10.0.0.5 for five", "ClusterIPNotAllocated"}},
		{"refers to a Service that is gone", []*corev1.Service{service("a", "10.0.0.1")}, []*networkingv1.IPAddress{address("10.0.0.1", "b", time.Hour)}, []string{"delete 10.0.0.1", "create 10.0.0.1 for a", "ClusterIPNotAllocated"}},
		{"two Services", []*corev1.Service{service("a", "10.0.0.1"), service("b", "10.0.0.1")}, []*networkingv1.IPAddress{address("10.0.0.1", "a", time.Hour)}, []string{"ClusterIPAlreadyAllocated"}},
		{"two Services and no address", []*corev1.Service{service("a", "10.0.0.1"), service("b", "10.0.0.1")}, nil, []string{"create 10.0.0.1 for a", "ClusterIPNotAllocated", "ClusterIPAlreadyAllocated"}},
		{"label lost", []*corev1.Service{service("six", "10.0.0.6")}, []*networkingv1.IPAddress{unlabelled}, []string{"delete 10.0.0.6", "create 10.0.0.6 for six"}},
		{"leaked", nil, []*networkingv1.IPAddress{address("10.0.0.1", "a", 61*time.Second)}, []string{"delete 10.0.0.1", "IPAddressNotAllocated"}},
		{"its Service is on the way", nil, []*networkingv1.IPAddress{address("10.0.0.1", "a", 59*time.Second)}, nil},
		{"the Service has another", []*corev1.Service{service("a", "10.0.0.1")}, []*networkingv1.IPAddress{address("10.0.0.1", "a", time.Hour), address("10.0.0.2", "a", 6*time.Second)}, []string{"delete 10.0.0.2", "IPAddressWrongReference"}},
		{"a create that will fail", []*corev1.Service{service("a", "10.0.0.1")}, []*networkingv1.IPAddress{address("10.0.0.1", "a", time.Hour), address("10.0.0.2", "a", 4*time.Second)}, nil},
	} {
		r := PlanAddresses(State{Services: tc.services, Addresses: tc.addresses, Ranges: newMemory("10.0.0.0/24").ranges, Now: now})
		var got []string
		for _, ip := range r.Delete {
			got = append(got, "delete "+ip.String())
		}
		for _, a := range r.Create {
			got = append(got, fmt.Sprintf("create %s for %s", a.Name, a.Spec.ParentRef.Name))
		}
		for _, ev := range r.Events {
			got = append(got, ev.Reason)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
