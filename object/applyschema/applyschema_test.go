package applyschema

import (
	"bytes"
	"compress/gzip"
	"encoding/gob"
	"flag"
	"os"
	"testing"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

var update = flag.Bool("update", false, "write schema.gob.gz")

// The file is client-go's schema. It is compared as YAML, the form client-go
// has it in.
func TestSchemaIsClientGos(t *testing.T) {
	tv, err := applyconfigurations.NewTypeConverter(scheme.Scheme).ObjectToTyped(&corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}})
	if err != nil {
		t.Fatal(err)
	}
	types := tv.Schema().Types
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
		t.Errorf("schema.gob.gz is not client-go's (%d and %d bytes as YAML): go test ./object/applyschema -update", len(got), len(want))
	}
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
