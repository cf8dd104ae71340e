package registry_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

// things is a plain namespaced resource of ConfigMaps whose data key "color" can be selected by.
func things() *api.Resource {
	return &api.Resource{
		Name: "things", Singular: "thing", Kind: "ConfigMap", Namespaced: true, StoragePrefix: "things",
		Versions: []api.Version{api.Versioned[corev1.ConfigMap, corev1.ConfigMapList]("v1", nil)},
		Strategy: api.Strategy{Selectable: api.Select(func(c *corev1.ConfigMap) fields.Set { return fields.Set{"data.color": c.Data["color"]} })},
	}
}

func newRegistry(t *testing.T) (*registry.Registry, store.Store) {
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	r, err := registry.New(registry.Config{Resource: things(), Store: st})
	if err != nil {
		t.Fatal(err)
	}
	return r, st
}

func create(t *testing.T, r *registry.Registry, name, color string) registry.Item {
	t.Helper()
	it, err := r.Create(t.Context(), registry.Write{Namespace: "n"}, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Data: map[string]string{"color": color},
	})
	if err != nil {
		t.Fatal(err)
	}
	return it
}

func names(p registry.Page) string {
	var out []string
	for _, kv := range p.Items {
		out = append(out, kv.Key[strings.LastIndexByte(kv.Key, '/')+1:])
	}
	return strings.Join(out, " ")
}

// TestContinueAfterCompaction: an old page token is answered with 410 and a
// fresh token that continues, inconsistently, from the same place.
func TestContinueAfterCompaction(t *testing.T) {
	r, st := newRegistry(t)
	for _, n := range []string{"a", "b", "c"} {
		create(t, r, n, "red")
	}
	page, err := r.List(t.Context(), registry.ListOptions{Limit: 1})
	if err != nil || names(page) != "a" || *page.Remaining != 2 {
		t.Fatalf("%+v %v", page, err)
	}
	create(t, r, "d", "red")
	if err := st.Compact(t.Context(), st.Status().Revision); err != nil {
		t.Fatal(err)
	}
	_, err = r.List(t.Context(), registry.ListOptions{Limit: 1, Continue: page.Continue})
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != 410 || status.Status().Reason != metav1.StatusReasonExpired || status.Status().Continue == "" {
		t.Fatalf("expired token: %v", err)
	}
	page, err = r.List(t.Context(), registry.ListOptions{Continue: status.Status().Continue})
	if err != nil || names(page) != "b c d" {
		t.Errorf("with the fresh token: %s, %v", names(page), err)
	}
	if _, err = r.Watch(t.Context(), registry.WatchOptions{ResourceVersion: "1"}); !apierrors.IsResourceExpired(err) {
		t.Errorf("watch from before the compaction: %v", err)
	}
	if _, err = r.List(t.Context(), registry.ListOptions{ResourceVersion: "2", Match: metav1.ResourceVersionMatchExact}); !apierrors.IsResourceExpired(err) {
		t.Errorf("list from before the compaction: %v", err)
	}
}

// TestContinueTokensAreUpstreams: kube-apiserver gives and takes the same bytes. Its tokens start
// below the prefix listed; those of its cache have a slash there, those of its etcd client none.
func TestContinueTokensAreUpstreams(t *testing.T) {
	const (
		cacheNamespace = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NCwic3RhcnQiOiIvYlx1MDAwMCJ9"        // rv 4, start "/b\x00"
		cacheAll       = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NCwic3RhcnQiOiIvbi9iXHUwMDAwIn0"     // rv 4, start "/n/b\x00"
		etcdNamespace  = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NCwic3RhcnQiOiJiXHUwMDAwIn0"         // rv 4, start "b\x00"
		etcdAll        = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NCwic3RhcnQiOiJuL2JcdTAwMDAifQ"      // rv 4, start "n/b\x00"
		newest         = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiYlx1MDAwMCJ9"        // rv -1, start "b\x00"
		outside        = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NCwic3RhcnQiOiIvLi4vbS9hXHUwMDAwIn0" // rv 4, start "/../m/a\x00"
	)
	r, st := newRegistry(t)
	for _, n := range []string{"a", "b", "c"} {
		create(t, r, n, "red")
	}
	in := registry.Selection{Namespace: "n"}
	for _, tc := range []struct {
		name   string
		in     registry.Selection
		gives  string
		takes  []string
		remain string
	}{
		{"a namespace", in, cacheNamespace, []string{cacheNamespace, etcdNamespace, newest}, "c"},
		{"all namespaces", registry.Selection{}, cacheAll, []string{cacheAll, etcdAll}, "c"},
	} {
		page, err := r.List(t.Context(), registry.ListOptions{Selection: tc.in, Limit: 2})
		if err != nil || names(page) != "a b" || page.Continue != tc.gives {
			t.Errorf("%s: %s, %q, %v; want the token %q", tc.name, names(page), page.Continue, err, tc.gives)
		}
		for _, token := range tc.takes {
			page, err := r.List(t.Context(), registry.ListOptions{Selection: tc.in, Limit: 2, Continue: token})
			if err != nil || names(page) != tc.remain || page.Continue != "" {
				t.Errorf("%s with %s: %s, %v", tc.name, token, names(page), err)
			}
		}
		if _, err := r.List(t.Context(), registry.ListOptions{Selection: tc.in, Continue: outside}); !apierrors.IsBadRequest(err) {
			t.Errorf("%s with a token that leads out of it: %v", tc.name, err)
		}
	}
	create(t, r, "d", "red")
	if err := st.Compact(t.Context(), st.Status().Revision); err != nil {
		t.Fatal(err)
	}
	_, err := r.List(t.Context(), registry.ListOptions{Selection: in, Continue: cacheNamespace})
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Continue != newest {
		t.Errorf("a token that is too old: %v; want the fresh one %q", err, newest)
	}
}

func TestSelection(t *testing.T) {
	r, _ := newRegistry(t)
	create(t, r, "a", "red")
	create(t, r, "b", "blue")
	create(t, r, "c", "red")
	for _, tc := range []struct{ labels, fields, want string }{
		{"", "data.color=red", "a c"},
		{"name!=a", "data.color=red", "c"},
		{"", "metadata.name=b", "b"},
		{"", "metadata.name=b,data.color=red", ""},
		{"", "metadata.namespace=other", ""},
		{"name in (a,b)", "", "a b"},
	} {
		sel := registry.Selection{Namespace: "n"}
		sel.Labels, _ = labels.Parse(tc.labels)
		if tc.fields != "" {
			sel.Fields = fields.ParseSelectorOrDie(tc.fields)
		}
		p, err := r.List(t.Context(), registry.ListOptions{Selection: sel})
		if err != nil || names(p) != tc.want {
			t.Errorf("%q %q: got %q, want %q, %v", tc.labels, tc.fields, names(p), tc.want, err)
		}
	}
	if err := r.CheckFields(fields.ParseSelectorOrDie("spec.x=y")); !apierrors.IsBadRequest(err) {
		t.Errorf("unknown field: %v", err)
	}
}

// TestWatchSelection: what begins to match is added, what ceases is deleted
// and shown as it last matched.
func TestWatchSelection(t *testing.T) {
	r, _ := newRegistry(t)
	w, err := r.Watch(t.Context(), registry.WatchOptions{Selection: registry.Selection{Fields: fields.ParseSelectorOrDie("data.color=red")}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	paint := func(color string) {
		_, _, err := r.Update(t.Context(), registry.Update{Write: registry.Write{Namespace: "n", Name: "a"}, Unconditional: true,
			Change: func(_ context.Context, old api.Object) (api.Object, error) {
				old.(*corev1.ConfigMap).Data["color"] = color
				return old, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
	}
	create(t, r, "a", "blue")
	paint("red")
	paint("green")
	paint("red")
	if _, _, err := r.Delete(t.Context(), registry.Write{Namespace: "n", Name: "a"}, &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var got []watch.EventType
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(got) < 4 {
		changes, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			got = append(got, c.Type)
			obj, err := r.Object(registry.Item{KV: c.KV, ResourceVersion: c.ResourceVersion})
			if err != nil || obj.(*corev1.ConfigMap).Data["color"] != "red" {
				t.Errorf("%s shows %+v, %v", c.Type, obj, err)
			}
		}
	}
	want := []watch.EventType{watch.Added, watch.Deleted, watch.Added, watch.Deleted}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("events %v, want %v", got, want)
			break
		}
	}
}

// TestConcurrentUpdates: no increment is lost.
func TestConcurrentUpdates(t *testing.T) {
	r, _ := newRegistry(t)
	create(t, r, "a", "")
	const writers = 20
	errs := make(chan error, writers)
	for range writers {
		go func() {
			_, _, err := r.Update(t.Context(), registry.Update{Write: registry.Write{Namespace: "n", Name: "a"}, Unconditional: true,
				Change: func(_ context.Context, old api.Object) (api.Object, error) {
					old.(*corev1.ConfigMap).Data["color"] += "x"
					return old, nil
				}})
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	it, err := r.Get(t.Context(), "n", "a", "")
	if err != nil {
		t.Fatal(err)
	}
	obj, _ := r.Object(it)
	if got := obj.(*corev1.ConfigMap).Data["color"]; len(got) != writers {
		t.Errorf("%d increments of %d", len(got), writers)
	}
}

func TestExpiry(t *testing.T) {
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	res := things()
	res.Strategy.TTLSeconds = 3600
	r, err := registry.New(registry.Config{Resource: res, Store: st})
	if err != nil {
		t.Fatal(err)
	}
	a, b := create(t, r, "a", ""), create(t, r, "b", "")
	if a.KV.Lease == 0 || a.KV.Lease != b.KV.Lease {
		t.Errorf("leases %d and %d: objects written together share one", a.KV.Lease, b.KV.Lease)
	}
	if r, err = registry.New(registry.Config{Resource: res, Store: st, TTL: 10 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	c := create(t, r, "c", "")
	if l, err := st.Leases().TimeToLive(t.Context(), c.KV.Lease); err != nil || l.TTL != 660 {
		t.Errorf("a lease of %+v, %v: want 10 minutes, and one in which others may share it", l, err)
	}
}

// What another API server stored as JSON is read; what is damaged names its key.
func TestForeignForms(t *testing.T) {
	r, st := newRegistry(t)
	for name, value := range map[string]string{
		"json":    `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"json","namespace":"n"},"data":{"color":"red"}}`,
		"other":   `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"other","namespace":"n"}}`,
		"damaged": "k8\x00\x01",
	} {
		if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: "/registry/things/n/" + name, Value: []byte(value)}}}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) (api.Object, error) {
		it, err := r.Get(t.Context(), "n", name, "")
		if err != nil {
			t.Fatal(err)
		}
		return r.Object(it)
	}
	obj, err := read("json")
	if err != nil || obj.(*corev1.ConfigMap).Data["color"] != "red" || obj.GetResourceVersion() == "" {
		t.Errorf("%v, %v", obj, err)
	}
	for name, want := range map[string]string{"other": "it is a /v1, Kind=Secret, not a /v1, Kind=ConfigMap", "damaged": "neither protobuf nor JSON"} {
		_, err := read(name)
		if err == nil || !strings.Contains(err.Error(), "stored object /registry/things/n/"+name+" is unreadable: "+want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
