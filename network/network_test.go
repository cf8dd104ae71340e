package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skiff-project/skiff/internal/netnstest"
	"github.com/skiff-project/skiff/internal/nft"
)

var (
	podCIDR     = netip.MustParsePrefix("10.244.0.0/24")
	clusterCIDR = netip.MustParsePrefix("10.244.0.0/16")
)

func newNetwork(t *testing.T, host *netnstest.NS, dir string) *Network {
	t.Helper()
	n, err := New(Config{DataDir: dir, Netns: host.Path, ClusterCIDRs: []netip.Prefix{clusterCIDR},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close) // twice is fine
	return n
}

func setup(t *testing.T, n *Network, id string, pod *netnstest.NS, ports ...PortMapping) string {
	t.Helper()
	addrs, err := n.Setup(context.Background(), PodSandbox{ID: id, Namespace: "ns", Name: id, NetnsPath: pod.Path, HostPorts: ports})
	if err != nil {
		t.Fatal(err)
	}
	return addrs[0].String()
}

func wantAnswer(t *testing.T, from *netnstest.NS, network, addr, name, source string) {
	t.Helper()
	gotName, gotSource, err := from.Ask(network, addr)
	if err != nil || gotName != name || (source != "" && gotSource != source) {
		t.Errorf("%s %s: got %q from %q, %v; want %q from %q", network, addr, gotName, gotSource, err, name, source)
	}
}

// A host with no default route, an outside machine that knows no pod addresses, two pods;
// with and without bridged packets passing the host's rules.
func TestPodTraffic(t *testing.T) {
	for _, mode := range []string{"0", "1"} {
		t.Run("br_netfilter="+mode, func(t *testing.T) { testPodTraffic(t, mode) })
	}
}

func testPodTraffic(t *testing.T, brNetfilter string) {
	host, outside, podA, podB := netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t)
	host.Do(func() error {
		err := setSysctl("net/bridge/bridge-nf-call-iptables", brNetfilter)
		if err != nil && brNetfilter != "0" {
			t.Skip("the kernel has no br_netfilter")
		}
		return nil
	})
	netnstest.Join(host, "eth0", "198.51.100.1/24", outside, "eth0", "198.51.100.2/24")
	n := newNetwork(t, host, t.TempDir())
	if n.Ready() == nil {
		t.Error("ready without a pod CIDR")
	}
	if err := n.SetPodCIDRs([]netip.Prefix{podCIDR}); err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	a := setup(t, n, "a", podA)
	b := setup(t, n, "b", podB,
		PortMapping{Protocol: "TCP", HostPort: 8080, ContainerPort: 80},
		PortMapping{Protocol: "UDP", HostPort: 8082, ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.1")},
		PortMapping{Protocol: "UDP", HostPort: 8081, ContainerPort: 80, HostIP: netip.MustParseAddr("198.51.100.1")})
	podB.Serve("b", ":80")
	outside.Serve("outside", ":80")
	host.Serve("host", ":81")

	for _, network := range []string{"tcp", "udp"} {
		wantAnswer(t, podA, network, b+":80", "b", a)
		wantAnswer(t, podB, network, b+":80", "b", b)
		wantAnswer(t, host, network, b+":80", "b", "10.244.0.1")
		wantAnswer(t, podA, network, "10.244.0.1:81", "host", a)
		// Leaving the cluster: masqueraded, for outside has no route back.
		wantAnswer(t, podA, network, "198.51.100.2:80", "outside", "198.51.100.1")
	}
	wantAnswer(t, podA, "tcp", "198.51.100.1:81", "host", a)
	wantAnswer(t, outside, "tcp", "198.51.100.1:8080", "b", "198.51.100.2")
	wantAnswer(t, outside, "udp", "198.51.100.1:8081", "b", "198.51.100.2")
	wantAnswer(t, host, "tcp", "198.51.100.1:8080", "b", "")
	wantAnswer(t, podA, "tcp", "198.51.100.1:8080", "b", a)
	// A pod to itself by its host port comes back as the gateway.
	wantAnswer(t, podB, "tcp", "198.51.100.1:8080", "b", "10.244.0.1")

	// On loopback the agent passes bytes along.
	wantAnswer(t, host, "tcp", "127.0.0.1:8080", "b", "10.244.0.1")
	wantAnswer(t, host, "udp", "127.0.0.1:8082", "b", "10.244.0.1")
	if _, _, err := host.Ask("udp", "127.0.0.1:8081"); err == nil {
		t.Error("a host port of another address answers on loopback")
	}

	// Setup again changes nothing; neither does another process with the same records.
	if again := setup(t, n, "a", podA); again != a {
		t.Errorf("second Setup gave %s, first %s", again, a)
	}
	n.Close()
	n2 := newNetwork(t, host, n.cfg.DataDir)
	if err := n2.SetPodCIDRs([]netip.Prefix{podCIDR}); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, outside, "tcp", "198.51.100.1:8080", "b", "198.51.100.2")
	if again := setup(t, n2, "a", podA); again != a {
		t.Errorf("Setup after a restart gave %s, want %s", again, a)
	}

	freed, err := n2.Reconcile([]string{"a"})
	if err != nil || fmt.Sprint(freed) != "[b]" {
		t.Errorf("Reconcile freed %v, %v; want [b]", freed, err)
	}
	if _, _, err := outside.Ask("tcp", "198.51.100.1:8080"); err == nil {
		t.Error("the host port still answers after Teardown")
	}
	podA.Close()
	for range 2 {
		if err := n2.Teardown(context.Background(), "a"); err != nil {
			t.Errorf("Teardown: %v", err)
		}
	}
	checkPurge(t, host, n2)
}

func checkPurge(t *testing.T, host *netnstest.NS, n *Network) {
	t.Helper()
	for range 2 {
		if err := Purge(n.cfg); err != nil {
			t.Errorf("Purge: %v", err)
		}
	}
	host.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if a := l.Attrs(); a.Name != "lo" && a.Name != "eth0" {
				t.Errorf("interface %s is left", a.Name)
			}
		}
		return err
	})
	if there, err := n.nft.Exists(nft.IPv4, n.cfg.Table); there || err != nil {
		t.Errorf("table left: %v, %v", there, err)
	}
	if _, err := os.Stat(n.cfg.DataDir); !os.IsNotExist(err) {
		t.Errorf("data folder left: %v", err)
	}
}

// After a crash the agent compares records and live sandboxes before it knows the ranges:
// the tables stay the crashed process's until then.
func TestReconcileBeforeTheRangesAreKnown(t *testing.T) {
	host, outside, podA, podB := netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t)
	netnstest.Join(host, "eth0", "198.51.100.1/24", outside, "eth0", "198.51.100.2/24")
	n := newNetwork(t, host, t.TempDir())
	if err := n.SetPodCIDRs([]netip.Prefix{podCIDR}); err != nil {
		t.Fatal(err)
	}
	setup(t, n, "a", podA, PortMapping{Protocol: "TCP", HostPort: 8080, ContainerPort: 80})
	setup(t, n, "b", podB, PortMapping{Protocol: "TCP", HostPort: 8081, ContainerPort: 80})
	podA.Serve("a", ":80")
	podB.Serve("b", ":80")
	n.Close()

	n = newNetwork(t, host, n.cfg.DataDir)
	freed, err := n.Reconcile([]string{"a"})
	if err != nil || fmt.Sprint(freed) != "[b]" {
		t.Errorf("Reconcile freed %v, %v; want [b]", freed, err)
	}
	wantAnswer(t, outside, "tcp", "198.51.100.1:8080", "a", "198.51.100.2")
	if err := n.SetPodCIDRs([]netip.Prefix{podCIDR}); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, outside, "tcp", "198.51.100.1:8080", "a", "198.51.100.2")
	if _, _, err := outside.Ask("tcp", "198.51.100.1:8081"); err == nil {
		t.Error("the host port of a freed sandbox answers")
	}
}

// Both families at once: pods get an address of each, and IPv6 works as IPv4 does.
func TestDualStack(t *testing.T) {
	host, outside, podA, podB := netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t)
	netnstest.Join(host, "eth0", "2001:db8::1/64", outside, "eth0", "2001:db8::2/64")
	n, err := New(Config{DataDir: t.TempDir(), Netns: host.Path,
		ClusterCIDRs: []netip.Prefix{clusterCIDR, netip.MustParsePrefix("fd00:244::/48")}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.SetPodCIDRs([]netip.Prefix{podCIDR, netip.MustParsePrefix("fd00:244::/64")}); err != nil {
		t.Fatal(err)
	}
	for id, pod := range map[string]*netnstest.NS{"a": podA, "b": podB} {
		ports := []PortMapping{{Protocol: "TCP", HostPort: 8080, ContainerPort: 80}}
		if id == "a" {
			ports = nil
		}
		addrs, err := n.Setup(context.Background(), PodSandbox{ID: id, NetnsPath: pod.Path, HostPorts: ports})
		if err != nil || len(addrs) != 2 || !addrs[1].Is6() {
			t.Fatalf("%s: %v, %v", id, addrs, err)
		}
	}
	podB.Serve("b", ":80")
	outside.Serve("outside", ":80")
	a, b := n.pool.records["a"].Addrs[1].String(), n.pool.records["b"].Addrs[1].String()
	wantAnswer(t, podA, "tcp", "["+b+"]:80", "b", a)
	wantAnswer(t, host, "tcp", "["+b+"]:80", "b", "fd00:244::1")
	// The link's own addresses are usable once the kernel has looked for duplicates.
	deadline := time.Now().Add(5 * time.Second)
	for _, _, err := podA.Ask("tcp", "[2001:db8::2]:80"); err != nil && time.Now().Before(deadline); {
		_, _, err = podA.Ask("tcp", "[2001:db8::2]:80")
	}
	wantAnswer(t, podA, "tcp", "[2001:db8::2]:80", "outside", "2001:db8::1")
	wantAnswer(t, outside, "tcp", "[2001:db8::1]:8080", "b", "2001:db8::2")
	wantAnswer(t, host, "tcp", "[::1]:8080", "b", "fd00:244::1")
}

// A pod may send as soon as Setup returns: a packet lost then would cost it a second.
func TestFirstPacketArrives(t *testing.T) {
	n := newNetwork(t, netnstest.New(t), t.TempDir())
	if err := n.SetPodCIDRs([]netip.Prefix{podCIDR}); err != nil {
		t.Fatal(err)
	}
	server := netnstest.New(t)
	addr := setup(t, n, "server", server)
	server.Serve("server", ":80")
	for i := range 60 {
		pod := netnstest.New(t)
		setup(t, n, fmt.Sprintf("pod-%d", i), pod)
		start := time.Now()
		if _, _, err := pod.Ask("tcp", addr+":80"); err != nil || time.Since(start) > 900*time.Millisecond {
			t.Errorf("pod %d: first connection took %v, %v", i, time.Since(start), err)
		}
	}
}

// Two nodes as two namespaces on one link; routes carry pod traffic unmasqueraded.
func TestRoutesBetweenNodes(t *testing.T) {
	hosts := []*netnstest.NS{netnstest.New(t), netnstest.New(t)}
	netnstest.Join(hosts[0], "eth0", "198.51.100.1/24", hosts[1], "eth0", "198.51.100.2/24")
	nodeIPs := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("10.244.1.0/24")}
	var nets []*Network
	var pods []*netnstest.NS
	var addrs []string
	for i, h := range hosts {
		n := newNetwork(t, h, t.TempDir())
		if err := n.SetPodCIDRs(cidrs[i : i+1]); err != nil {
			t.Fatal(err)
		}
		if err := n.SetRoutes([]Route{{cidrs[1-i], nodeIPs[1-i]}}); err != nil {
			t.Fatal(err)
		}
		pod := netnstest.New(t)
		addrs = append(addrs, setup(t, n, "p", pod))
		nets, pods = append(nets, n), append(pods, pod)
	}
	pods[1].Serve("p1", ":80")
	wantAnswer(t, pods[0], "tcp", addrs[1]+":80", "p1", addrs[0])
	if err := nets[0].SetRoutes(nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pods[0].Ask("tcp", addrs[1]+":80"); err == nil {
		t.Error("the other node's pod answers without a route")
	}
}

// Two nodes that share no link reach each other's pods by the router between
// them, and a node nobody can reach keeps no route from being made.
func TestRoutesByARouter(t *testing.T) {
	router := netnstest.New(t)
	router.Do(func() error { return setSysctl("net/ipv4/ip_forward", "1") })
	var pods []*netnstest.NS
	var addrs []string
	for i, side := range []string{"198.51.100", "203.0.113"} {
		h := netnstest.New(t)
		netnstest.Join(router, fmt.Sprint("n", i), side+".1/24", h, "eth0", side+".2/24")
		h.Route("0.0.0.0/0", side+".1")
		router.Route(fmt.Sprintf("10.244.%d.0/24", i), side+".2")
		n := newNetwork(t, h, t.TempDir())
		if err := n.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i))}); err != nil {
			t.Fatal(err)
		}
		other := []Route{{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParseAddr("203.0.113.2")}, {netip.MustParsePrefix("10.244.0.0/24"), netip.MustParseAddr("198.51.100.2")}}[i]
		lost := Route{netip.MustParsePrefix("10.244.9.0/24"), netip.MustParseAddr("255.255.255.255")}
		if err := n.SetRoutes([]Route{lost, other}); err == nil || !strings.Contains(err.Error(), "10.244.9.0/24") {
			t.Errorf("a node out of reach: %v", err)
		}
		pod := netnstest.New(t)
		addrs, pods = append(addrs, setup(t, n, "p", pod)), append(pods, pod)
	}
	pods[1].Serve("p1", ":80")
	wantAnswer(t, pods[0], "tcp", addrs[1]+":80", "p1", addrs[0])
}

func TestAddressesRestAndRunOut(t *testing.T) {
	dir := t.TempDir()
	open := func() *pool {
		p, err := openPool(dir)
		if err != nil {
			t.Fatal(err)
		}
		p.cidrs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29")}
		return p
	}
	p := open()
	take := func(id string) string {
		rec, err := p.allocate(PodSandbox{ID: id, NetnsPath: "/x"})
		if err != nil {
			return err.Error()
		}
		return rec.Addrs[0].String()
	}
	steps := []struct{ do, id, want string }{
		{"take", "a", "10.0.0.2"},
		{"take", "a", "10.0.0.2"},
		{"free", "a", ""},
		{"take", "b", "10.0.0.3"},
		{"crash", "", ""},
		{"take", "b", "10.0.0.3"},
		{"take", "c", "10.0.0.4"},
		{"take", "d", "10.0.0.5"},
		{"take", "e", "10.0.0.6"},
		{"take", "f", "10.0.0.2"},
		{"take", "g", "no free address left in pod CIDR 10.0.0.0/29"},
		{"free", "c", ""},
		{"take", "g", "10.0.0.4"},
	}
	for i, s := range steps {
		switch s.do {
		case "take":
			if got := take(s.id); got != s.want {
				t.Errorf("step %d: %s got %s, want %s", i, s.id, got, s.want)
			}
		case "free":
			if err := p.release(s.id); err != nil {
				t.Error(err)
			}
		case "crash":
			// Killed between writing beside and renaming.
			if err := os.WriteFile(filepath.Join(p.folder(), ".z.json.tmp1"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			p = open()
		}
	}
	if err := os.WriteFile(filepath.Join(p.folder(), "y.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openPool(dir); err == nil || !strings.Contains(err.Error(), "y.json is damaged") {
		t.Errorf("damaged record: %v", err)
	}
}

// The whole table as text, then what one host port changes in it.
func TestRulesText(t *testing.T) {
	cfg := Config{Bridge: "skiff0", Table: "skiff-network", ClusterCIDRs: []netip.Prefix{clusterCIDR}}
	before := desiredTables(cfg, []netip.Prefix{podCIDR}, nil)
	c := nft.Diff(nil, before[0])
	wantText(t, c.String(), `
+ table ip skiff-network
+ map hostports type inet_proto . inet_service : ipv4_addr . inet_service
+ map hostports-at type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
+ set hostport-hairpin type ipv4_addr . ipv4_addr
+ chain prerouting type nat hook prerouting priority -100
+   ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @hostports-at
+   ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to meta l4proto . th dport map @hostports
+ chain output type nat hook output priority -100
+   ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @hostports-at
+   ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to meta l4proto . th dport map @hostports
+ chain postrouting type nat hook postrouting priority 100
+   ip saddr . ip daddr @hostport-hairpin masquerade fully-random
+   ip daddr 10.244.0.0/16 accept
+   ip saddr 10.244.0.0/24 ip daddr != 224.0.0.0/4 oifname != "skiff0" masquerade fully-random
+ chain forward type filter hook forward priority 0
+   ip daddr 10.244.0.0/16 accept
+   ip saddr 10.244.0.0/24 oifname != "skiff0" ct state invalid drop
+ chain quiet type filter hook output priority 0
+   oifname "skiff0" icmp type redirect drop
`)
	ports := []hostPort{{PortMapping{Protocol: "UDP", HostPort: 53, ContainerPort: 5353}, netip.MustParseAddr("10.244.0.7")}}
	after := desiredTables(cfg, []netip.Prefix{podCIDR}, ports)
	c = nft.Diff(before[0], after[0])
	wantText(t, c.String(), `
+ element hostports { udp . 53 : 10.244.0.7 . 5353 }
+ element hostport-hairpin { 10.244.0.7 . 10.244.0.7 }
`)
	c = nft.Diff(after[0], before[0])
	wantText(t, c.String(), `
- element hostports { udp . 53 : 10.244.0.7 . 5353 }
- element hostport-hairpin { 10.244.0.7 . 10.244.0.7 }
`)
}

func wantText(t *testing.T, got, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestBadInput(t *testing.T) {
	n := newNetwork(t, netnstest.New(t), t.TempDir())
	if err := n.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/31")}); err == nil {
		t.Error("a pod CIDR without room was taken")
	}
	if err := n.SetPodCIDRs([]netip.Prefix{podCIDR}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []PodSandbox{
		{ID: "../x", NetnsPath: "/x"},
		{ID: "x"},
		{ID: "x", NetnsPath: "/x", HostPorts: []PortMapping{{Protocol: "ICMP", HostPort: 1, ContainerPort: 1}}},
		{ID: "x", NetnsPath: "/no/such/netns"},
	} {
		if _, err := n.Setup(context.Background(), s); err == nil {
			t.Errorf("Setup took %+v", s)
		}
	}
	if err := n.Teardown(context.Background(), "x"); err != nil {
		t.Error(err)
	}
}
