package all_test

import (
	"encoding/json"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/wire"
)

// TestEveryFormatHoldsTheObject takes random objects of every served version
// through JSON, YAML and protobuf, which is also how they are stored.
func TestEveryFormatHoldsTheObject(t *testing.T) {
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(types); err != nil {
			t.Fatal(err)
		}
	}
	c := codec.New(types)
	for _, r := range all.Resources() {
		for _, v := range r.Versions {
			gvk := schema.GroupVersionKind{Group: r.Group, Version: v.Name, Kind: r.Kind}
			for seed := int64(1); seed < 20; seed++ {
				first := random(t, v, seed)
				first.GetObjectKind().SetGroupVersionKind(gvk)
				o := through(t, c, codec.Protobuf, gvk, first, v.New())
				// Protobuf knows no empty list, and no kinds of objects within others.
				if r.Kind != "StatefulSet" && !equality.Semantic.DeepEqual(o, first) {
					t.Fatalf("%s in protobuf:\n%s\nwant\n%s", gvk, text(t, o), text(t, first))
				}
				for _, media := range []string{codec.JSON, codec.YAML, codec.Protobuf} {
					if got := through(t, c, media, gvk, o, v.New()); sorted(t, got) != sorted(t, o) {
						t.Fatalf("%s in %s:\n%s\nwant\n%s", gvk, media, text(t, got), text(t, o))
					}
				}
			}
		}
	}
}

// sorted is an object's JSON with sorted keys, as YAML leaves the JSON that some objects hold.
func sorted(t *testing.T, o any) string {
	var v any
	d := json.NewDecoder(strings.NewReader(text(t, o)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return text(t, v)
}

// through is what becomes of an object that is encoded and decoded again.
func through(t *testing.T, c *codec.Codec, media string, gvk schema.GroupVersionKind, o, into runtime.Object) runtime.Object {
	t.Helper()
	var body []byte
	var err error
	switch media {
	case codec.JSON:
		body, err = codec.AppendJSON(nil, o)
	case codec.YAML:
		body, err = codec.ToYAML(o)
	default:
		body, err = wire.Seal(gvk.GroupVersion().String(), gvk.Kind, o.(wire.Message))
	}
	if err != nil {
		t.Fatalf("%s: %v", gvk, err)
	}
	got, _, err := c.Decode(codec.Request{Media: media, Strict: media != codec.Protobuf, Body: body, Want: gvk}, into)
	if err != nil {
		t.Fatalf("%s in %s: %v\n%s", gvk, media, err, body)
	}
	got.GetObjectKind().SetGroupVersionKind(gvk)
	return got
}

// TestFieldPaths finds the fields that selectors name in what is stored, and finds what the object says.
func TestFieldPaths(t *testing.T) {
	found := 0
	for _, r := range all.Resources() {
		if len(r.Strategy.FieldPaths) == 0 {
			continue
		}
		v := stored(r)
		for seed := int64(0); seed < 50; seed++ {
			o := v.New()
			if seed > 0 { // the first is empty
				o = random(t, v, seed)
			}
			sealed, err := wire.Seal(v.Name, r.Kind, o.(wire.Message))
			if err != nil {
				t.Fatal(err)
			}
			fields := r.Strategy.Selectable(o)
			for name, path := range r.Strategy.FieldPaths {
				want, ok := fields[name]
				got := ""
				wire.Texts(wire.Raw(sealed), [][]uint64{path}, func(_ int, text string) { got = text })
				if !ok || got != want {
					t.Errorf("%s of %s at %v: %q, want %q (selectable: %v)", name, r.Kind, path, got, want, ok)
				}
				if want != "" {
					found++
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("%d fields were not empty", found)
	}
}
