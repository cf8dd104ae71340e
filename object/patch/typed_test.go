package patch

import (
	"encoding/json"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
	kjson "sigs.k8s.io/json"
)

// whole applies a patch by way of the whole document.
func whole(obj, into runtime.Object, patch []byte, strategic bool) bool {
	if strategic {
		strict, err := Strategic(obj, patch, true, into)
		return err == nil && len(strict) == 0
	}
	doc, err := json.Marshal(obj)
	if err != nil {
		return false
	}
	merged, strict, err := Merge(doc, patch, true)
	if err != nil || len(strict) > 0 {
		return false
	}
	strict, err = kjson.UnmarshalStrict(merged, into)
	return err == nil && len(strict) == 0
}

// filled is a random object as it comes out of the store.
func filled(t *testing.T, kind schema.GroupVersionKind, r *rand.Rand) runtime.Object {
	t.Helper()
	o, err := scheme.Scheme.New(kind)
	if err != nil {
		t.Fatal(err)
	}
	f := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs), r, serializer.NewCodecFactory(scheme.Scheme))
	f.NilChance([]float64{0.3, 0.8}[r.Intn(2)])
	f.NumElements(0, 3)
	f.Fill(o)
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	stored, _ := scheme.Scheme.New(kind)
	if json.Unmarshal(raw, stored) != nil {
		return nil
	}
	m, ok := stored.(interface {
		Marshal() ([]byte, error)
		Unmarshal([]byte) error
	})
	if !ok {
		return nil
	}
	if raw, err = m.Marshal(); err != nil {
		return nil
	}
	out, _ := scheme.Scheme.New(kind)
	if err := out.(interface{ Unmarshal([]byte) error }).Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	out.GetObjectKind().SetGroupVersionKind(kind)
	return out
}

// less takes most of a patch away, and spoils it now and then.
func less(r *rand.Rand, v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		if r.Intn(40) == 0 {
			return []any{nil, "x", 1.5, map[string]any{"a": nil}, []any{nil}, map[string]any{}}[r.Intn(6)]
		}
		return v
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if r.Intn(2) == 0 && len(m) > 1 {
			delete(m, k)
			continue
		}
		m[k] = less(r, m[k])
	}
	if r.Intn(60) == 0 {
		m["unknown"] = nil
	}
	return m
}

// directed puts a directive into one of a patch's objects.
func directed(r *rand.Rand, patch []byte) []byte {
	opens := []int{}
	for i, c := range patch {
		if c == '{' && i+1 < len(patch) && patch[i+1] == '"' && i > 0 && patch[i-1] == ':' {
			opens = append(opens, i+1)
		}
	}
	if len(opens) == 0 {
		return patch
	}
	d := []string{`"$patch":"replace",`, `"$patch":"delete",`, `"$retainKeys":["name"],`, `"$patch":"merge",`}[r.Intn(4)]
	return slices.Insert(slices.Clone(patch), opens[r.Intn(len(opens))], []byte(d)...)
}

func sorted(t *testing.T, o runtime.Object) string {
	t.Helper()
	raw, err := json.Marshal(o)
	var v any
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(raw, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, _ = json.Marshal(v)
	return string(raw)
}

// TestTypedEqualsTheDocument: a patch that is applied in place ends in the
// object that the whole document ends in, for random patches of every type.
func TestTypedEqualsTheDocument(t *testing.T) {
	done := map[bool]int{}
	kinds := slices.SortedFunc(maps.Keys(scheme.Scheme.AllKnownTypes()), func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	for _, kind := range kinds {
		if sample, err := scheme.Scheme.New(kind); err != nil {
			continue
		} else if _, ok := sample.(metav1.Object); !ok || kind.Version == runtime.APIVersionInternal {
			continue
		}
		for seed := range int64(3) {
			r := rand.New(rand.NewSource(seed))
			from, to := filled(t, kind, r), filled(t, kind, r)
			if from == nil || to == nil {
				continue
			}
			a, _ := json.Marshal(from)
			b, _ := json.Marshal(to)
			for _, strategic := range []bool{false, true} {
				made, err := jsonpatch.CreateMergePatch(a, b)
				if strategic {
					made, err = strategicpatch.CreateTwoWayMergePatch(a, b, from)
				}
				if err != nil {
					continue
				}
				for range 4 {
					if r.Intn(3) == 0 {
						made = directed(r, made)
					}
					var v any
					if err := json.Unmarshal(made, &v); err != nil {
						t.Fatal(err)
					}
					patch, _ := json.Marshal(less(r, v))
					ours := from.DeepCopyObject()
					if !Typed(ours, patch, strategic) {
						continue
					}
					done[strategic]++
					theirs, _ := scheme.Scheme.New(kind)
					if !whole(from, theirs, patch, strategic) {
						t.Fatalf("%s: %s is refused by way of the document", kind, patch)
					}
					// By the document, raw JSON in an object is sorted even where the patch does not reach.
					if got, want := sorted(t, ours), sorted(t, theirs); got != want {
						t.Fatalf("%s %s, strategic: %t\n%s\nwith the document:\n%s\nof:\n%s", kind, patch, strategic, got, want, a)
					}
				}
			}
		}
	}
	if t.Logf("%v were applied in place", done); done[false] < 100 || done[true] < 100 {
		t.Errorf("only %v were applied in place", done)
	}
}

// TestUsualPatchesAreTyped: the patches there are most of need no whole document.
func TestUsualPatchesAreTyped(t *testing.T) {
	for _, tc := range []struct {
		strategic bool
		patch     string
		want      bool
	}{
		{false, `{"metadata":{"labels":{"turn":"1","app":null}}}`, true},
		{false, `{"metadata":{"annotations":{"a":"b"},"finalizers":["a/b"]},"spec":{"nodeName":"n"}}`, true},
		{true, `{"metadata":{"uid":"u"},"status":{"$setElementOrder/conditions":[{"type":"Ready"}],"conditions":[{"type":"Ready","status":"True"}],"phase":"Running"}}`, true},
		{true, `{"spec":{"containers":[{"name":"web","image":"other"}]}}`, true},
		{true, `{"metadata":{"$patch":"replace","name":"other","labels":{"a":"b"}}}`, true},
		{true, `{"metadata":{"labels":{"$patch":"replace","a":"b"}}}`, true},
		{true, `{"spec":{"$retainKeys":["nodeName"],"nodeName":"n"}}`, true},
		{true, `{"metadata":{"$patch":"delete"}}`, true},
		{true, `{"metadata":{"finalizers":["a/c"],"$deleteFromPrimitiveList/finalizers":["a/b"]},"status":{"phase":"Running"}}`, true},
		{true, `{"status":{"$patch":"merge","phase":"Running"}}`, false},
		{false, `{"metadata":{"labels":{"turn":1}}}`, false},
		{false, `{"spek":{}}`, false},
		{false, `{"kind":"Node"}`, false},
		{false, `{"metadata":{"labels":{"a":"b","a":"c"}}}`, false},
		{true, `{"$patch":"replace","metadata":{}}`, false},
		{false, `null`, false},
		{false, `[]`, false},
		{false, `{`, false},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"app": "web"}, Finalizers: []string{"a/b"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "nginx"}}}}
		before, theirs := pod.DeepCopy(), &corev1.Pod{}
		if got := Typed(pod, []byte(tc.patch), tc.strategic); got != tc.want {
			t.Errorf("%s: %t", tc.patch, got)
		}
		if tc.want && (!whole(before, theirs, []byte(tc.patch), tc.strategic) || sorted(t, pod) != sorted(t, theirs)) {
			t.Errorf("%s: %s\nwith the document: %s", tc.patch, sorted(t, pod), sorted(t, theirs))
		}
	}
}
