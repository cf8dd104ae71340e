package apiserver_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/test/samples"
)

// TestEveryKind takes an object of every kind that is served and stored through
// its life (create, apply, patch, status, watch, delete), and reads it in every
// format in which it is served: they all hold the same object.
func TestEveryKind(t *testing.T) {
	s := newServer(t, nil)
	client := dyn(t, s)
	served := servedKinds(t, s)
	objects, err := samples.Objects()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, o := range objects {
		u := &unstructured.Unstructured{Object: o}
		res, ok := served[u.GroupVersionKind()]
		if !ok || !res.has("get") || !res.has("create") {
			continue // reviews are not stored
		}
		seen++
		t.Run(u.GetAPIVersion()+" "+u.GetKind(), func(t *testing.T) {
			at := client.Resource(res.gvr)
			if res.Namespaced {
				const space = "diff" // which the samples name where they must
				u.SetNamespace(space)
				live(t, newRaw(s), res, at.Namespace(space), u)
				return
			}
			live(t, newRaw(s), res, at, u)
		})
	}
	stored := 0
	for gvk, r := range served {
		if r.has("get") && r.has("create") && strings.HasSuffix(gvk.Version, "1") {
			stored++
		}
	}
	if seen < 60 || seen < stored {
		t.Errorf("%d kinds tried, %d are served", seen, stored)
	}
}

type servedKind struct {
	metav1.APIResource
	gvr    schema.GroupVersionResource
	status bool
}

func (k servedKind) has(verb string) bool { return slices.Contains(k.Verbs, verb) }

func servedKinds(t *testing.T, s *apiserver.Server) map[schema.GroupVersionKind]servedKind {
	_, lists, err := typed(t, s).Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	served := map[schema.GroupVersionKind]servedKind{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		status := map[string]bool{}
		for _, r := range l.APIResources {
			if name, ok := strings.CutSuffix(r.Name, "/status"); ok {
				status[name] = true
			}
		}
		for _, r := range l.APIResources {
			if !strings.Contains(r.Name, "/") {
				served[gv.WithKind(r.Kind)] = servedKind{r, gv.WithResource(r.Name), status[r.Name]}
			}
		}
	}
	return served
}

func live(t *testing.T, c raw, res servedKind, at dynamic.ResourceInterface, u *unstructured.Unstructured) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	name := u.GetName()
	w, err := at.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatalf("watch: %v", err)
	}
	defer w.Stop()
	if _, err := at.Create(ctx, u, metav1.CreateOptions{}); err != nil {
		t.Fatalf("create: %v", err)
	}
	applied := &unstructured.Unstructured{Object: map[string]any{"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(),
		"metadata": map[string]any{"name": name, "labels": map[string]any{"applied": "yes"}}}}
	got, err := at.Apply(ctx, name, applied, metav1.ApplyOptions{FieldManager: "applier"})
	if err != nil || got.GetLabels()["applied"] != "yes" {
		t.Errorf("apply: %v, %v", got.GetLabels(), err)
	}
	got, err = at.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{})
	if err != nil || got.GetLabels()["patched"] != "yes" || got.GetLabels()["applied"] != "yes" {
		t.Errorf("patch: %v, %v", got.GetLabels(), err)
	}
	if res.status {
		if got, err = at.Get(ctx, name, metav1.GetOptions{}); err == nil {
			_, err = at.UpdateStatus(ctx, got, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Errorf("status: %v", err)
		}
	}
	sameInEveryFormat(t, c, res, got)
	now, background := int64(0), metav1.DeletePropagationBackground // as nobody collects garbage here
	if err := at.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now, PropagationPolicy: &background}); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if res.Kind == "Namespace" { // its controller empties it, and says so
		if got, err = at.Get(ctx, name, metav1.GetOptions{}); err == nil {
			unstructured.RemoveNestedField(got.Object, "spec", "finalizers")
			_, err = at.Update(ctx, got, metav1.UpdateOptions{}, "finalize")
		}
		if err != nil {
			t.Fatalf("finalize: %v", err)
		}
	}
	follow(ctx, t, w)
}

// follow waits for an object's end: added first, with both labels in between.
func follow(ctx context.Context, t *testing.T, w watch.Interface) {
	labels := map[string]string{}
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			t.Fatalf("the watch does not tell the end; it has told of the labels %v", labels)
		case ev, ok := <-w.ResultChan():
			if !ok {
				t.Fatal("the watch ended")
			}
			if (ev.Type == watch.Added) != first {
				t.Fatalf("%s: %v", ev.Type, ev.Object)
			}
			for k, v := range ev.Object.(*unstructured.Unstructured).GetLabels() {
				labels[k] = v
			}
			if ev.Type == watch.Deleted {
				if labels["applied"] != "yes" || labels["patched"] != "yes" {
					t.Errorf("labels told of: %v", labels)
				}
				return
			}
		}
	}
}

// sameInEveryFormat compares what an object is in JSON, YAML and protobuf.
func sameInEveryFormat(t *testing.T, c raw, res servedKind, u *unstructured.Unstructured) {
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(types); err != nil {
			t.Fatal(err)
		}
	}
	gvk := u.GroupVersionKind()
	path := fmt.Sprintf("/apis/%s/%s", gvk.Group, gvk.Version)
	if gvk.Group == "" {
		path = "/api/" + gvk.Version
	}
	if res.Namespaced {
		path += "/namespaces/" + u.GetNamespace()
	}
	path += "/" + res.Name + "/" + u.GetName()
	var first, version string // as protobuf, which has no place for the kinds of objects within
	formats := []string{codec.JSON, codec.YAML, codec.Protobuf}
	for i, changes := 0, 0; i < len(formats); i++ {
		media := formats[i]
		code, body := c.do(t, "GET", path, "", nil, "Accept", media)
		if code != 200 {
			t.Fatalf("GET in %s: %d %s", media, code, body)
		}
		into, err := types.New(gvk)
		if err != nil {
			t.Fatal(err)
		}
		obj, _, err := codec.New(types).Decode(codec.Request{Media: media, Strict: media != codec.Protobuf, Body: []byte(body), Want: gvk}, into)
		if err != nil {
			t.Fatalf("%s does not decode: %v\n%s", media, err, body)
		}
		data, err := wire.Seal(gvk.GroupVersion().String(), gvk.Kind, obj.(wire.Message))
		if err != nil {
			t.Fatal(err)
		}
		switch now := obj.(metav1.Object).GetResourceVersion(); {
		case i == 0:
			first, version = string(data), now
		case now != version && changes < 10: // the server has written its status meanwhile
			i, changes = -1, changes+1
		case first != string(data):
			t.Errorf("in %s another object than in JSON:\n%+v", media, obj)
		}
	}
}
