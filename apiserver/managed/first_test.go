package managed

import (
	"encoding/json"
	"math/rand"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
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

// types are all stored types, as the server describes them.
func types() []*Type {
	out := []*Type{New().Scale}
	for _, r := range all.Resources() {
		for i := range r.Versions {
			v := &r.Versions[i]
			if r.Virtual || v.ToStorage != nil || r.Group == apiextensions.Group || r.Group == apiregistration.Group { // the library's alone
				continue
			}
			kind := schema.GroupVersionKind{Group: r.Group, Version: v.Name, Kind: r.Kind}
			out = append(out, &Type{Resource: r, Version: v, Kind: kind, Stored: r.StoredKind(), New: v.New})
		}
	}
	return out
}

// random makes an object with about one in nils of its pointers, lists and
// maps empty; by way of JSON, if through, as a client's would be.
func random(t testing.TB, typ *Type, seed int64, nils float64, through bool) api.Object {
	t.Helper()
	o := typ.Version.New()
	f := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs), rand.NewSource(seed), serializer.NewCodecFactory(scheme.Scheme))
	f.NilChance(nils)
	f.NumElements(0, 3)
	f.Fill(o)
	if through {
		raw, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		o = typ.Version.New()
		if json.Unmarshal(raw, o) != nil {
			o = typ.Version.New()
		}
	}
	// The fuzzer's texts are mostly beyond ASCII, where the library does it all.
	o.SetManagedFields(nil)
	o.GetObjectKind().SetGroupVersionKind(typ.Stored)
	return o
}

// plain replaces what is not ASCII in all texts of an object.
func plain(t testing.TB, typ *Type, o api.Object) api.Object {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Map(func(r rune) rune {
		if r > '~' {
			return 'a' + r%26
		}
		return r
	}, string(raw))
	p := typ.Version.New()
	if json.Unmarshal([]byte(text), p) != nil {
		return o
	}
	p.GetObjectKind().SetGroupVersionKind(typ.Stored)
	return p
}

func entries(t testing.TB, o api.Object) string {
	t.Helper()
	list := o.GetManagedFields()
	for i := range list {
		list[i].Time = nil
	}
	raw, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// same compares the two ways on one object; it reports whether ours did it.
func same(t testing.TB, f *Fields, typ *Type, o api.Object) bool {
	t.Helper()
	ours, theirs := o.DeepCopyObject().(api.Object), o.DeepCopyObject().(api.Object)
	if !f.first(typ, ours, "m") {
		return false
	}
	theirs = f.update(typ, "", nil, theirs, "m")
	if got, want := entries(t, ours), entries(t, theirs); got != want {
		t.Fatalf("%s:\n%s\nlibrary:\n%s\nobject: %+v", typ.Kind, got, want, o)
	}
	return true
}

// TestFirstWriteEqualsTheLibrary shows for random objects of every type that
// the first manager's fields are byte for byte what the library makes them.
func TestFirstWriteEqualsTheLibrary(t *testing.T) {
	f := New()
	for _, typ := range types() {
		done, tried := 0, 0
		for seed := int64(1); seed <= 60; seed++ {
			o := random(t, typ, seed, []float64{0.2, 0.6, 0.9}[seed%3], seed%2 == 0)
			for _, o := range []api.Object{o, plain(t, typ, o)} {
				tried++
				if same(t, f, typ, o) {
					done++
				}
			}
		}
		if same(t, f, typ, typ.Version.New()) {
			t.Errorf("%s: an empty object is owned by somebody", typ.Kind)
		}
		t.Logf("%s: %d of %d", typ.Kind, done, tried)
	}
}

// TestFirstWriteIsOurs: the usual objects take the short way.
func TestFirstWriteIsOurs(t *testing.T) {
	f := New()
	for _, typ := range types() {
		o := typ.Version.New()
		o.SetLabels(map[string]string{"app.kubernetes.io/name": "web"})
		o.SetOwnerReferences([]metav1.OwnerReference{{UID: "u-1", Name: "n", Kind: "K", APIVersion: "v1"}})
		if pod, ok := o.(*corev1.Pod); ok {
			pod.Spec = corev1.PodSpec{
				Containers: []corev1.Container{{
					Name: "web", Image: "nginx", Ports: []corev1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 443, Protocol: "TCP"}},
					Env: []corev1.EnvVar{{Name: "A", Value: "b"}},
				}},
				Volumes:     []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
				Tolerations: []corev1.Toleration{{Key: "k"}},
			}
		}
		o.GetObjectKind().SetGroupVersionKind(typ.Stored)
		if long := len(typ.Resource.Strategy.Reset) > 0; same(t, f, typ, o) == long {
			t.Errorf("%s takes the long way, or should", typ.Kind)
		}
	}
}

func TestResetFields(t *testing.T) {
	f := New()
	owned := func(o api.Object) string {
		var all []string
		for _, e := range o.GetManagedFields() {
			all = append(all, e.Manager+" "+e.Subresource+" "+string(e.FieldsV1.Raw))
		}
		return strings.Join(all, "\n")
	}
	for name, tc := range map[string]struct {
		kind, sub, want string
		change          func(o api.Object)
	}{
		"a request's spec is nobody's":        {"CertificateSigningRequest", "", "", func(api.Object) {}},
		"labels stay where they are":          {"Deployment", "status", `{"f:metadata":{"f:labels":{".":{},"f:a":{}}}}`, func(o api.Object) { o.SetLabels(nil) }},
		"annotations of a status are its own": {"Deployment", "status", `"f:annotations"`, func(o api.Object) { o.SetAnnotations(map[string]string{"b": "c"}) }},
		"metadata stays where it is":          {"FlowSchema", "status", `{"f:metadata":{"f:labels":{".":{},"f:a":{}}}}`, func(o api.Object) { o.SetLabels(map[string]string{"b": "c"}) }},
	} {
		t.Run(name, func(t *testing.T) {
			typ := typeOf(t, tc.kind)
			o := typ.New()
			o.SetName("x")
			if tc.want != "" {
				o.SetLabels(map[string]string{"a": "b"})
			} else {
				o.(*certificatesv1.CertificateSigningRequest).Spec.SignerName = "example.com/s"
			}
			o = f.Update(typ, "", nil, o, "one")
			if tc.want != "" {
				next := o.DeepCopyObject().(api.Object)
				tc.change(next)
				o = f.Update(typ, tc.sub, o, next, "two")
			}
			if got := owned(o); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
