package proxy

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/internal/netnstest"
	"github.com/skiff-project/skiff/internal/nft"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts in testdata")

func testConfig() *Config {
	return &Config{Table: "skiff-proxy", MasqueradeMark: 0x4000, NodeIPs: []netip.Addr{netip.MustParseAddr(nodeIP), netip.MustParseAddr("2001:db8::1")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/56")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")}}
}

// scenario is a list of Service states; each step's changes make the transcript.
type scenario struct {
	name string
	svc  *corev1.Service
	eps  []discoveryv1.Endpoint
}

func scenarios() []scenario {
	nodePort := func(s *corev1.ServiceSpec) {
		s.Type = corev1.ServiceTypeNodePort
		s.Ports = s.Ports[:1]
		s.Ports[0].NodePort = 30080
	}
	tcpOnly := func(s *corev1.ServiceSpec) { s.Ports = s.Ports[:1] }
	local := func(s *corev1.ServiceSpec) {
		nodePort(s)
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.ExternalIPs = []string{"203.0.113.5"}
	}
	sticky := func(s *corev1.ServiceSpec) {
		tcpOnly(s)
		s.SessionAffinity = corev1.ServiceAffinityClientIP
		s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](60)}}
	}
	guarded := func(s *corev1.ServiceSpec) {
		tcpOnly(s)
		s.Type = corev1.ServiceTypeLoadBalancer
		s.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "192.0.2.0/25", "2001:db8::/32"}
	}
	web := []discoveryv1.Endpoint{ep("10.244.0.5", "node"), ep("10.244.1.6", "other")}
	balanced := service("web", clusterIP, guarded)
	balanced.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.6"}, {IP: "203.0.113.7", IPMode: ptr.To(corev1.LoadBalancerIPModeProxy)}}
	return []scenario{
		{"a ClusterIP Service with two endpoints", service("web", clusterIP, tcpOnly), web},
		{"one endpoint leaves", service("web", clusterIP, tcpOnly), web[:1]},
		{"the last one terminates but serves", service("web", clusterIP, tcpOnly), []discoveryv1.Endpoint{terminating(web[0])}},
		{"no endpoints", service("web", clusterIP, tcpOnly), nil},
		{"a node port", service("web", clusterIP, nodePort), web},
		{"externalTrafficPolicy Local and an external IP", service("web", clusterIP, local), web},
		{"the local endpoint terminates: its own list, and the others after it", service("web", clusterIP, local), []discoveryv1.Endpoint{terminating(web[0]), web[1]}},
		{"no local endpoint", service("web", clusterIP, local), web[1:]},
		{"session affinity", service("web", clusterIP, sticky), web},
		{"a balancer with source ranges", balanced, web},
		{"gone", nil, nil},
	}
}

// The text of every change, from the empty table on.
func TestChangesText(t *testing.T) {
	const path = "testdata/changes.txt"
	s := newState(nft.IPv4, testConfig())
	var got strings.Builder
	c := s.all()
	fmt.Fprintf(&got, "# the empty table\n%s", c.String())
	for _, sc := range scenarios() {
		s.replace("ns/web", testFragment(s.family, sc))
		c := s.take()
		fmt.Fprintf(&got, "\n# %s\n%s", sc.name, c.String())
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("changes differ from %s (go test -rewrite, then read the difference). Got:\n%s", path, got.String())
	}
}

func testFragment(f nft.Family, sc scenario) *fragment {
	if sc.svc == nil {
		return nil
	}
	return newFragment(f, view{node: "node", nodeIPs: testConfig().NodeIPs}, sc.svc, []*discoveryv1.EndpointSlice{slice(sc.svc.Name, sc.eps...)})
}

// content is what a state wants the kernel to hold, as text.
func content(s *state) string {
	c := s.all()
	return c.String()
}

// Whatever order Services change in, and however they contest addresses, the state is the
// one made from scratch, and the kernel takes every change as a difference.
func TestChangesAddUp(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	conn := nft.NewConn(netnstest.New(t).Path)
	cfg := testConfig()
	s := newState(nft.IPv4, cfg)
	if err := conn.Apply(s.all()); err != nil {
		t.Fatal(err)
	}
	now := map[string]*fragment{}
	pool := scenarios()
	for step := range 200 {
		sc := pool[rnd.IntN(len(pool))]
		name := fmt.Sprintf("s%d", rnd.IntN(5))
		if sc.svc != nil {
			sc.svc = sc.svc.DeepCopy()
			sc.svc.Name = name
			// Two share a cluster IP, all share node port and external IP.
			sc.svc.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 10+rnd.IntN(3))
			sc.svc.Spec.ClusterIPs = []string{sc.svc.Spec.ClusterIP}
			sc.svc.CreationTimestamp = metav1.Unix(int64(rnd.IntN(3)), 0)
		}
		next := testFragment(s.family, sc)
		s.replace("ns/"+name, next)
		now["ns/"+name] = next
		if rnd.IntN(3) == 0 {
			continue // several changes in one update
		}
		if err := conn.Apply(s.take()); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		fresh := newState(nft.IPv4, cfg)
		for name, f := range now {
			fresh.replace(name, f)
		}
		if got, want := content(s), content(fresh); got != want {
			t.Fatalf("step %d: got\n%s\nwant\n%s", step, got, want)
		}
	}
}

// The kernel takes the IPv6 form of every scenario.
func TestIPv6Tables(t *testing.T) {
	conn := nft.NewConn(netnstest.New(t).Path)
	s := newState(nft.IPv6, testConfig())
	if err := conn.Apply(s.all()); err != nil {
		t.Fatal(err)
	}
	six := map[string]string{clusterIP: "fd00:96::20", "10.244.0.5": "fd00:244::5", "10.244.1.6": "fd00:244:0:1::6",
		"203.0.113.5": "2001:db8:1::5", "203.0.113.6": "2001:db8:1::6", "203.0.113.7": "2001:db8:1::7"}
	for _, sc := range scenarios() {
		if sc.svc != nil {
			sc.svc.Spec.ClusterIP = six[sc.svc.Spec.ClusterIP]
			sc.svc.Spec.ClusterIPs = []string{sc.svc.Spec.ClusterIP}
			for i, ip := range sc.svc.Spec.ExternalIPs {
				sc.svc.Spec.ExternalIPs[i] = six[ip]
			}
			for i := range sc.svc.Status.LoadBalancer.Ingress {
				in := &sc.svc.Status.LoadBalancer.Ingress[i]
				in.IP = six[in.IP]
			}
		}
		var eps []discoveryv1.Endpoint
		for _, e := range sc.eps {
			e.Addresses = []string{six[e.Addresses[0]]}
			eps = append(eps, e)
		}
		sc.eps = eps
		f := testFragment(s.family, sc)
		if sc.svc != nil && (f == nil || len(f.elems) == 0) {
			t.Errorf("%s: no elements", sc.name)
		}
		s.replace("ns/web", f)
		if err := conn.Apply(s.take()); err != nil {
			t.Fatalf("%s: %v", sc.name, err)
		}
	}
}

func TestServicesNotServed(t *testing.T) {
	for name, change := range map[string]func(*corev1.Service){
		"headless":      func(s *corev1.Service) { s.Spec.ClusterIP = "None" },
		"pending":       func(s *corev1.Service) { s.Spec.ClusterIP = "" },
		"external name": func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
		"other proxy":   func(s *corev1.Service) { s.Labels = map[string]string{proxyNameLabel: "x"} },
		"no proxy":      func(s *corev1.Service) { s.Labels = map[string]string{corev1.IsHeadlessService: ""} },
		"other family":  func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "fd00::1", []string{"fd00::1"} },
	} {
		svc := service("web", clusterIP, nil)
		change(svc)
		if f := newFragment(nft.IPv4, view{}, svc, nil); f != nil {
			t.Errorf("%s: got %+v", name, f)
		}
	}
}
