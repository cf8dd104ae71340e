package cluster

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestRoutesTo(t *testing.T) {
	node := func(name, ip string, cidrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
		if ip != "" {
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: ip}}
		}
		return n
	}
	got := fmt.Sprint(routesTo([]*corev1.Node{
		node("c", "192.0.2.3", "10.244.2.0/24", "fd00::/64"),
		node("a", "192.0.2.1", "10.244.0.0/24"),
		node("b", "192.0.2.2", "10.244.1.0/24"),
		node("no-address", "", "10.244.3.0/24"),
		node("no-range", "192.0.2.5"),
	}, "a"))
	if want := "[{10.244.1.0/24 192.0.2.2} {10.244.2.0/24 192.0.2.3}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFurtherNodesShareNoName(t *testing.T) {
	o := Options{DataDir: "/d", NodeName: "vm", Nodes: 3, Suffix: "1a2b"}
	seen := map[string]bool{o.CgroupRoot(): true, o.Table("proxy"): true, o.NodeName: true, o.DataDir: true}
	for _, n := range o.furtherNodes() {
		for _, name := range []string{n.CgroupRoot(), n.Table("proxy"), n.NodeName, n.DataDir} {
			if seen[name] {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
		if len(n.Bridge()) > 15 || n.Nodes != 1 {
			t.Errorf("bridge %s, %d nodes", n.Bridge(), n.Nodes)
		}
	}
}
