package all_test

import (
	"encoding/json"
	"math/rand"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/api/apiregistration"
)

var verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

func TestDescriptionsAreCoherent(t *testing.T) {
	names, prefixes := map[string]bool{}, map[string]string{}
	for _, r := range all.Resources() {
		id := r.Name + "." + r.Group
		if names[id] {
			t.Errorf("%s is listed twice", id)
		}
		names[id] = true
		if r.Singular == "" || r.Kind == "" || strings.ToLower(r.Kind) != r.Singular {
			t.Errorf("%s: singular %q of kind %q", id, r.Singular, r.Kind)
		}
		for _, v := range r.Verbs {
			if !slices.Contains(verbs, v) {
				t.Errorf("%s: verb %q is none", id, v)
			}
		}
		if other, ok := prefixes[r.Prefix()]; ok && !r.Virtual && r.StoredKind().Group == r.Group {
			t.Errorf("%s and %s both live in %s", id, other, r.Prefix())
		}
		prefixes[r.Prefix()] = id
		for _, v := range r.Versions {
			want := schema.GroupVersionKind{Group: r.Group, Version: v.Name, Kind: r.Kind}
			known := scheme.Scheme
			switch r.Group {
			case apiextensions.Group:
				known = apiextensions.Scheme()
			case apiregistration.Group:
				known = apiregistration.Scheme()
			}
			if gvks, _, err := known.ObjectKinds(v.New()); err != nil || !slices.Contains(gvks, want) {
				t.Errorf("%s: New makes %v, not %v (%v)", id, gvks, want, err)
			}
			if v.NewList == nil {
				continue
			}
			if got := reflect.TypeOf(v.NewList()).Elem().Name(); got != r.Kind+"List" {
				t.Errorf("%s: NewList makes %s", id, got)
			}
		}
		if r.Strategy.Selectable != nil {
			r.Strategy.Selectable(stored(r).New())
		}
	}
}

// stored is the version whose type the strategy gets; a resource that shares
// another group's storage has no such version of its own.
func stored(r *api.Resource) api.Version {
	if r.StorageGroup != "" {
		return api.Version{New: func() api.Object {
			o, err := r.Versions[0].ToStorage(r.Versions[0].New())
			if err != nil {
				panic(err)
			}
			return o
		}}
	}
	for _, v := range r.Versions {
		if v.Name == r.StorageVersion {
			return v
		}
	}
	return r.Versions[0]
}

func fill(seed int64, o api.Object) {
	f := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs), rand.NewSource(seed), serializer.NewCodecFactory(scheme.Scheme))
	f.NilChance(0.4)
	f.SkipFieldsWithPattern(regexp.MustCompile("^OpenAPIV3Schema$")) // schemas hold schemas without end
	f.Fill(o)
}

// random makes an object as a client might send it, by way of JSON.
func random(t *testing.T, v api.Version, seed int64) api.Object {
	t.Helper()
	o := v.New()
	fill(seed, o)
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	o = v.New()
	if json.Unmarshal(raw, o) != nil {
		return v.New()
	}
	return o
}

func text(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestDefaultsAreIdempotent(t *testing.T) {
	for _, r := range all.Resources() {
		for _, v := range r.Versions {
			if v.Default == nil {
				continue
			}
			for seed := int64(1); seed < 20; seed++ {
				o := random(t, v, seed)
				v.Default(o)
				once := text(t, o)
				v.Default(o)
				if twice := text(t, o); once != twice {
					t.Fatalf("%s %s: defaults change a second time\n%s\n%s", r.Name, v.Name, once, twice)
				}
			}
		}
	}
}

func TestRowsFillTheirColumns(t *testing.T) {
	for _, r := range all.Resources() {
		if (r.Columns == nil) != (r.Cells == nil) {
			t.Errorf("%s has columns or cells, but not both", r.Name)
		}
		if r.Columns == nil {
			continue
		}
		want := len(r.Columns)
		if !r.WholeTable {
			want++
		}
		for seed := int64(1); seed < 20; seed++ {
			if got := len(r.Cells(random(t, r.Versions[0], seed), metav1.Now())); got != want {
				t.Fatalf("%s: %d cells for %d columns", r.Name, got, want)
			}
		}
	}
}

// TestRulesSurviveAnyObject runs every rule on random objects and on empty
// ones: whatever a client sends, nothing may panic.
func TestRulesSurviveAnyObject(t *testing.T) {
	ctx := t.Context()
	for _, r := range all.Resources() {
		v := stored(r)
		for seed := int64(0); seed < 40; seed++ {
			make := func(n int64) api.Object {
				o := v.New()
				if n > 0 {
					o = random(t, v, n)
				}
				if v.Default != nil {
					v.Default(o)
				}
				return o
			}
			s, o, old := r.Strategy, make(seed), make((seed+1)%40)
			if s.PrepareForCreate != nil {
				s.PrepareForCreate(ctx, o)
			}
			if s.Validate != nil {
				s.Validate(ctx, o)
			}
			if s.Warnings != nil {
				s.Warnings(ctx, o, nil)
				s.Warnings(ctx, o, old)
			}
			if s.PrepareForUpdate != nil {
				s.PrepareForUpdate(ctx, o, old)
			}
			if s.ValidateUpdate != nil {
				s.ValidateUpdate(ctx, o, old)
			}
			if s.Selectable != nil {
				s.Selectable(o)
			}
			for _, sub := range r.Subresources {
				if sub.View != nil {
					o := make(seed)
					sub.View.PrepareForUpdate(ctx, o, old)
					if sub.View.ValidateUpdate != nil {
						sub.View.ValidateUpdate(ctx, o, old)
					}
				}
				if sub.Scale != nil {
					sub.Scale.Get(o)
					sub.Scale.Set(o, 3)
					if spec, _ := sub.Scale.Get(o); spec.Replicas != 3 {
						t.Errorf("%s: scale was set to 3 and reads %d", r.Name, spec.Replicas)
					}
				}
			}
		}
	}
}

func TestVersionsConvertBothWays(t *testing.T) {
	for _, r := range all.Resources() {
		for _, v := range r.Versions {
			if v.ToStorage == nil {
				continue
			}
			base := stored(r)
			for seed := int64(1); seed < 30; seed++ {
				o := random(t, v, seed)
				o.SetAnnotations(nil)
				first, err := v.ToStorage(o)
				if err != nil {
					t.Fatal(err)
				}
				if base.Default != nil {
					base.Default(first)
				}
				out, err := v.FromStorage(first)
				if err != nil {
					t.Fatal(err)
				}
				again, err := v.ToStorage(out)
				if err != nil {
					t.Fatal(err)
				}
				// A first pass may complete what one version cannot leave out.
				out, err = v.FromStorage(again)
				if err != nil {
					t.Fatal(err)
				}
				third, err := v.ToStorage(out)
				if err != nil {
					t.Fatal(err)
				}
				if a, b := text(t, again), text(t, third); a != b {
					t.Fatalf("%s %s: lost on the way\n%s\n%s", r.Name, v.Name, a, b)
				}
			}
		}
	}
}
