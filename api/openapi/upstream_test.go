package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/api/all"
)

var update = flag.Bool("update", false, "write the table of types and the digest of the documents")

// roots are the types the documents name; what those refer to, upstream's generator knows.
func roots(t *testing.T) []string {
	names := map[string]bool{metaTypes + "GetOptions": true} // which custom resources alone name
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

// published are the documents that upstream's sources contain, of a server
// that has every version and feature on (CBOR, which this leaves out), but for lists of enumerated values.
func published(t *testing.T) map[string]any {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = "../../test/reference/upstream"
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "api", "openapi-spec")
	docs := map[string]any{"v2": parse(t, filepath.Join(dir, "swagger.json"))}
	files, err := filepath.Glob(filepath.Join(dir, "v3", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents in %s: %v", dir, err)
	}
	for _, file := range files {
		path := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), "_openapi.json"), "__", "/")
		docs["v3/"+path] = parse(t, file)
	}
	return docs
}

func parse(t *testing.T, file string) (doc any) {
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	return withoutCBOR(doc)
}

func withoutCBOR(v any) any {
	isCBOR := func(v any) bool {
		text, ok := v.(string)
		return ok && strings.HasPrefix(text, "application/") && strings.Contains(text, "cbor")
	}
	switch v := v.(type) {
	case map[string]any:
		for name, e := range v {
			if isCBOR(name) {
				delete(v, name)
				continue
			}
			v[name] = withoutCBOR(e)
		}
	case []any:
		v = slices.DeleteFunc(v, isCBOR)
		for i, e := range v {
			v[i] = withoutCBOR(e)
		}
		return v
	}
	return v
}

// documents are ours, by the same names.
func documents(t *testing.T) map[string][]byte {
	b, err := New(Config{Resources: all.Resources(), Version: "1.37"})
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string][]byte{}
	if docs["v2"], err = b.V2(); err != nil {
		t.Fatal(err)
	}
	for path := range Documents(all.Resources()) {
		if docs["v3/"+path], err = b.V3(path); err != nil {
			t.Fatal(err)
		}
	}
	return docs
}

// absent says why something published need not be in ours.
func absent(place string) (why string) {
	switch {
	case regexp.MustCompile(`v\d(alpha|beta)\d`).MatchString(place):
		return "versions that are off by default"
	case strings.Contains(place, "internal.apiserver.k8s.io"), strings.Contains(place, "lifecycle.k8s.io"):
		return "groups that have such versions only"
	case strings.Contains(place, "/logs"), strings.Contains(place, "/logpath"):
		return "--enable-logs-handler is off by default"
	}
	return ""
}

// withoutEnums leaves out of a document what the published ones are without.
func withoutEnums(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if _, ok := v["enum"].([]any); ok {
			delete(v, "enum")
		}
		if text, ok := v["description"].(string); ok {
			text, _, _ = strings.Cut(text, "Possible enum values:")
			v["description"] = strings.TrimSpace(text)
		}
		for _, e := range v {
			withoutEnums(e)
		}
	case []any:
		for _, e := range v {
			withoutEnums(e)
		}
	}
	return v
}

// compare reports each part that differs, by its place in a document.
func compare(t *testing.T, doc, place string, got, want any) {
	switch {
	case place == "/info/version": // "unversioned" there
		return
	case got == nil && want != nil && absent(place) != "":
		return
	}
	g, isMap := got.(map[string]any)
	w, both := want.(map[string]any)
	if !isMap || !both {
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: %s is %.300s, upstream's %.300s", doc, place, a, b)
		}
		return
	}
	for name := range w {
		if _, ok := g[name]; !ok {
			g[name] = nil
		}
	}
	for name, e := range g {
		compare(t, doc, place+"/"+name, e, w[name])
	}
}

// Every document is the published one, path by path, type by type and property by property.
func TestDocumentsAreUpstreams(t *testing.T) {
	if os.Getenv("SKIFF_TEST_LONG") == "" && !*update {
		t.Skip("reads upstream's sources; SKIFF_TEST_LONG=1 runs it")
	}
	want := published(t)
	ours := documents(t)
	for name, data := range ours {
		if want[name] == nil {
			t.Errorf("upstream has no document %s", name)
			continue
		}
		var got any
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		compare(t, name, "", withoutEnums(got), want[name])
		delete(want, name)
	}
	for name := range want {
		if absent(name) == "" {
			t.Errorf("not served: %s", name)
		}
	}
	if *update && !t.Failed() {
		if err := os.WriteFile("testdata/documents.txt", digest(t, ours), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// digest has a line for each document, which names its content.
func digest(t *testing.T, docs map[string][]byte) []byte {
	var out bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		var doc any
		if err := json.Unmarshal(docs[name], &doc); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %x\n", name, sha256.Sum256(text))
	}
	return out.Bytes()
}

// What TestDocumentsAreUpstreams found equal is still served.
func TestDocumentsStayUpstreams(t *testing.T) {
	want, err := os.ReadFile("testdata/documents.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := digest(t, documents(t)); !bytes.Equal(got, want) {
		t.Errorf("the documents are not upstream's any more; make openapi says where:\n%s\nwant\n%s", got, want)
	}
}
