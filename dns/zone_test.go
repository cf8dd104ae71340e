package dns

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts in testdata")

// fakeSnapshot is a cluster written down.
type fakeSnapshot struct {
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
}

func (f *fakeSnapshot) Service(ns, name string) *corev1.Service {
	for _, s := range f.services {
		if s.Namespace == ns && s.Name == name {
			return s
		}
	}
	return nil
}

func (f *fakeSnapshot) EndpointSlices(ns, svc string) (out []*discoveryv1.EndpointSlice) {
	for _, s := range f.slices {
		if s.Namespace == ns && s.Labels[discoveryv1.LabelServiceName] == svc {
			out = append(out, s)
		}
	}
	return out
}

func (f *fakeSnapshot) Namespace(name string) bool { return name == "default" || name == "empty" }

func (f *fakeSnapshot) ServicesByIP(ip netip.Addr) (out []*corev1.Service) {
	for _, s := range f.services {
		if slices.Contains(serviceIPs(s), ip.String()) {
			out = append(out, s)
		}
	}
	return out
}

func (f *fakeSnapshot) EndpointsByIP(ip netip.Addr) (out []*discoveryv1.EndpointSlice) {
	for _, s := range f.slices {
		if slices.Contains(headlessIPs(s), ip.String()) {
			out = append(out, s)
		}
	}
	return out
}

func svc(name string, ips []string, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{ClusterIPs: ips, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}}}
	if len(ips) > 0 {
		s.Spec.ClusterIP = ips[0]
	}
	if change != nil {
		change(s)
	}
	return s
}

func headlessSlice(svc string, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: svc + "-1", Labels: map[string]string{
			discoveryv1.LabelServiceName: svc, corev1.IsHeadlessService: ""}},
		Endpoints: eps,
		Ports:     []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
}

func endpoint(ip, host string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if host != "" {
		e.Hostname = &host
	}
	return e
}

func cluster() *fakeSnapshot {
	return &fakeSnapshot{
		services: []*corev1.Service{
			svc("web", []string{"10.96.0.20", "fd00:96::20"}, nil),
			svc("db", []string{"None"}, nil),
			svc("early", []string{"None"}, func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }),
			svc("none", []string{"None"}, nil),
			svc("pending", nil, nil),
			svc("out", nil, func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "www.example.org"
			}),
			svc("alias", nil, func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "web.default.svc.cluster.local"
			}),
			svc("loop", nil, func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "loop.default.svc.cluster.local"
			}),
		},
		slices: []*discoveryv1.EndpointSlice{
			headlessSlice("db", endpoint("10.244.0.5", "db-0", true), endpoint("10.244.0.6", "", true), endpoint("10.244.0.7", "db-2", false)),
			headlessSlice("early", endpoint("10.244.0.8", "early-0", false)),
		},
	}
}

// Each line of testdata/answers.txt that starts with "? " is a question, type first; the
// lines below it are the answer.
func TestAnswers(t *testing.T) {
	const path = "testdata/answers.txt"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" && !strings.HasSuffix(got.String(), "\n\n") {
			got.WriteString(line)
		}
		q, ok := strings.CutPrefix(line, "? ")
		if !ok {
			continue
		}
		got.WriteString(line)
		typ, name, _ := strings.Cut(strings.TrimSpace(q), " ")
		req := new(dns.Msg).SetQuestion(name, dns.StringToType[typ])
		m, result := Answer(Zone{Domain: "cluster.local."}, cluster(), req)
		if result == Outside {
			got.WriteString("outside\n")
			continue
		}
		fmt.Fprintf(&got, "%s\n", dns.RcodeToString[m.Rcode])
		section := func(name string, rrs []dns.RR) {
			for _, rr := range rrs {
				fmt.Fprintf(&got, "%s%s\n", name, strings.ReplaceAll(rr.String(), "\t", " "))
			}
		}
		section("", m.Answer)
		section("authority: ", m.Ns)
		section("additional: ", m.Extra)
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != string(b) {
		t.Errorf("answers differ from %s (go test -rewrite, then read the difference). Got:\n%s", path, got.String())
	}
}

// No question may make Answer panic or break the packing.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "1.0.0.10.in-addr.arpa.", "1-2-3-4.default.pod.cluster.local.", "_http._tcp.db.default.svc.cluster.local."} {
		f.Add(name, uint16(dns.TypeA))
	}
	snap := cluster()
	f.Fuzz(func(t *testing.T, name string, qtype uint16) {
		if _, ok := dns.IsDomainName(name); !ok {
			return
		}
		m, result := Answer(Zone{Domain: "cluster.local."}, snap, new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype))
		if result == Answered {
			if _, err := m.Pack(); err != nil && len(name) < 200 {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}
