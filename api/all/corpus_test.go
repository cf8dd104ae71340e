package all_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/transcode"
	"github.com/skiff-project/skiff/object/wire"
)

// TestCorpus reads upstream's own objects, full in every field, of each release
// since v1.33: of each, the JSON, the YAML and the protobuf are one object here,
// which is encoded to the same protobuf and, from that, to the same JSON.
func TestCorpus(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatalf("where is the module k8s.io/api: %v", err)
	}
	corpus := filepath.Join(strings.TrimSpace(string(dir)), "testdata")
	files, err := filepath.Glob(filepath.Join(corpus, "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var plans transcode.Plans
	seen := map[schema.GroupVersionKind]bool{}
	for _, file := range files {
		base := strings.TrimSuffix(file, ".json")
		if strings.HasSuffix(base, ".after_roundtrip") {
			continue
		}
		var kind runtime.TypeMeta
		body, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(body, &kind)
		}
		if err != nil {
			t.Fatal(err)
		}
		gvk := schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind)
		if !scheme.Scheme.Recognizes(gvk) { // admission reviews, image policies; what has gone since
			continue
		}
		seen[gvk] = true
		t.Run(strings.TrimPrefix(base, corpus), func(t *testing.T) { forms(t, &plans, gvk, base) })
	}
	served := 0
	for _, r := range all.Resources() {
		for _, v := range r.Versions {
			gvk := schema.GroupVersionKind{Group: r.Group, Version: v.Name, Kind: r.Kind}
			if !scheme.Scheme.Recognizes(gvk) {
				continue // definitions and APIServices are of other modules
			}
			served++
			if !seen[gvk] {
				t.Errorf("%v is served, and no object of it is here", gvk)
			}
		}
	}
	if served < 70 {
		t.Errorf("only %d kinds are served", served)
	}
}

// forms compares the three files of one object.
func forms(t *testing.T, plans *transcode.Plans, gvk schema.GroupVersionKind, file string) {
	strict := strings.Contains(file, "/HEAD/")
	bodies, objects := map[string][]byte{}, map[string]runtime.Object{}
	for suffix, media := range map[string]string{".json": codec.JSON, ".yaml": codec.YAML, ".pb": codec.Protobuf} {
		body, err := os.ReadFile(file + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if media == codec.JSON { // what is of no type (RawExtension) keeps its blanks else
			var compact bytes.Buffer
			if err := json.Compact(&compact, body); err != nil {
				t.Fatal(err)
			}
			body = compact.Bytes()
		}
		into, err := scheme.Scheme.New(gvk)
		if err != nil {
			t.Fatal(err)
		}
		obj, got, err := codec.New(scheme.Scheme).Decode(codec.Request{Media: media, Strict: strict, Body: body, Want: gvk}, into)
		if err != nil || *got != gvk {
			t.Fatalf("%s is a %v: %v", suffix, got, err)
		}
		bodies[suffix], objects[suffix] = body, obj
	}
	for _, suffix := range []string{".yaml", ".pb"} {
		if !equality.Semantic.DeepEqual(objects[".json"], objects[suffix]) {
			t.Errorf("%s holds another object than .json:\n%+v\n%+v", suffix, objects[suffix], objects[".json"])
		}
	}
	// Releases have added fields, and taken away what was alpha.
	if now, err := os.ReadFile(file + ".after_roundtrip.pb"); err == nil {
		bodies[".pb"] = now
	}
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	sealed, err := wire.Seal(apiVersion, kind, objects[".json"].(wire.Message))
	if err != nil || !bytes.Equal(sealed, bodies[".pb"]) {
		t.Errorf("in protobuf it is %x (%v), upstream's is %x", sealed, err, bodies[".pb"])
	}
	plan, err := plans.For(reflect.TypeOf(objects[".json"]).Elem())
	if err != nil {
		t.Fatal(err)
	}
	bare, err := plan.AppendJSON(nil, wire.Raw(sealed), 0)
	if err != nil {
		t.Fatal(err)
	}
	var have bytes.Buffer
	if err := json.Indent(&have, codec.JSONWithKind(kind, apiVersion, bare), "", "  "); err != nil {
		t.Fatal(err)
	}
	if want, _ := codec.Pretty(objects[".json"]); have.String() != string(want) {
		t.Errorf("from protobuf the JSON is %s, not %s", have.String(), want)
	}
}
