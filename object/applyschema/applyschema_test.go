package applyschema

import (
	"bytes"
	"compress/gzip"
	"encoding/gob"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	apiextensionsopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	aggregatoropenapi "k8s.io/kube-aggregator/pkg/generated/openapi"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/schemaconv"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

var update = flag.Bool("update", false, "write schema.gob.gz")

// The file is upstream's schema. It is compared as YAML, the form client-go
// has it in.
func TestSchemaIsUpstreams(t *testing.T) {
	tv, err := applyconfigurations.NewTypeConverter(scheme.Scheme).ObjectToTyped(&corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}})
	if err != nil {
		t.Fatal(err)
	}
	types := slices.Concat(tv.Schema().Types, more(t, tv.Schema(), "io.k8s.api.autoscaling.v1.Scale",
		"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
		"io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService"))
	if *update {
		write(t, types)
	}
	data, err := os.ReadFile("schema.gob.gz")
	if err != nil {
		t.Fatal(err)
	}
	var p typed.Parser
	if err := unpack(data, &p); err != nil {
		t.Fatal(err)
	}
	got, want := text(t, p.Schema.Types), text(t, types)
	if !bytes.Equal(got, want) {
		t.Errorf("schema.gob.gz is not upstream's (%d and %d bytes as YAML): go test ./object/applyschema -update", len(got), len(want))
	}
}

// more are the named types and those they are made of, as far as have does not have them.
func more(t *testing.T, have *schema.Schema, names ...string) (types []schema.TypeDef) {
	models := map[string]*spec.Schema{}
	for _, definitions := range []common.GetOpenAPIDefinitions{apiextensionsopenapi.GetOpenAPIDefinitions, aggregatoropenapi.GetOpenAPIDefinitions} {
		for name, d := range definitions(func(name string) spec.Ref { return spec.MustCreateRef("#/components/schemas/" + name) }) {
			models[name] = &d.Schema
		}
	}
	all, err := schemaconv.ToSchemaFromOpenAPI(models, false)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var need func(ref schema.TypeRef)
	atom := func(a schema.Atom) {
		if a.List != nil {
			need(a.List.ElementType)
		}
		if a.Map != nil {
			need(a.Map.ElementType)
			slices.SortFunc(a.Map.Fields, func(a, b schema.StructField) int { return strings.Compare(a.Name, b.Name) })
			for _, f := range a.Map.Fields {
				need(f.Type)
			}
		}
	}
	need = func(ref schema.TypeRef) {
		if ref.NamedType == nil {
			atom(ref.Inlined)
			return
		}
		if _, ok := have.FindNamedType(*ref.NamedType); ok || seen[*ref.NamedType] {
			return
		}
		seen[*ref.NamedType] = true
		def, ok := all.FindNamedType(*ref.NamedType)
		if !ok {
			t.Fatalf("upstream's OpenAPI lacks %s", *ref.NamedType)
		}
		types = append(types, def)
		atom(def.Atom)
	}
	for _, name := range names {
		need(schema.TypeRef{NamedType: &name})
	}
	slices.SortFunc(types, func(a, b schema.TypeDef) int { return strings.Compare(a.Name, b.Name) })
	return types
}

func text(t *testing.T, types []schema.TypeDef) []byte {
	out, err := yaml.Marshal(types)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func write(t *testing.T, types []schema.TypeDef) {
	gob.Register(map[string]any{})
	for _, typ := range types {
		if typ.Map == nil {
			continue
		}
		for i, f := range typ.Fields {
			typ.Fields[i].Default = named(f.Default)
		}
	}
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err == nil {
		err = gob.NewEncoder(z).Encode(types)
	}
	if err == nil {
		err = z.Close()
	}
	if err == nil {
		err = os.WriteFile("schema.gob.gz", buf.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// named turns the keys of maps into strings; gob writes no others.
func named(v any) any {
	m, ok := v.(map[any]any)
	if !ok {
		return v
	}
	out := map[string]any{}
	for k, v := range m {
		out[k.(string)] = named(v)
	}
	return out
}

func BenchmarkUnpack(b *testing.B) {
	for b.Loop() {
		var p typed.Parser
		if err := unpack(packed, &p); err != nil {
			b.Fatal(err)
		}
	}
}
