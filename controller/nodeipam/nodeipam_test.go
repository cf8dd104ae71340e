package nodeipam

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/enginetest"
)

func node(name string, cidrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR = cidrs[0]
	}
	return n
}

func cidrs(w *enginetest.World, name string) string {
	n, err := w.Client.CoreV1().Nodes().Get(w.T.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	return n.Spec.PodCIDR + " " + strings.Join(n.Spec.PodCIDRs, ",")
}

func config(all string, size int) Config {
	return Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix(all)}, MaskSizes: []int{size}}
}

func TestAssignsFreeBlocks(t *testing.T) {
	w := enginetest.New(t, node("old", "10.244.1.0/24"))
	w.Build(New(w.Env, config("10.244.0.0/16", 24))).Observe()
	for i := range 3 {
		w.Put(node(fmt.Sprintf("n%d", i)))
		w.Settle()
	}
	for name, want := range map[string]string{"n0": "10.244.0.0/24 10.244.0.0/24", "n1": "10.244.2.0/24 10.244.2.0/24",
		"n2": "10.244.3.0/24 10.244.3.0/24", "old": "10.244.1.0/24 10.244.1.0/24"} {
		if got := cidrs(w, name); got != want {
			t.Errorf("%s got %s, want %s", name, got, want)
		}
	}
}

func TestDualStack(t *testing.T) {
	w := enginetest.New(t, node("n"))
	w.Build(New(w.Env, Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10::/48")},
		MaskSizes: []int{24, 64}})).Settle()
	if got := cidrs(w, "n"); got != "10.244.0.0/24 10.244.0.0/24,fd00:10::/64" {
		t.Error(got)
	}
}

func TestFullThenFreed(t *testing.T) {
	w := enginetest.New(t, node("a", "10.0.0.0/25"), node("b", "10.0.0.128/25"), node("c"))
	w.Build(New(w.Env, config("10.0.0.0/24", 25))).Observe()
	if err := w.Reconcile("c"); err == nil {
		t.Fatal("no error though nothing is free")
	}
	if ev := w.Events(); len(ev) != 1 || ev[0] != "Normal CIDRNotAvailable Node c status is now: CIDRNotAvailable" {
		t.Errorf("events %q", ev)
	}
	w.Remove(node("a"))
	w.Observe()
	if err := w.Reconcile("c"); err != nil {
		t.Fatal(err)
	}
	if got := cidrs(w, "c"); got != "10.0.0.0/25 10.0.0.0/25" {
		t.Error(got)
	}
}

// The cache does not show what was assigned a moment ago: the node keeps its block.
func TestStaleCacheAssignsTheSameBlock(t *testing.T) {
	w := enginetest.New(t, node("n"))
	w.Build(New(w.Env, config("10.244.0.0/16", 24))).Observe()
	for range 3 {
		_ = w.Reconcile("n")
	}
	for _, l := range w.Writes() {
		if !strings.Contains(l, "10.244.0.0/24") {
			t.Errorf("another block: %s", l)
		}
	}
}

func TestServiceRangeIsKeptOut(t *testing.T) {
	cfg := config("10.96.0.0/12", 16)
	cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/14")}
	w := enginetest.New(t, node("n"))
	w.Build(New(w.Env, cfg)).Settle()
	if got := cidrs(w, "n"); got != "10.100.0.0/16 10.100.0.0/16" {
		t.Error(got)
	}
}

func TestBadConfig(t *testing.T) {
	w := enginetest.New(t)
	for _, cfg := range []Config{{}, config("10.0.0.0/24", 16), config("fd00::/16", 64)} {
		if _, err := New(w.Env, cfg); err == nil {
			t.Errorf("%+v accepted", cfg)
		}
	}
}

func TestPoolBlocksAreDisjointAndInside(t *testing.T) {
	for _, c := range []struct {
		all  string
		bits int
	}{{"10.0.0.0/20", 26}, {"fd00:10::/56", 68}, {"fd00::/60", 64}} {
		all := netip.MustParsePrefix(c.all)
		p, err := newPool(all, c.bits)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[netip.Prefix]bool{}
		for range p.size {
			b, ok := p.take()
			if !ok || seen[b] || !all.Contains(b.Addr()) || b.Masked() != b {
				t.Fatalf("%s: bad block %s", c.all, b)
			}
			seen[b] = true
			if first, last, ok := p.span(b); !ok || first != last || p.block(first) != b {
				t.Fatalf("%s: span of %s is %d-%d", c.all, b, first, last)
			}
		}
		if _, ok := p.take(); ok {
			t.Errorf("%s: more blocks than fit", c.all)
		}
	}
}
