package codec

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"

	"github.com/skiff-project/skiff/object/wire"
)

func newCodec() *Codec {
	s := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(s))
	return New(s)
}

var cmKind = corev1.SchemeGroupVersion.WithKind("ConfigMap")

func TestDecode(t *testing.T) {
	pb, _ := wire.Seal("v1", "ConfigMap", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	for _, tc := range []struct {
		name, media, body string
		strict            bool
		kind, err         string
	}{
		{"JSON", JSON, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, true, "ConfigMap", ""},
		{"kind left out", JSON, `{"metadata":{"name":"a"}}`, true, "ConfigMap", ""},
		{"YAML", YAML, "metadata: {name: a}\n", true, "ConfigMap", ""},
		{"protobuf", Protobuf, string(pb), true, "ConfigMap", ""},
		{"unknown field", JSON, `{"metadata":{"name":"a"},"x":1}`, true, "ConfigMap", `strict decoding error: unknown field "x"`},
		{"unknown field forgiven", JSON, `{"metadata":{"name":"a"},"x":1}`, false, "ConfigMap", ""},
		{"duplicate field", JSON, `{"metadata":{"name":"a"},"data":{"k":"1","k":"2"}}`, true, "ConfigMap", `duplicate field "data.k"`},
		{"names are case sensitive", JSON, `{"metadata":{"name":"a"},"Data":{"k":"1"}}`, true, "ConfigMap", `unknown field "Data"`},
		{"another kind", JSON, `{"apiVersion":"v1","kind":"Secret"}`, true, "Secret", ""},
		{"no such kind", JSON, `{"apiVersion":"v1","kind":"Nope"}`, true, "Nope", `no kind "Nope" is registered`},
		{"truncated", JSON, `{"metadata":`, true, "", "unexpected end of JSON input"},
		{"not protobuf", Protobuf, "abc", true, "", "does not appear to be a protobuf message"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			obj, gvk, err := newCodec().Decode(Request{Media: tc.media, Strict: tc.strict, Body: []byte(tc.body), Want: cmKind}, &corev1.ConfigMap{})
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			if tc.kind != "" && gvk.Kind != tc.kind {
				t.Errorf("kind %v, want %s", gvk, tc.kind)
			}
			if cm, ok := obj.(*corev1.ConfigMap); ok && err == nil && cm.Name != "a" {
				t.Errorf("decoded %+v", cm)
			}
		})
	}
}

func TestJSONWithKind(t *testing.T) {
	for bare, want := range map[string]string{
		`{"metadata":{}}`: `{"kind":"ConfigMap","apiVersion":"v1","metadata":{}}`,
		`{}`:              `{"kind":"ConfigMap","apiVersion":"v1"}`,
	} {
		if got := string(JSONWithKind("ConfigMap", "v1", []byte(bare))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzDecode: no body makes a decoder panic, and what decodes encodes again.
func FuzzDecode(f *testing.F) {
	pb, _ := wire.Seal("v1", "ConfigMap", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"a": "b"}})
	f.Add(0, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","labels":{"a":"b"}},"data":{"k":"v"}}`))
	f.Add(1, []byte("metadata:\n  name: a\ndata: {k: v}\n"))
	f.Add(2, pb)
	c := newCodec()
	f.Fuzz(func(t *testing.T, media int, body []byte) {
		m := []string{JSON, YAML, Protobuf}[uint(media)%3]
		obj, _, err := c.Decode(Request{Media: m, Strict: media%2 == 0, Body: body, Want: cmKind}, &corev1.ConfigMap{})
		if err != nil {
			return
		}
		if _, err := AppendJSON(nil, obj); err != nil {
			t.Errorf("decoded but cannot be encoded: %v", err)
		}
	})
}
