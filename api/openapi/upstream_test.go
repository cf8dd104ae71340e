package openapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"

	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/api/all"
)

var update = flag.Bool("update", false, "write the table of types and the digest of the documents")

// roots are the types the documents name; what those refer to, upstream's generator knows.
func roots(t *testing.T) []string {
	names := map[string]bool{}
	b := &Builder{cfg: Config{Resources: all.Resources()}, types: func(name string) (spec.Schema, error) {
		names[name] = true
		return spec.Schema{}, nil
	}}
	if _, err := b.V2(); err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(names))
}

// upstreamTypes are the definitions as upstream's kube-apiserver has them.
func upstreamTypes(t *testing.T) map[string]json.RawMessage {
	cmd := exec.Command("go", append([]string{"run", "./openapi"}, roots(t)...)...)
	cmd.Dir = "../../test/reference/upstream"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false -trimpath")
	var failure bytes.Buffer
	cmd.Stderr = &failure
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &failure)
	}
	var types map[string]json.RawMessage
	if err := json.Unmarshal(out, &types); err != nil {
		t.Fatal(err)
	}
	return types
}

// The table is what upstream's generator makes of the sources of the types.
func TestTypesAreUpstreams(t *testing.T) {
	if os.Getenv("SKIFF_TEST_LONG") == "" && !*update {
		t.Skip("compiles upstream's kube-apiserver; SKIFF_TEST_LONG=1 runs it")
	}
	want := upstreamTypes(t)
	parts := map[string]map[string]json.RawMessage{"meta.json.gz": {}, "types.json.gz": {}}
	for name, raw := range want {
		if isMeta(name) {
			parts["meta.json.gz"][name] = raw
		} else {
			parts["types.json.gz"][name] = raw
		}
	}
	for file, part := range parts {
		if *update {
			write(t, file, part)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := unpack(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(part)) {
			if !bytes.Equal(got[name], part[name]) {
				t.Errorf("%s: %s is\n%s\nupstream's is\n%s", file, name, got[name], part[name])
			}
			delete(got, name)
		}
		for name := range got {
			t.Errorf("%s: %s is in no document", file, name)
		}
	}
}

func write(t *testing.T, file string, part map[string]json.RawMessage) {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(z).Encode(part); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
