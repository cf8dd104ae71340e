package transcode

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
)

// object is what the generated types offer.
type object interface {
	metav1.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// objects are the built-in types by name.
func objects() map[string]reflect.Type {
	types := map[string]reflect.Type{}
	for gvk, t := range scheme.Scheme.AllKnownTypes() {
		if _, ok := reflect.New(t).Interface().(object); ok {
			types[gvk.String()] = t
		}
	}
	types["CustomResourceDefinition"] = reflect.TypeFor[apiextensionsv1.CustomResourceDefinition]()
	return types
}

// TestEveryType: for every built-in type, the JSON is that of the decoded object.
func TestEveryType(t *testing.T) {
	types := objects()
	if len(types) < 100 {
		t.Fatalf("only %d types", len(types))
	}
	var fillers []*randfill.Filler // of full objects and of sparse ones
	for i, nils := range []float64{0.2, 0.9} {
		f := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs), rand.NewSource(int64(i)), serializer.NewCodecFactory(scheme.Scheme))
		fillers = append(fillers, f.NilChance(nils).NumElements(0, 2).MaxDepth(22))
	}
	var plans Plans
	for _, name := range slices.Sorted(maps.Keys(types)) {
		typ := types[name]
		p, err := plans.For(typ)
		if err != nil {
			// These hold JSON schemas, which hold schemas.
			if !errors.Is(err, ErrNoPlan) || typ != reflect.TypeFor[apiextensionsv1.CustomResourceDefinition]() {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		for i := range 10 {
			in := reflect.New(typ).Interface().(object)
			fillers[i%2].Fill(in)
			raw, err := in.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			same(t, name, p, typ, raw)
		}
		same(t, name+", empty", p, typ, nil)
	}
}

// same compares with encoding/json's account of the decoded object.
func same(t *testing.T, name string, p *Plan, typ reflect.Type, raw []byte) {
	t.Helper()
	obj := reflect.New(typ).Interface().(object)
	if err := obj.Unmarshal(raw); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	obj.SetResourceVersion("4711")
	var want bytes.Buffer
	if err := json.NewEncoder(&want).Encode(obj); err != nil {
		t.Logf("%s: encoding/json: %v", name, err)
		return
	}
	got, err := p.AppendJSON([]byte("before "), raw, 4711)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if g, w := string(got), "before "+strings.TrimSuffix(want.String(), "\n"); g != w {
		i := 0
		for i < len(g) && i < len(w) && g[i] == w[i] {
			i++
		}
		t.Fatalf("%s: at %d\n got …%.200s\nwant …%.200s", name, i, g[max(0, i-60):], w[max(0, i-60):])
	}
}

var podType = reflect.TypeFor[corev1.Pod]()

// TestOddBytes: what no generated encoder writes is read as protobuf says, or refused.
func TestOddBytes(t *testing.T) {
	p, err := new(Plans).For(podType)
	if err != nil {
		t.Fatal(err)
	}
	enc := func(pod corev1.Pod) []byte {
		raw, err := pod.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	a := enc(corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"x": "1", "b": "2"}}})
	b := enc(corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"x": "3", "a": "<&>\u2028\xff\x01\t\""}},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}},
	})
	same(t, "two messages in one", p, podType, slices.Concat(a, b))
	same(t, "unknown fields", p, podType, slices.Concat(a, []byte{15<<3 | 2, 1, 'x', 14 << 3, 5, 13<<3 | 5, 1, 2, 3, 4, 12<<3 | 1, 1, 2, 3, 4, 5, 6, 7, 8}))
	for i := range b {
		out, err := p.AppendJSON(nil, b[:i], 1)
		if err != nil {
			continue
		}
		if err := new(corev1.Pod).Unmarshal(b[:i]); err != nil || !json.Valid(out) {
			t.Errorf("cut at %d: %v, %s", i, err, out)
		}
	}
	for _, fields := range []string{`{"f:a":{"k:{\"x\":\"<\"}":{".":{}}}}`, `{"a":1}`, `{ "a": {} }`, `{"a":{}`, `{}x`, `{"a" "b"}`, `nonsense`, `{"a":{},}`} {
		raw := enc(corev1.Pod{ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{FieldsV1: metav1.NewFieldsV1(fields)}}}})
		out, err := p.AppendJSON(nil, raw, 1)
		if json.Valid([]byte(fields)) {
			same(t, fields, p, podType, raw)
		} else if err == nil {
			t.Errorf("%s went through: %s", fields, out)
		}
	}
}

func FuzzPod(f *testing.F) {
	p, err := new(Plans).For(podType)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		pod := &corev1.Pod{}
		out, err := p.AppendJSON(nil, raw, 1)
		if err != nil || pod.Unmarshal(raw) != nil {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("%s", out)
		}
	})
}

func BenchmarkPod(b *testing.B) {
	p, err := new(Plans).For(podType)
	if err != nil {
		b.Fatal(err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "default", UID: "0b9b1b0e-6e0c-4c1e-9a53-3e5c7d3b8a11", CreationTimestamp: metav1.Now(),
			Labels: map[string]string{"app": "web", "tier": "frontend"}, ManagedFields: []metav1.ManagedFieldsEntry{{
				Manager: "x", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:labels":{".":{},"f:app":{},"f:tier":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"web\"}":{".":{},"f:args":{},"f:env":{".":{},"k:{\"name\":\"MODE\"}":{".":{},"f:name":{},"f:value":{}}},"f:image":{},"f:imagePullPolicy":{},"f:name":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{}}}`),
			}}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "registry.example.com/web:v1.2.3", Args: []string{"--port=8080"}, Env: []corev1.EnvVar{{Name: "MODE", Value: "production"}}}}},
	}
	pod.SetGroupVersionKind(schema.GroupVersionKind{})
	raw, err := pod.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("transcode", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf, _ = p.AppendJSON(buf[:0], raw, 1)
		}
	})
	b.Run("decode and encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			o := &corev1.Pod{}
			if err := o.Unmarshal(raw); err != nil {
				b.Fatal(err)
			}
			if _, err := json.Marshal(o); err != nil {
				b.Fatal(err)
			}
		}
	})
}
