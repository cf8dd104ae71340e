package registry_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

// pods is the real resource, without what a cluster adds to a pod.
func pods(t testing.TB) (*registry.Registry, store.Store) {
	resources := all.Resources()
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate, Index: registry.Index(resources)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	i := slices.IndexFunc(resources, func(r *api.Resource) bool { return r.Name == "pods" })
	r, err := registry.New(registry.Config{Resource: resources[i], Store: st})
	if err != nil {
		t.Fatal(err)
	}
	return r, st
}

func createPod(t testing.TB, r *registry.Registry, name, node string) registry.Item {
	t.Helper()
	it, err := r.Create(t.Context(), registry.Write{Namespace: "n"}, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i",
			TerminationMessagePolicy: corev1.TerminationMessageReadFile, ImagePullPolicy: corev1.PullAlways}},
			RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, TerminationGracePeriodSeconds: new(int64)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return it
}

func onNode(name string) registry.Selection {
	return registry.Selection{Fields: fields.OneTermEqualSelector("spec.nodeName", name)}
}

// The pods of a node are found by it, as they come, are bound and go; also
// those that another server stored in a form that cannot be looked into.
func TestPodsByNode(t *testing.T) {
	r, st := pods(t)
	createPod(t, r, "first", "node-1")
	createPod(t, r, "other", "node-2")
	createPod(t, r, "waiting", "")
	listed := func(node string) string {
		p, err := r.List(t.Context(), registry.ListOptions{Selection: onNode(node)})
		if err != nil {
			t.Fatal(err)
		}
		return names(p)
	}
	w, err := r.Watch(t.Context(), registry.WatchOptions{Selection: onNode("node-1")})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	initial, _ := w.Initial()
	if got := names(registry.Page{Items: initial}); got != "first" || listed("node-1") != "first" {
		t.Errorf("node-1 has %q first and %q listed, want its pod alone", got, listed("node-1"))
	}
	seen := func() (out []string) {
		changes, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			_, name := r.Split(c.KV.Key)
			out = append(out, fmt.Sprint(c.Type, " ", name))
		}
		return out
	}
	it, err := r.Get(t.Context(), "n", "waiting", "")
	if err != nil {
		t.Fatal(err)
	}
	obj, _ := r.Object(it)
	pod := obj.(*corev1.Pod)
	pod.Spec.NodeName = "node-1"
	bound, err := wire.Seal("v1", "Pod", pod)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, value []byte) {
		if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: "/registry/pods/n/" + name, Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	put("waiting", bound)
	if got := fmt.Sprint(seen()); got != "[ADDED waiting]" || listed("node-1") != "first waiting" {
		t.Errorf("after a binding node-1 sees %s and lists %q", got, listed("node-1"))
	}
	createPod(t, r, "another", "node-2")
	if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: "/registry/pods/n/first"}}}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(seen()); got != "[DELETED first]" || listed("node-1") != "waiting" {
		t.Errorf("after a deletion node-1 sees %s and lists %q", got, listed("node-1"))
	}
	foreign := `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"json","namespace":"n"},"spec":{"nodeName":"node-1"}}`
	put("json", []byte(foreign))
	if got := fmt.Sprint(seen()); got != "[ADDED json]" || listed("node-1") != "json waiting" || listed("node-2") != "another other" {
		t.Errorf("beside a pod stored as JSON node-1 sees %s and lists %q, node-2 lists %q", got, listed("node-1"), listed("node-2"))
	}
}

// BenchmarkPodsOfANode lists the 20 pods of one node among 10,000 pods.
func BenchmarkPodsOfANode(b *testing.B) {
	r, _ := pods(b)
	for i := range 10_000 {
		createPod(b, r, fmt.Sprint("p-", i), fmt.Sprint("node-", i%500))
	}
	b.ReportAllocs()
	for b.Loop() {
		if p, err := r.List(b.Context(), registry.ListOptions{Selection: onNode("node-7")}); err != nil || len(p.Items) != 20 {
			b.Fatal(len(p.Items), err)
		}
	}
}

// BenchmarkNodesWatch creates pods on one of 1,000 nodes that each watch theirs.
func BenchmarkNodesWatch(b *testing.B) {
	r, _ := pods(b)
	var first *registry.Watch
	for i := range 1000 {
		woken := make(chan struct{}, 1)
		w, err := r.Watch(b.Context(), registry.WatchOptions{Selection: onNode(fmt.Sprint("node-", i)), Wake: func() {
			select {
			case woken <- struct{}{}:
			default:
			}
		}})
		if err != nil {
			b.Fatal(err)
		}
		defer w.Close()
		if _, _, err := w.Poll(); err != nil {
			b.Fatal(err)
		}
		if i == 0 {
			first = w
			continue
		}
		go func() {
			for {
				select {
				case <-woken:
					if _, _, err := w.Poll(); err != nil {
						return
					}
				case <-b.Context().Done():
					return
				}
			}
		}()
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		createPod(b, r, fmt.Sprint("p-", i), "node-0")
		if changes, _, err := first.Poll(); err != nil || len(changes) != 1 {
			b.Fatal(len(changes), err)
		}
	}
}
