package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/internal/netnstest"
	"github.com/skiff-project/skiff/internal/nft"
	"github.com/skiff-project/skiff/network"
)

const (
	nodeIP    = "198.51.100.1"
	clientIP  = "198.51.100.2"
	clusterIP = "10.96.0.20"
)

// world is a node with pods and Services, and a machine outside it; no default route.
type world struct {
	t       *testing.T
	host    *netnstest.NS
	outside *netnstest.NS
	pods    map[string]*netnstest.NS
	addrs   map[string]string
	client  *fake.Clientset
	proxy   *Proxy
	net     *network.Network
	stop    context.CancelFunc
	done    chan error
}

func newWorld(t *testing.T, pods ...string) *world {
	w := &world{t: t, host: netnstest.New(t), outside: netnstest.New(t), pods: map[string]*netnstest.NS{},
		addrs: map[string]string{}, client: fake.NewClientset()}
	netnstest.Join(w.host, "eth0", nodeIP+"/24", w.outside, "eth0", clientIP+"/24")
	w.outside.Route("203.0.113.0/24", nodeIP)
	w.outside.Route("10.96.0.0/12", nodeIP)
	cluster := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	service := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}
	n, err := network.New(network.Config{DataDir: t.TempDir(), Netns: w.host.Path, ClusterCIDRs: cluster, ServiceCIDRs: service})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	w.net = n
	if err := n.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	for _, name := range pods {
		w.addPod(name)
	}
	factory := informers.NewSharedInformerFactory(w.client, 0)
	w.proxy, err = New(Config{Informers: factory, NodeName: "node", NodeIPs: []netip.Addr{netip.MustParseAddr(nodeIP)},
		ClusterCIDRs: cluster, ServiceCIDRs: service, Netns: w.host.Path,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.done = cancel, make(chan error, 1)
	factory.Start(ctx.Done())
	go func() { w.done <- w.proxy.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-w.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		factory.Shutdown()
	})
	return w
}

func (w *world) addPod(name string) {
	w.t.Helper()
	pod := netnstest.New(w.t)
	addrs, err := w.net.Setup(context.Background(), network.PodSandbox{ID: name, Name: name, NetnsPath: pod.Path})
	if err != nil {
		w.t.Fatal(err)
	}
	pod.Serve(name, ":8080")
	w.pods[name], w.addrs[name] = pod, addrs[0].String()
}

func service(name, ip string, change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: "1"}}
	s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{
		{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80}}}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func ep(ip, node string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &node,
		Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)}}
}

func terminating(e discoveryv1.Endpoint) discoveryv1.Endpoint {
	e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}
	return e
}

func slice(svc string, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: svc + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: svc}, ResourceVersion: "1"},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: eps,
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("tcp"), Port: ptr.To[int32](8080)}, {Name: ptr.To("udp"), Port: ptr.To[int32](8080)}},
	}
}

func (w *world) create(svc *corev1.Service, s *discoveryv1.EndpointSlice) {
	w.t.Helper()
	ctx := context.Background()
	if _, err := w.client.CoreV1().Services("ns").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	if s != nil {
		if _, err := w.client.DiscoveryV1().EndpointSlices("ns").Create(ctx, s, metav1.CreateOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.settle(svc.Name)
}

var revision = 1

func (w *world) endpoints(svc string, eps ...discoveryv1.Endpoint) {
	w.t.Helper()
	s := slice(svc, eps...)
	revision++
	s.ResourceVersion = fmt.Sprint(revision)
	if _, err := w.client.DiscoveryV1().EndpointSlices("ns").Update(context.Background(), s, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.settle(svc)
}

// settle waits until the kernel has what the API says of a Service: the informers' memory
// first, then a round that began after that.
func (w *world) settle(name string) {
	w.t.Helper()
	w.eventually(func() bool {
		svc, have := w.proxy.lookup("ns/" + name)
		want, err := w.client.CoreV1().Services("ns").Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return have == nil || svc == nil
		}
		list, err := w.client.DiscoveryV1().EndpointSlices("ns").List(context.Background(), metav1.ListOptions{
			LabelSelector: discoveryv1.LabelServiceName + "=" + name})
		if err != nil || svc == nil || svc.ResourceVersion != want.ResourceVersion || len(have) != len(list.Items) {
			return false
		}
		return len(have) == 0 || have[0].ResourceVersion == list.Items[0].ResourceVersion
	})
	rounds := w.proxy.metrics.synced()
	w.eventually(func() bool {
		w.proxy.mark("ns/" + name)
		return w.proxy.metrics.synced() >= rounds+2
	})
}

func (w *world) eventually(ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("the proxy does not follow the API after 10 s")
		}
	}
}

func (w *world) want(from *netnstest.NS, network, addr, source string, names ...string) {
	w.t.Helper()
	seen := map[string]bool{}
	for range 12 * len(names) {
		name, gotSource, err := from.Ask(network, addr)
		if err != nil {
			w.t.Errorf("%s %s: %v, want %v", network, addr, err, names)
			return
		}
		if source != "" && gotSource != source {
			w.t.Errorf("%s %s: %s saw source %s, want %s", network, addr, name, gotSource, source)
			return
		}
		seen[name] = true
	}
	if len(seen) != len(names) {
		w.t.Errorf("%s %s: answered by %v, want %v", network, addr, seen, names)
	}
	for _, n := range names {
		if !seen[n] {
			w.t.Errorf("%s %s: never answered by %s", network, addr, n)
		}
	}
}

func (w *world) refused(from *netnstest.NS, addr string) {
	w.t.Helper()
	start := time.Now()
	_, _, err := from.Ask("tcp", addr)
	if err == nil || time.Since(start) > 700*time.Millisecond {
		w.t.Errorf("tcp %s: %v after %v, want refused at once", addr, err, time.Since(start))
	}
}

func (w *world) dropped(from *netnstest.NS, addr string) {
	w.t.Helper()
	_, _, err := from.Ask("tcp", addr)
	if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		w.t.Errorf("tcp %s: %v, want no answer at all", addr, err)
	}
}

func TestClusterIPTraffic(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, b := w.addrs["a"], w.addrs["b"]
	w.create(service("web", clusterIP, nil), slice("web", ep(a, "node"), ep(b, "node")))
	for _, network := range []string{"tcp", "udp"} {
		w.want(w.pods["c"], network, clusterIP+":80", w.addrs["c"], "a", "b")
		w.want(w.host, network, clusterIP+":80", "10.244.0.1", "a", "b")
		// From outside the pods' ranges the way back must lead through this node.
		w.want(w.outside, network, clusterIP+":80", "10.244.0.1", "a", "b")
	}
	// A pod that reaches itself through its Service.
	w.endpoints("web", ep(a, "node"))
	w.want(w.pods["a"], "tcp", clusterIP+":80", "10.244.0.1", "a")
	w.want(w.pods["a"], "udp", clusterIP+":80", "10.244.0.1", "a")
	// The node itself as an endpoint, as for the kubernetes Service.
	w.host.Serve("node", nodeIP+":8080")
	w.endpoints("web", ep(nodeIP, "node"))
	w.want(w.pods["a"], "tcp", clusterIP+":80", a, "node")
	w.want(w.host, "tcp", clusterIP+":80", "", "node")
	// Unknown port, no endpoints, unused address.
	w.refused(w.pods["c"], clusterIP+":81")
	w.refused(w.host, clusterIP+":81")
	w.endpoints("web")
	w.refused(w.pods["c"], clusterIP+":80")
	w.refused(w.host, clusterIP+":80")
	w.dropped(w.pods["c"], "10.96.7.7:80")
	// Terminating endpoints serve when there is nothing else.
	w.endpoints("web", terminating(ep(a, "node")), terminating(ep(b, "node")))
	w.want(w.pods["c"], "tcp", clusterIP+":80", w.addrs["c"], "a", "b")
	w.endpoints("web", terminating(ep(a, "node")), ep(b, "node"))
	w.want(w.pods["c"], "tcp", clusterIP+":80", w.addrs["c"], "b")
	if err := w.client.CoreV1().Services("ns").Delete(context.Background(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.settle("web")
	w.dropped(w.pods["c"], clusterIP+":80")
}

func TestNodePortsAndExternalAddresses(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, b := w.addrs["a"], w.addrs["b"]
	svc := service("web", clusterIP, func(s *corev1.ServiceSpec) {
		s.Type = corev1.ServiceTypeLoadBalancer
		s.Ports[0].NodePort, s.Ports[1].NodePort = 30080, 30080
		s.ExternalIPs = []string{"203.0.113.5"}
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	})
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.6"}}
	w.create(svc, slice("web", ep(a, "node"), ep(b, "elsewhere")))
	for _, network := range []string{"tcp", "udp"} {
		w.want(w.outside, network, nodeIP+":30080", "10.244.0.1", "a", "b")
		w.want(w.pods["c"], network, nodeIP+":30080", "10.244.0.1", "a", "b")
		w.want(w.host, network, nodeIP+":30080", "10.244.0.1", "a", "b")
	}
	w.want(w.outside, "tcp", "203.0.113.5:80", "10.244.0.1", "a", "b")
	w.want(w.outside, "tcp", "203.0.113.6:80", "10.244.0.1", "a", "b")

	// Local: outsiders keep their address and reach local endpoints only.
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	svc.Spec.HealthCheckNodePort = 31000
	svc.ResourceVersion = "2"
	w.update(svc)
	w.want(w.outside, "tcp", nodeIP+":30080", clientIP, "a")
	w.want(w.outside, "tcp", "203.0.113.6:80", clientIP, "a")
	w.want(w.pods["c"], "tcp", nodeIP+":30080", w.addrs["c"], "a", "b")
	w.want(w.host, "tcp", nodeIP+":30080", "10.244.0.1", "a", "b")
	w.healthCheck(nodeIP+":31000", http.StatusOK)
	w.endpoints("web", terminating(ep(a, "node")), ep(b, "elsewhere"))
	w.want(w.outside, "tcp", nodeIP+":30080", clientIP, "a")
	w.want(w.pods["c"], "tcp", nodeIP+":30080", w.addrs["c"], "b")
	w.healthCheck(nodeIP+":31000", http.StatusServiceUnavailable)
	w.endpoints("web", ep(b, "elsewhere"))
	w.dropped(w.outside, nodeIP+":30080")
	w.want(w.pods["c"], "tcp", nodeIP+":30080", w.addrs["c"], "b")

	// Source ranges guard the balancer's address only.
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	svc.Spec.HealthCheckNodePort = 0
	svc.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "192.0.2.128/25"}
	svc.ResourceVersion = "3"
	w.update(svc)
	w.dropped(w.outside, "203.0.113.6:80")
	w.want(w.outside, "tcp", "203.0.113.5:80", "10.244.0.1", "b")
	svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
	svc.ResourceVersion = "4"
	w.update(svc)
	w.want(w.outside, "tcp", "203.0.113.6:80", "10.244.0.1", "b")

	svc.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	svc.ResourceVersion = "5"
	w.update(svc)
	w.dropped(w.pods["c"], clusterIP+":80")
	w.endpoints("web", ep(a, "node"), ep(b, "elsewhere"))
	w.want(w.pods["c"], "tcp", clusterIP+":80", w.addrs["c"], "a")
}

func (w *world) update(svc *corev1.Service) {
	w.t.Helper()
	if _, err := w.client.CoreV1().Services("ns").Update(context.Background(), svc.DeepCopy(), metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.settle(svc.Name)
}

func (w *world) healthCheck(addr string, want int) {
	w.t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = w.host.Try(func() error {
			c, err = net.DialTimeout(network, addr, time.Second)
			return err
		})
		return c, err
	}}
	resp, err := (&http.Client{Transport: tr}).Get("http://" + addr)
	if err != nil {
		w.t.Errorf("health check: %v", err)
		return
	}
	_ = resp.Body.Close()
	if resp.StatusCode != want {
		w.t.Errorf("health check: got %d, want %d", resp.StatusCode, want)
	}
}

func TestSessionAffinity(t *testing.T) {
	w := newWorld(t, "a", "b", "c", "d")
	a, b, c := w.addrs["a"], w.addrs["b"], w.addrs["c"]
	w.create(service("web", clusterIP, func(s *corev1.ServiceSpec) {
		s.Type = corev1.ServiceTypeNodePort
		s.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Ports[0].NodePort = 30080
	}), slice("web", ep(a, "node"), ep(b, "node"), ep(c, "node")))
	for _, addr := range []string{clusterIP + ":80", nodeIP + ":30080"} {
		first, _, err := w.pods["d"].Ask("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		w.want(w.pods["d"], "tcp", addr, "", first)
		w.want(w.pods["d"], "tcp", addr, "", first)
		// The remembered endpoint goes: the client gets another, and keeps that.
		var rest []discoveryv1.Endpoint
		for _, n := range []string{"a", "b", "c"} {
			if n != first {
				rest = append(rest, ep(w.addrs[n], "node"))
			}
		}
		w.endpoints("web", rest...)
		second, _, err := w.pods["d"].Ask("tcp", addr)
		if err != nil || second == first {
			t.Fatalf("after %s left: %s, %v", first, second, err)
		}
		w.want(w.pods["d"], "tcp", addr, "", second)
		// It comes back: the client stays with its second.
		w.endpoints("web", ep(a, "node"), ep(b, "node"), ep(c, "node"))
		w.want(w.pods["d"], "tcp", addr, "", second)
	}
}

// A UDP client that never pauses must follow its Service, and an established TCP
// connection must outlive its endpoint's removal.
func TestFlowsOverChanges(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, b := w.addrs["a"], w.addrs["b"]
	w.create(service("web", clusterIP, nil), slice("web", ep(a, "node")))
	var udp net.Conn
	w.pods["c"].Do(func() (err error) {
		udp, err = net.DialTimeout("udp", clusterIP+":80", time.Second)
		return err
	})
	defer udp.Close()
	ask := func() string {
		_ = udp.SetDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 64)
		if _, err := udp.Write([]byte("?")); err != nil {
			return err.Error()
		}
		n, err := udp.Read(buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:1]) + fmt.Sprint(n > 0)
	}
	if got := ask(); got != "atrue" {
		t.Fatalf("before: %s", got)
	}
	var l net.Listener
	w.pods["a"].Do(func() (err error) {
		l, err = net.Listen("tcp", ":9090")
		return err
	})
	defer l.Close()
	svc := service("long", "10.96.0.21", nil)
	s := slice("long", ep(a, "node"))
	s.Ports[0].Port = ptr.To[int32](9090)
	w.create(svc, s)
	var long net.Conn
	w.pods["c"].Do(func() (err error) {
		long, err = net.DialTimeout("tcp", "10.96.0.21:80", time.Second)
		return err
	})
	defer long.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	w.endpoints("web", ep(b, "node"))
	if got := ask(); got != "btrue" {
		t.Errorf("after the endpoint changed the UDP client got %q", got)
	}
	w.endpoints("long")
	w.refused(w.pods["c"], "10.96.0.21:80")
	buf := make([]byte, 2)
	_ = server.SetDeadline(time.Now().Add(time.Second))
	if _, err := long.Write([]byte("hi")); err != nil {
		t.Error(err)
	}
	if n, err := server.Read(buf); err != nil || n != 2 {
		t.Errorf("established connection after its endpoint left: %v", err)
	}
}

// Endpoints come and go while clients connect; none may fail, nor have to wait for TCP to
// send its first packet again.
func TestNoConnectionLostInRollout(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, b := w.addrs["a"], w.addrs["b"]
	w.create(service("web", clusterIP, nil), slice("web", ep(a, "node"), ep(b, "node")))
	const clients = 4
	stop, results := make(chan struct{}), make(chan error, clients)
	for range clients {
		go func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					t.Logf("%d connections", n)
					results <- nil
					return
				default:
				}
				start := time.Now()
				if _, _, err := w.pods["c"].Ask("tcp", clusterIP+":80"); err != nil || time.Since(start) > 900*time.Millisecond {
					results <- fmt.Errorf("connection %d after %v: %w", n, time.Since(start), err)
					return
				}
			}
		}()
	}
	for range 100 {
		for _, eps := range [][]discoveryv1.Endpoint{{ep(a, "node")}, {ep(b, "node")}, {ep(a, "node"), ep(b, "node")}} {
			s := slice("web", eps...)
			revision++
			s.ResourceVersion = fmt.Sprint(revision)
			if _, err := w.client.DiscoveryV1().EndpointSlices("ns").Update(context.Background(), s, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	close(stop)
	for range clients {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// The tables come back when somebody removes them, a restarted proxy takes over what is
// there, and Purge leaves nothing.
func TestTakeOverAndPurge(t *testing.T) {
	w := newWorld(t, "a", "c")
	w.create(service("web", clusterIP, nil), slice("web", ep(w.addrs["a"], "node")))
	if err := w.proxy.conn.Purge(w.proxy.cfg.Table); err != nil {
		t.Fatal(err)
	}
	w.endpoints("web", ep(w.addrs["a"], "node"), ep(w.addrs["c"], "node"))
	w.want(w.pods["c"], "tcp", clusterIP+":80", "", "a", "c")
	w.stop()
	err := <-w.done
	w.done <- err
	w.want(w.pods["c"], "tcp", clusterIP+":80", "", "a", "c")
	for range 2 {
		if err := Purge(w.proxy.cfg.Table, w.proxy.cfg.Netns); err != nil {
			t.Error(err)
		}
	}
	if there, err := w.proxy.conn.Exists(nft.IPv4, "skiff-proxy"); there || err != nil {
		t.Errorf("table left: %v %v", there, err)
	}
}
