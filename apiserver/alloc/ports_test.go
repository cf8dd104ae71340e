package alloc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

func newStore(t *testing.T) store.Store {
	t.Helper()
	st, err := embedded.Open(embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// server is one server's allocator, which has begun: it has repaired once.
func server(t *testing.T, st store.Store, r PortRange) *Ports {
	t.Helper()
	p, err := NewPorts(st, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	repair(t, p)
	return p
}

func repair(t *testing.T, p *Ports, services ...*corev1.Service) (told []string) {
	t.Helper()
	events, err := p.Repair(t.Context(), func() ([]*corev1.Service, error) { return services, nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range events {
		told = append(told, ev.About.GetName()+" "+ev.Reason+": "+ev.Message)
	}
	return told
}

// take claims ports, 0 for any, and returns what it got.
func take(t *testing.T, p *Ports, ports ...int32) ([]int, error) {
	t.Helper()
	var claims []*claim
	shown := make([]int32, len(ports))
	for i, port := range ports {
		claims = append(claims, &claim{port, []*int32{&shown[i]}, func(err error) error { return fmt.Errorf("claim %d: %w", i, err) }})
	}
	got, err := p.take(t.Context(), claims, false)
	for i := range got {
		if shown[i] != int32(got[i]) {
			t.Errorf("got %v, the Service shows %v", got, shown)
		}
	}
	return got, err
}

func stored(t *testing.T, st store.Store) *store.KV {
	t.Helper()
	snap, err := st.Snapshot(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return snap.Get("/registry/ranges/servicenodeports")
}

func put(t *testing.T, st store.Store, value []byte) {
	t.Helper()
	op := store.Op{Kind: store.OpPut, Key: "/registry/ranges/servicenodeports", Value: value}
	if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{op}}); err != nil {
		t.Fatal(err)
	}
}

// upstreams is what upstream's server stores: its bitmap is a big.Int whose
// bit 0 is the range's first port.
func upstreams(t *testing.T, s runtime.Encoder, r string, offsets ...int) []byte {
	t.Helper()
	bits := big.NewInt(0)
	for _, i := range offsets {
		bits = bits.SetBit(bits, i, 1)
	}
	var out bytes.Buffer
	if err := scheme.Codecs.EncoderForVersion(s, corev1.SchemeGroupVersion).Encode(&corev1.RangeAllocation{Range: r, Data: bits.Bytes()}, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func inProtobuf() runtime.Encoder { return protobuf.NewSerializer(scheme.Scheme, scheme.Scheme) }

func TestPortsAreStoredAsUpstreamStoresThem(t *testing.T) {
	st := newStore(t)
	p := server(t, st, PortRange{30000, 32767})
	if got, want := stored(t, st).Value, upstreams(t, inProtobuf(), "30000-32767"); !bytes.Equal(got, want) {
		t.Errorf("no ports: %q, want %q", got, want)
	}
	if _, err := take(t, p, 30000, 30009, 32767, 30007); err != nil {
		t.Fatal(err)
	}
	want := upstreams(t, inProtobuf(), "30000-32767", 0, 9, 2767, 7)
	if got := stored(t, st); !bytes.Equal(got.Value, want) || got.Version != 2 {
		t.Errorf("four ports: version %d, %q, want %q", got.Version, got.Value, want)
	}
	if err := p.free(t.Context(), []int{32767, 30000, 80, 30001}); err != nil {
		t.Fatal(err)
	}
	want = upstreams(t, inProtobuf(), "30000-32767", 9, 7)
	if got := stored(t, st).Value; !bytes.Equal(got, want) || !bytes.HasSuffix(want, []byte{0x1a, 2, 0b10, 0b1000_0000, 0x1a, 0, 0x22, 0}) {
		t.Errorf("two given back: %q, want %q", got, want)
	}
	if p.free(t.Context(), []int{30000}); stored(t, st).Version != 3 {
		t.Error("nothing changed, and it was stored")
	}
}

func TestUpstreamsPortsAreRead(t *testing.T) {
	for name, s := range map[string]runtime.Encoder{
		"protobuf": inProtobuf(), "json": json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{}),
	} {
		st := newStore(t)
		put(t, st, upstreams(t, s, "30000-32767", 5, 1234))
		p, err := NewPorts(st, nil, PortRange{30000, 32767}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range []int32{30005, 31234} {
			if _, err := take(t, p, port); !errors.Is(err, ErrPortAllocated) {
				t.Errorf("%s: upstream's port %d: %v", name, port, err)
			}
		}
		if _, err := take(t, p, 30006); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := upstreams(t, inProtobuf(), "30000-32767", 5, 6, 1234); !bytes.Equal(stored(t, st).Value, want) {
			t.Errorf("%s: then %q, want %q", name, stored(t, st).Value, want)
		}
	}
}

func TestServersShareTheirPorts(t *testing.T) {
	st := newStore(t)
	r := PortRange{30000, 30089}
	servers := []*Ports{server(t, st, r), server(t, st, r), server(t, st, r)}
	var mu sync.Mutex
	var got []int
	var wg sync.WaitGroup
	for _, p := range servers { // all want 30000, and 30 of any
		wg.Go(func() {
			for i := range int32(31) {
				ports, err := take(t, p, 30000*(1-min(i, 1)))
				mu.Lock()
				got = append(got, ports...)
				mu.Unlock()
				if i > 0 && err != nil && !errors.Is(err, ErrFull) || i == 0 && err != nil && !errors.Is(err, ErrPortAllocated) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(got)
	if len(got) != 90 || len(slices.Compact(slices.Clone(got))) != 90 {
		t.Errorf("90 ports for three servers: %v", got)
	}
	if _, err := take(t, servers[0], 0); !errors.Is(err, ErrFull) {
		t.Errorf("the 91st: %v", err)
	}
	if err := servers[1].free(t.Context(), []int{30044}); err != nil {
		t.Fatal(err)
	}
	if got, err := take(t, servers[2], 0); err != nil || got[0] != 30044 {
		t.Errorf("one was given back: %v %v", got, err)
	}
}

// overtaken is a store in which somebody writes just before others do.
type overtaken struct {
	store.Store
	meanwhile func()
}

func (o *overtaken) Txn(ctx context.Context, txn store.Txn) (store.TxnResult, error) {
	if o.meanwhile != nil {
		o.meanwhile()
	}
	return o.Store.Txn(ctx, txn)
}

func TestAnotherServerIsFaster(t *testing.T) {
	st := newStore(t)
	r := PortRange{30000, 30001}
	other := server(t, st, r)
	slow := &overtaken{Store: st}
	p := server(t, slow, r)
	once := func(f func() error) func() {
		return func() {
			slow.meanwhile = nil
			if err := f(); err != nil {
				t.Error(err)
			}
		}
	}
	slow.meanwhile = once(func() error { _, err := take(t, other, 30001); return err })
	if _, err := take(t, p, 30001); !errors.Is(err, ErrPortAllocated) {
		t.Errorf("the other took it: %v", err)
	}
	slow.meanwhile = once(func() error { _, err := take(t, other, 30000); return err })
	if got, err := take(t, p, 0); !errors.Is(err, ErrFull) {
		t.Errorf("the other took the last: %v %v", got, err)
	}
	slow.meanwhile = once(func() error { return other.free(t.Context(), []int{30000}) })
	if err := p.free(t.Context(), []int{30001}); err != nil {
		t.Error(err)
	}
	if got, err := take(t, p, 30000, 30001); err != nil {
		t.Errorf("both gave theirs back: %v %v", got, err)
	}
	slow.meanwhile = func() { put(t, st, stored(t, st).Value) }
	if err := p.free(t.Context(), []int{30000}); err == nil || !strings.Contains(err.Error(), "was changed 100 times by others meanwhile") {
		t.Errorf("the other is faster each time: %v", err)
	}
}

func TestPortsAreTakenAllOrNone(t *testing.T) {
	st := newStore(t)
	p := server(t, st, PortRange{30000, 30099})
	if _, err := take(t, p, 30001); err != nil {
		t.Fatal(err)
	}
	before := stored(t, st)
	for want, ports := range map[string][]int32{
		"claim 1: provided port is already allocated":                                                {30000, 30001},
		"claim 2: provided port is already allocated":                                                {0, 30000, 30000},
		"claim 0: provided port is not in the valid range. The range of valid ports is 30000-30099":  {30100},
		"claim 1: provided port is not in the valid range. The range of valid ports is 30000-30099 ": {0, -1},
	} {
		if _, err := take(t, p, ports...); err == nil || err.Error() != strings.TrimSpace(want) {
			t.Errorf("%v: %v, want %s", ports, err, want)
		}
	}
	dry := &claim{fail: func(err error) error { return err }}
	if got, err := p.take(t.Context(), []*claim{dry}, true); err != nil || !p.r.holds(got[0]) {
		t.Errorf("dry run: %v %v", got, err)
	}
	if stored(t, st) != before {
		t.Error("what failed, or was a dry run, was stored")
	}
	for range 84 { // the lower 16 are left for those who ask
		if got, err := take(t, p, 0); err != nil || got[0] < 30016 {
			t.Fatalf("%v given while the upper part has free ones, %v", got, err)
		}
	}
	if got, err := take(t, p, 0); err != nil || got[0] >= 30016 {
		t.Errorf("the upper part is full: %v %v", got, err)
	}
	if _, err := NewPorts(st, nil, PortRange{0, 30000}, nil); err == nil {
		t.Error("port 0 is a node port")
	}
}

func withPort(name string, port int32) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{NodePort: port}}}}
}

func TestRepairOfPorts(t *testing.T) {
	st := newStore(t)
	p := server(t, st, PortRange{30000, 30099})
	a, b := withPort("a", 30000), withPort("b", 30000)
	b.Spec.HealthCheckNodePort = 30001
	want := []string{
		"a PortNotAllocated: Port 30000 is not allocated; repairing",
		"b PortAlreadyAllocated: Port 30000 was assigned to multiple services; please recreate service",
		"b PortNotAllocated: Port 30001 is not allocated; repairing",
		"c PortOutOfRange: Port 80 is not within the port range 30000-30099; please recreate service",
	}
	if got := repair(t, p, a, b, withPort("c", 80)); !slices.Equal(got, want) {
		t.Errorf("nobody took them: %q, want %q", got, want)
	}
	if _, err := take(t, p, 30001); !errors.Is(err, ErrPortAllocated) {
		t.Errorf("a Service's port: %v", err)
	}
	if got := repair(t, p, a); got != nil {
		t.Errorf("a second repair: %q", got)
	}
	// 30001 leaked, as found once; 30002 is on the way.
	if _, err := take(t, p, 30002); err != nil {
		t.Fatal(err)
	}
	repair(t, p, a)
	if _, err := take(t, p, 30001); !errors.Is(err, ErrPortAllocated) {
		t.Errorf("found leaked twice: %v", err)
	}
	repair(t, p, a, withPort("d", 30002))
	if _, err := take(t, p, 30001); err != nil {
		t.Errorf("found leaked three times: %v", err)
	}
	repair(t, p, a)
	repair(t, p, a)
	if _, err := take(t, p, 30002); !errors.Is(err, ErrPortAllocated) {
		t.Errorf("had a Service, and has been found leaked twice since: %v", err)
	}
}

func TestRepairOfTheObject(t *testing.T) {
	aes, err := encryption.New([]byte(`{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: ["*.*"], providers: [
		{aesgcm: {keys: [{name: a, secret: YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=}]}}, {identity: {}}]}]}`), encryption.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st := newStore(t)
	services := func() ([]*corev1.Service, error) { return []*corev1.Service{withPort("a", 30001)}, nil }
	r := PortRange{30000, 30099}
	for name, value := range map[string][]byte{
		"missing":                nil,
		"garbage":                []byte("garbage"),
		"truncated":              upstreams(t, inProtobuf(), "30000-30099", 1)[:20],
		"another kind":           bytes.Replace(upstreams(t, inProtobuf(), "30000-30099", 1), []byte("RangeAllocation"), []byte("RangeAllotments"), 1),
		"no range":               upstreams(t, inProtobuf(), "many", 1),
		"another range":          upstreams(t, inProtobuf(), "29990-30010", 11),
		"another range and more": upstreams(t, inProtobuf(), "20000-40000", 1, 10001, 19999),
		"longer than its range":  upstreams(t, inProtobuf(), "30000-30099", 1, 100, 70000),
	} {
		if value == nil {
			st = newStore(t)
		} else {
			put(t, st, value)
		}
		p, err := NewPorts(st, nil, r, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		_, err = take(t, p, 30002)
		switch {
		case strings.Contains(name, "another range"):
			if err == nil || err.Error() != "claim 0: the provided range does not match the current range" {
				t.Errorf("%s: taken before the repair: %v", name, err)
			}
		case name != "longer than its range":
			if err == nil || !strings.Contains(err.Error(), "cannot allocate resources of type servicenodeportallocations at this time") {
				t.Errorf("%s: taken before the repair: %v", name, err)
			}
		}
		if _, err := p.Repair(t.Context(), services); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := take(t, p, 30001); !errors.Is(err, ErrPortAllocated) {
			t.Errorf("%s: a Service's port: %v", name, err)
		}
		if _, err := take(t, p, 30003); err != nil {
			t.Errorf("%s: a free port: %v", name, err)
		}
	}
	// What was noted for another range counts in this one, until it has leaked.
	put(t, st, upstreams(t, inProtobuf(), "29990-30010", 15))
	p := server(t, st, r)
	if _, err := take(t, p, 30005); !errors.Is(err, ErrPortAllocated) {
		t.Errorf("noted for another range: %v", err)
	}
	p.encryption = aes.For(portsResource)
	if repair(t, p); !bytes.HasPrefix(stored(t, st).Value, []byte("k8s:enc:aesgcm:v1:a:")) {
		t.Errorf("not encrypted: %q", stored(t, st).Value)
	}
	if _, err := take(t, p, 30005); !errors.Is(err, ErrPortAllocated) {
		t.Errorf("noted before encryption: %v", err)
	}
	p.encryption = nil // an object of a server whose keys this one lacks is left alone
	before := stored(t, st)
	if _, err := p.Repair(t.Context(), services); err == nil || stored(t, st) != before {
		t.Errorf("an object that cannot be decrypted: %v", err)
	}
}

// A repair that was overtaken looks again: its own list of Services is older
// than a port taken meanwhile.
func TestRepairDoesNotLoseAPortTakenMeanwhile(t *testing.T) {
	st := newStore(t)
	p, other := server(t, st, PortRange{30000, 30099}), server(t, st, PortRange{30000, 30099})
	calls := 0
	events, err := p.Repair(t.Context(), func() ([]*corev1.Service, error) {
		if calls++; calls == 1 {
			if _, err := take(t, other, 30001); err != nil {
				t.Error(err)
			}
		}
		return []*corev1.Service{withPort("a", 30001), withPort("b", 30002)}, nil
	})
	if err != nil || calls != 2 || len(events) != 1 || events[0].About.GetName() != "b" {
		t.Errorf("listed %d times: %+v %v", calls, events, err)
	}
}

// TestClaims reads as: the Service, what it was, and which ports it claims for
// which of its own (h: health checks).
func TestClaims(t *testing.T) {
	port := func(name string, port int32, proto corev1.Protocol, nodePort int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: port, Protocol: proto, NodePort: nodePort}
	}
	service := func(kind corev1.ServiceType, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{Spec: corev1.ServiceSpec{Type: kind, Ports: ports}}
	}
	local := func(s *corev1.Service, health int32) *corev1.Service {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, health
		return s
	}
	portless := func(s *corev1.Service) *corev1.Service { s.Spec.AllocateLoadBalancerNodePorts = new(bool); return s }
	const none, np, lb = corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer
	for _, tc := range []struct {
		name     string
		svc, old *corev1.Service
		want     string
	}{
		{"no node ports", service(none, port("a", 80, "TCP", 0)), nil, ""},
		{"one", service(np, port("a", 80, "TCP", 0)), nil, "any for a"},
		{"by number first", service(np, port("a", 80, "TCP", 0), port("b", 81, "TCP", 30001)), nil, "30001 for b, any for a"},
		{"one port on two protocols", service(np, port("a", 53, "TCP", 0), port("b", 53, "UDP", 0)), nil, "any for a and b"},
		{"one of them by number", service(np, port("a", 53, "TCP", 0), port("b", 53, "UDP", 30053)), nil, "30053 for a"},
		{"both by one number", service(np, port("a", 53, "TCP", 30053), port("b", 53, "UDP", 30053)), nil, "30053 for a"},
		{"both by their own", service(np, port("a", 53, "TCP", 30053), port("b", 53, "UDP", 30054)), nil, "30053 for a, 30054 for b"},
		{"two ports, one number", service(np, port("a", 53, "TCP", 30053), port("b", 54, "UDP", 30053)), nil, "30053 for a, 30053 for b"},
		{"balanced", local(service(lb, port("a", 80, "TCP", 0)), 0), nil, "any for a, any for h"},
		{"balanced, by number", local(service(lb, port("a", 80, "TCP", 0)), 30080), nil, "30080 for h, any for a"},
		{"balanced without ports", portless(local(service(lb, port("a", 80, "TCP", 0), port("b", 81, "TCP", 30081)), 0)), nil, "30081 for b, any for h"},
		{"unchanged", service(np, port("a", 80, "TCP", 30080)), service(np, port("a", 80, "TCP", 30080)), ""},
		{"exchanged", service(np, port("a", 80, "TCP", 30081), port("b", 81, "TCP", 30080)), service(np, port("a", 80, "TCP", 30080), port("b", 81, "TCP", 30081)), ""},
		{"more", service(np, port("a", 80, "TCP", 30080), port("b", 80, "UDP", 0), port("c", 81, "TCP", 30081), port("d", 81, "UDP", 30081)),
			service(np, port("a", 80, "TCP", 30080)), "30081 for c, any for b"},
		{"exposed", service(np, port("a", 53, "TCP", 0), port("b", 53, "UDP", 0)), service(none, port("a", 53, "TCP", 0), port("b", 53, "UDP", 0)), "any for a, any for b"},
		{"health checks from now on", local(service(lb, port("a", 80, "TCP", 30080)), 0), service(lb, port("a", 80, "TCP", 30080)), "any for h"},
		{"health checks as before", local(service(lb, port("a", 80, "TCP", 30080)), 30090), local(service(lb, port("a", 80, "TCP", 30080)), 30090), ""},
	} {
		names := map[*int32]string{&tc.svc.Spec.HealthCheckNodePort: "h"}
		for i := range tc.svc.Spec.Ports {
			names[&tc.svc.Spec.Ports[i].NodePort] = tc.svc.Spec.Ports[i].Name
		}
		var got []string
		for _, c := range claimsOf(tc.svc, tc.old) {
			var of []string
			for _, field := range c.into {
				of = append(of, names[field])
			}
			what := "any"
			if c.port != 0 {
				what = fmt.Sprint(c.port)
			}
			got = append(got, what+" for "+strings.Join(of, " and "))
		}
		if got := strings.Join(got, ", "); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
