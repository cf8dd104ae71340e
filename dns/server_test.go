package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/internal/netnstest"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// start runs a server over the objects until the test ends and waits until it answers.
func start(t *testing.T, change func(*Config), objs ...runtime.Object) *Server {
	t.Helper()
	client := fake.NewClientset(objs...)
	factory := informers.NewSharedInformerFactory(client, 0)
	cfg := Config{Informers: factory, ListenAddrs: []netip.AddrPort{loopback}, Client: client,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	factory.Start(ctx.Done())
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		factory.Shutdown()
	})
	select {
	case <-s.Ready():
	case <-time.After(5 * time.Second):
		t.Fatal("not ready after 5 s")
	}
	return s
}

func ask(t *testing.T, s *Server, network string, req *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(req, s.Addrs()[0].String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, req.Question[0].Name, err)
	}
	m.Compress = true // so that Len is the size it had on the wire
	return m
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// RFC 1035 4.2.1 and RFC 6891: what does not fit UDP is cut with TC set, and TCP has it all.
func TestLargeAnswers(t *testing.T) {
	var eps []discoveryv1.Endpoint
	for i := range 120 {
		eps = append(eps, endpoint(fmt.Sprintf("10.244.1.%d", i+1), "", true))
	}
	s := start(t, nil, namespace("default"), svc("big", []string{"None"}, nil), headlessSlice("big", eps...))
	req := new(dns.Msg).SetQuestion("BiG.default.svc.cluster.local.", dns.TypeA)
	m := ask(t, s, "udp", req)
	if !m.Truncated || m.Len() > 512 || len(m.Answer) == 0 || m.IsEdns0() != nil {
		t.Errorf("plain UDP: truncated %v, %d bytes, %d records", m.Truncated, m.Len(), len(m.Answer))
	}
	if m.Question[0].Name != "BiG.default.svc.cluster.local." || m.Answer[0].Header().Name != "BiG.default.svc.cluster.local." {
		t.Errorf("spelling not kept: %s, %s", m.Question[0].Name, m.Answer[0].Header().Name)
	}
	if m := ask(t, s, "tcp", req); m.Truncated || len(m.Answer) != 120 {
		t.Errorf("TCP: truncated %v, %d records", m.Truncated, len(m.Answer))
	}
	req.SetEdns0(4096, false)
	if m := ask(t, s, "udp", req); !m.Truncated || m.Len() > udpSize || len(m.Answer) < 50 || m.IsEdns0() == nil {
		t.Errorf("EDNS: truncated %v, %d bytes, %d records", m.Truncated, m.Len(), len(m.Answer))
	}
	req.IsEdns0().SetVersion(1)
	if m := ask(t, s, "udp", req); m.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1: %s", dns.RcodeToString[m.Rcode])
	}
}

func TestOutsideNames(t *testing.T) {
	asked := atomic.Int32{}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(req)
		if strings.EqualFold(req.Question[0].Name, "www.example.org.") {
			rr, _ := dns.NewRR("www.example.org. 60 IN A 192.0.2.80")
			m.Answer = append(m.Answer, rr)
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = upstream.ActivateAndServe() }()
	t.Cleanup(func() { _ = upstream.Shutdown() })
	at := netip.MustParseAddrPort(pc.LocalAddr().String())
	dead, err := net.ListenPacket("udp", "127.0.0.1:0") // answers nothing
	if err != nil {
		t.Fatal(err)
	}
	deadAt := netip.MustParseAddrPort(dead.LocalAddr().String())
	_ = dead.Close()

	out := svc("out", nil, func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "www.example.org"
	})
	s := start(t, func(c *Config) { c.Upstreams = []netip.AddrPort{deadAt, at} }, namespace("default"), out)
	for range 3 {
		m := ask(t, s, "udp", new(dns.Msg).SetQuestion("WWW.example.org.", dns.TypeA))
		if len(m.Answer) != 1 || m.Answer[0].Header().Name != "WWW.example.org." || !m.RecursionAvailable || m.Authoritative {
			t.Errorf("forwarded: %v", m)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want 1: the rest from memory", n)
	}
	if m := ask(t, s, "udp", new(dns.Msg).SetQuestion("out.default.svc.cluster.local.", dns.TypeA)); len(m.Answer) != 2 {
		t.Errorf("external name with its address: %v", m.Answer)
	}
	if m := ask(t, s, "udp", new(dns.Msg).SetQuestion("no.example.org.", dns.TypeA)); m.Rcode != dns.RcodeNameError {
		t.Errorf("unknown outside name: %s", dns.RcodeToString[m.Rcode])
	}
	down := start(t, func(c *Config) { c.Upstreams = []netip.AddrPort{deadAt} })
	if m := ask(t, down, "udp", new(dns.Msg).SetQuestion("example.org.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("dead upstream: %s", dns.RcodeToString[m.Rcode])
	}
	alone := start(t, nil)
	begin := time.Now()
	m := ask(t, alone, "udp", new(dns.Msg).SetQuestion("example.org.", dns.TypeA))
	if m.Rcode != dns.RcodeRefused || time.Since(begin) > 500*time.Millisecond {
		t.Errorf("no upstream: %s after %v", dns.RcodeToString[m.Rcode], time.Since(begin))
	}
}

func TestUpstreamsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# x\nsearch a b\nnameserver 192.0.2.1\nnameserver bad\nnameserver fd00::1\noptions ndots:5\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(Upstreams(path)); got != "[192.0.2.1:53 [fd00::1]:53 192.0.2.2:53]" {
		t.Error(got)
	}
	if got := Upstreams(path + "x"); got != nil {
		t.Error(got)
	}
}

// The server may start before its address exists, and publishes itself; what somebody
// changes of the slice is put right.
func TestPublish(t *testing.T) {
	ns := netnstest.New(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"}}
	addr := netip.MustParseAddr("10.244.0.1")
	var client *fake.Clientset
	s := start(t, func(c *Config) {
		c.Netns, c.ListenAddrs = ns.Path, []netip.AddrPort{netip.AddrPortFrom(addr, 53)}
		c.NodeName, c.Advertise = "n1", addr
		client = c.Client.(*fake.Clientset)
	}, node, namespace("default"), svc("web", []string{"10.96.0.20"}, nil))
	api := client.DiscoveryV1().EndpointSlices("kube-system")
	wait := func(ok func(*discoveryv1.EndpointSlice) bool) {
		t.Helper()
		deadline := time.Now().Add(5 * time.Second)
		for {
			got, err := api.Get(context.Background(), "kube-dns-n1", metav1.GetOptions{})
			if err == nil && ok(got) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("slice is %+v, %v", got, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	right := func(s *discoveryv1.EndpointSlice) bool {
		return s.Labels["kubernetes.io/service-name"] == "kube-dns" && len(s.Endpoints) == 1 && s.Endpoints[0].Addresses[0] == "10.244.0.1" &&
			*s.Ports[0].Name == "dns" && *s.Ports[0].Port == 53 && *s.Ports[1].Name == "dns-tcp" && s.OwnerReferences[0].UID == "u1"
	}
	wait(right)
	if err := api.Delete(context.Background(), "kube-dns-n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wait(right)
	bad, err := api.Get(context.Background(), "kube-dns-n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bad.Endpoints = nil
	if _, err := api.Update(context.Background(), bad, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	wait(right)

	ns.AddAddr("lo", "10.244.0.1/32")
	ns.Do(func() error {
		conn, err := net.DialTimeout("udp", s.Addrs()[0].String(), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		c := dns.Client{Timeout: 2 * time.Second}
		m, _, err := c.ExchangeWithConn(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), &dns.Conn{Conn: conn})
		if err == nil && len(m.Answer) != 1 {
			t.Errorf("answer: %v", m)
		}
		return err
	})
}

// A server made long after the informers started, beside a proxy that wants the same
// index, knows what was there before it.
func TestStartedInformers(t *testing.T) {
	client := fake.NewClientset(namespace("default"), svc("db", []string{"None"}, nil), headlessSlice("db", endpoint("10.244.0.5", "db-0", true)))
	factory := informers.NewSharedInformerFactory(client, 0)
	eps := factory.Discovery().V1().EndpointSlices().Informer()
	if err := eps.AddIndexers(cache.Indexers{serviceIndex: func(obj any) ([]string, error) { return sliceService(obj), nil }}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer factory.Shutdown()
	defer cancel()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	s, err := New(Config{Informers: factory, ListenAddrs: []netip.AddrPort{loopback}})
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done()) // New asked for Services and Namespaces as well
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	if m := ask(t, s, "udp", new(dns.Msg).SetQuestion("db-0.db.default.svc.cluster.local.", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("A: %v", m)
	}
	if m := ask(t, s, "udp", new(dns.Msg).SetQuestion("5.0.244.10.in-addr.arpa.", dns.TypePTR)); len(m.Answer) != 1 {
		t.Errorf("PTR: %v", m)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestListenFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := New(Config{Informers: informers.NewSharedInformerFactory(fake.NewClientset(), 0),
		ListenAddrs: []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("taken port: %v", err)
	}
}
