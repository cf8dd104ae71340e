package podnet

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func pod(change func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns"}, Spec: v1.PodSpec{DNSPolicy: v1.DNSClusterFirst}}
	if change != nil {
		change(p)
	}
	return p
}

func TestHostsFile(t *testing.T) {
	p := pod(func(p *v1.Pod) {
		p.Spec.HostAliases = []v1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"foo", "bar"}}}
	})
	want := "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n10.0.0.1\tweb.sub.ns.svc.cluster.local\tweb\n" +
		"\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n"
	if got := string(Hosts(p, []string{"10.0.0.1"}, "web", "sub.ns.svc.cluster.local", nil)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	p = pod(func(p *v1.Pod) { p.Spec.HostNetwork = true })
	if got := string(Hosts(p, nil, "n", "", []byte("127.0.0.1 x\n"))); got != "# Kubernetes-managed hosts file (host network).\n127.0.0.1 x\n" {
		t.Errorf("host network: %q", got)
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + "-b"
	override := "db.example"
	for _, c := range []struct {
		change       func(*v1.Pod)
		host, domain string
	}{
		{nil, "web", ""},
		{func(p *v1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "h", "s" }, "h", "s.ns.svc.cluster.local"},
		{func(p *v1.Pod) { p.Name = long }, strings.Repeat("a", 62), ""},
		{func(p *v1.Pod) { p.Spec.HostnameOverride = &override }, "db.example", ""},
	} {
		h, d, err := Hostname(pod(c.change), "cluster.local")
		if err != nil || h != c.host || d != c.domain {
			t.Errorf("got %q %q %v, want %q %q", h, d, err, c.host, c.domain)
		}
	}
	yes := true
	if _, err := KernelHostname(strings.Repeat("a", 60), "svc.x", &yes); err == nil {
		t.Error("a full name beyond 64 characters was accepted")
	}
}

func TestDNSPolicies(t *testing.T) {
	two := "2"
	host, err := ParseResolvConf(strings.NewReader("# c\nnameserver 9.9.9.9\nsearch a. b\noptions ndots:1 rotate\n"))
	if err != nil {
		t.Fatal(err)
	}
	r := Resolver{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local"}
	r.Host.Servers, r.Host.Searches, r.Host.Options = host.Servers, host.Searches, host.Options
	for name, c := range map[string]struct {
		change func(*v1.Pod)
		want   string
	}{
		"cluster first": {nil, "10.96.0.10|ns.svc.cluster.local,svc.cluster.local,cluster.local,a,b|ndots:5"},
		"host network":  {func(p *v1.Pod) { p.Spec.HostNetwork = true }, "9.9.9.9|a,b|ndots:1,rotate"},
		"with host net": {func(p *v1.Pod) { p.Spec.HostNetwork = true; p.Spec.DNSPolicy = v1.DNSClusterFirstWithHostNet }, "10.96.0.10|ns.svc.cluster.local,svc.cluster.local,cluster.local,a,b|ndots:5"},
		"none and own config": {func(p *v1.Pod) {
			p.Spec.DNSPolicy = v1.DNSNone
			p.Spec.DNSConfig = &v1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"x"}, Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}
		}, "1.1.1.1|x|edns0,ndots:2"},
		"merged": {func(p *v1.Pod) {
			p.Spec.DNSConfig = &v1.PodDNSConfig{Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &two}}}
		}, "10.96.0.10|ns.svc.cluster.local,svc.cluster.local,cluster.local,a,b|ndots:2"},
	} {
		got, _ := r.DNS(pod(c.change))
		if s := show(got); s != c.want {
			t.Errorf("%s: got %s, want %s", name, s, c.want)
		}
	}
	_, warn := (&Resolver{}).DNS(pod(nil))
	if warn["MissingClusterDNS"] == "" {
		t.Error("no warning without cluster DNS")
	}
}

func show(c *runtimeapi.DNSConfig) string {
	return strings.Join(c.Servers, ",") + "|" + strings.Join(c.Searches, ",") + "|" + strings.Join(c.Options, ",")
}
