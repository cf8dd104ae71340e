package garbagecollector

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/enginetest"
)

var (
	pods  = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	sets  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	nodes = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
)

func discovered() ([]*metav1.APIResourceList, error) {
	verbs := metav1.Verbs{"delete", "list", "watch"}
	return []*metav1.APIResourceList{
		{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "pods", Kind: "Pod", Namespaced: true, Verbs: verbs}, {Name: "nodes", Kind: "Node", Verbs: verbs},
			{Name: "events", Kind: "Event", Namespaced: true, Verbs: verbs}, {Name: "bindings", Kind: "Binding", Verbs: metav1.Verbs{"create"}}}},
		{GroupVersion: "apps/v1", APIResources: []metav1.APIResource{{Name: "replicasets", Kind: "ReplicaSet", Namespaced: true, Verbs: verbs}}},
	}, nil
}

// cluster is a collector over objects in memory; observe plays the monitors.
type cluster struct {
	t     *testing.T
	world *enginetest.World
	md    *enginetest.Metadata
	c     *controller
	q     queue
}

type queue map[string]bool

func (q queue) Add(k string)                       { q[k] = true }
func (q queue) AddAfter(k string, _ time.Duration) { q[k] = true }

func newCluster(t *testing.T) *cluster {
	w := enginetest.New(t)
	cl := &cluster{t: t, world: w, md: enginetest.NewMetadata(), q: queue{}}
	cl.c = newController(w.Env, cl.md, discovered)
	cl.c.ready.Store(true)
	lists, _ := discovered()
	for _, k := range kinds(lists) {
		cl.c.kinds[schema.GroupKind{Group: k.gvr.Group, Kind: k.kind}] = k
		cl.c.monitors[k.gvr] = &monitor{kind: k, graph: cl.c.graph, queue: cl.q}
	}
	return cl
}

func meta(ns, name string, owners ...metav1.OwnerReference) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, OwnerReferences: owners}}
}

func setRef(name string, block ...bool) metav1.OwnerReference {
	r := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name, UID: types.UID(name)}
	if len(block) > 0 {
		r.BlockOwnerDeletion = &block[0]
	}
	return r
}

func podRef(name string, block ...bool) metav1.OwnerReference {
	r := setRef(name, block...)
	r.APIVersion, r.Kind = "v1", "Pod"
	return r
}

func (cl *cluster) observe(only ...schema.GroupVersionResource) {
	cl.t.Helper()
	for gvr, m := range cl.c.monitors {
		if len(only) > 0 && only[0] != gvr {
			continue
		}
		var objs []any
		for _, o := range cl.md.List(gvr) {
			objs = append(objs, o)
		}
		if err := m.Replace(objs, ""); err != nil {
			cl.t.Fatal(err)
		}
	}
}

// settle observes and reconciles until nothing is queued.
func (cl *cluster) settle() *cluster {
	cl.t.Helper()
	for range 30 {
		cl.observe()
		if len(cl.q) == 0 {
			return cl
		}
		for k := range cl.q {
			delete(cl.q, k)
			if err := cl.c.reconcile(context.Background(), k); err != nil {
				if _, later := engine.LaterThan(err); !later {
					cl.q[k] = true
				}
			}
		}
	}
	cl.t.Fatalf("does not settle; queue %v", cl.q)
	return cl
}

func (cl *cluster) expect(gvr schema.GroupVersionResource, want string) {
	cl.t.Helper()
	if got := strings.Join(cl.md.Names(gvr), " "); got != want {
		cl.t.Errorf("%s: got %q, want %q", gvr.Resource, got, want)
	}
}

func (cl *cluster) delete(gvr schema.GroupVersionResource, ns, name string, p metav1.DeletionPropagation) {
	cl.t.Helper()
	if err := cl.md.Resource(gvr).Namespace(ns).Delete(context.Background(), name, metav1.DeleteOptions{PropagationPolicy: &p}); err != nil {
		cl.t.Fatal(err)
	}
}

func TestBackground(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "rs"))
	cl.md.Add(pods, meta("ns", "a", setRef("rs", true)))
	cl.md.Add(pods, meta("ns", "b", setRef("rs", true)))
	cl.md.Add(pods, meta("ns", "free"))
	cl.settle()
	if w := cl.md.Writes(); len(w) > 0 {
		t.Fatalf("wrote %v though all owners live", w)
	}
	cl.delete(sets, "ns", "rs", metav1.DeletePropagationBackground)
	cl.settle()
	cl.expect(pods, "free")
}

func TestForegroundWaitsForBlockingDependents(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "rs"))
	held := meta("ns", "held", setRef("rs", true))
	held.Finalizers = []string{"x/hold"}
	cl.md.Add(pods, held)
	cl.md.Add(pods, meta("ns", "quick", setRef("rs", true)))
	cl.settle()
	cl.delete(sets, "ns", "rs", metav1.DeletePropagationForeground)
	cl.settle()
	cl.expect(sets, "-rs")
	cl.expect(pods, "-held")
	_, _ = cl.md.Resource(pods).Namespace("ns").Patch(context.Background(), "held", types.MergePatchType,
		[]byte(`{"metadata":{"finalizers":[]}}`), metav1.PatchOptions{})
	cl.settle()
	cl.expect(sets, "")
	cl.expect(pods, "")
}

func TestForegroundDoesNotWaitForOthers(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "rs"))
	held := meta("ns", "held", setRef("rs"))
	held.Finalizers = []string{"x/hold"}
	cl.md.Add(pods, held)
	cl.settle()
	cl.delete(sets, "ns", "rs", metav1.DeletePropagationForeground)
	cl.settle()
	cl.expect(sets, "")
	cl.expect(pods, "-held")
}

func TestForegroundDescendsTheTree(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "top"))
	cl.md.Add(pods, meta("ns", "mid", setRef("top", true)))
	cl.md.Add(pods, meta("ns", "leaf", podRef("mid", true)))
	cl.settle()
	cl.delete(sets, "ns", "top", metav1.DeletePropagationForeground)
	cl.settle()
	cl.expect(sets, "")
	cl.expect(pods, "")
	order := strings.Join(cl.md.Writes(), "\n")
	mid, leaf := strings.Index(order, "delete pods/ns/mid Foreground"), strings.Index(order, "delete pods/ns/leaf Background")
	if mid < 0 || leaf < mid {
		t.Errorf("order:\n%s", order)
	}
}

// Two objects that own and block each other must not block each other for ever.
func TestForegroundBreaksCycles(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(pods, meta("ns", "a", podRef("b", true)))
	cl.md.Add(pods, meta("ns", "b", podRef("a", true)))
	cl.settle()
	cl.expect(pods, "a b")
	cl.delete(pods, "ns", "a", metav1.DeletePropagationForeground)
	cl.settle()
	cl.expect(pods, "")
}

func TestOrphan(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "rs"))
	cl.md.Add(sets, meta("ns", "other"))
	cl.md.Add(pods, meta("ns", "a", setRef("rs", true), setRef("other")))
	cl.settle()
	cl.delete(sets, "ns", "rs", metav1.DeletePropagationOrphan)
	cl.settle()
	cl.expect(sets, "other")
	cl.expect(pods, "a")
	if refs := cl.md.List(pods)[0].OwnerReferences; len(refs) != 1 || refs[0].Name != "other" {
		t.Errorf("owners %v", refs)
	}
}

func TestOneLivingOwnerIsEnough(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "rs"))
	cl.md.Add(pods, meta("ns", "a", setRef("rs"), setRef("gone")))
	cl.settle()
	cl.expect(pods, "a")
	if refs := cl.md.List(pods)[0].OwnerReferences; len(refs) != 1 || refs[0].Name != "rs" {
		t.Errorf("dangling owner still there: %v", refs)
	}
}

// The owner went away while nobody watched.
func TestUnobservedOwner(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(pods, meta("ns", "a", setRef("gone")))
	cl.settle()
	cl.expect(pods, "")
}

// The dependent is seen before its owner is: nothing may be deleted.
func TestStaleOwner(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "rs"))
	cl.md.Add(pods, meta("ns", "a", setRef("rs")))
	cl.observe(pods)
	for k := range cl.q {
		if err := cl.c.reconcile(context.Background(), k); err != nil {
			t.Fatal(err)
		}
	}
	cl.expect(pods, "a")
}

// A namesake with another UID is not the owner.
func TestOwnerReplacedByNamesake(t *testing.T) {
	cl := newCluster(t)
	rs := meta("ns", "rs")
	rs.UID = "new"
	cl.md.Add(sets, rs)
	cl.md.Add(pods, meta("ns", "a", setRef("rs")))
	cl.settle()
	cl.expect(pods, "")
	cl.expect(sets, "rs")
}

func TestReferencesAcrossNamespaces(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("elsewhere", "rs"))
	cl.md.Add(pods, meta("ns", "a", setRef("rs")))
	cl.md.Add(nodes, meta("", "n", setRef("rs")))
	cl.settle()
	cl.expect(pods, "")
	cl.expect(nodes, "n") // a cluster-scoped object cannot have a namespaced owner: left alone
	if ev := cl.world.Events(); len(ev) != 1 || !strings.HasPrefix(ev[0], "Warning OwnerRefInvalidNamespace ownerRef [apps/v1/ReplicaSet, namespace: ns, name: rs, uid: rs] does not exist in namespace \"ns\"") {
		t.Errorf("events %q", ev)
	}
}

func TestClusterScopedOwner(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(nodes, meta("", "n"))
	ref := setRef("n")
	ref.APIVersion, ref.Kind = "v1", "Node"
	cl.md.Add(pods, meta("ns", "a", ref))
	cl.settle()
	cl.expect(pods, "a")
	cl.delete(nodes, "", "n", metav1.DeletePropagationBackground)
	cl.settle()
	cl.expect(pods, "")
}

// What was judged has changed meanwhile: the deletion is refused, and judged anew.
func TestConcurrentAdoption(t *testing.T) {
	cl := newCluster(t)
	cl.md.Add(sets, meta("ns", "rs"))
	cl.md.Add(pods, meta("ns", "a", setRef("gone")))
	cl.observe()
	n, deps := cl.c.graph.get("a")
	latest, _ := cl.md.Resource(pods).Namespace("ns").Get(context.Background(), "a", metav1.GetOptions{})
	v, err := cl.c.judge(context.Background(), n, latest.OwnerReferences)
	if err != nil {
		t.Fatal(err)
	}
	cl.md.Add(pods, meta("ns", "a", setRef("rs"))) // somebody adopts it
	if err := cl.c.carryOut(context.Background(), n, latest, decide(latest, v, deps)); err == nil {
		t.Error("deleted though it changed")
	}
	cl.settle()
	cl.expect(pods, "a")
}

func TestUnknownKindIsRetried(t *testing.T) {
	cl := newCluster(t)
	ref := setRef("x")
	ref.Kind = "Widget"
	cl.md.Add(pods, meta("ns", "a", ref))
	cl.observe()
	if err := cl.c.reconcile(context.Background(), "a"); err == nil || !strings.Contains(err.Error(), "no resource serves kind Widget of apps/v1") {
		t.Errorf("error %v", err)
	}
	cl.expect(pods, "a")
}

func TestKinds(t *testing.T) {
	lists, _ := discovered()
	var got []string
	for _, k := range kinds(lists) {
		got = append(got, k.gvr.Resource)
	}
	if s := fmt.Sprint(got); s != "[pods nodes replicasets]" {
		t.Error(s)
	}
}
