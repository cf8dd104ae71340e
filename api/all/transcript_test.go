package all_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/all"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected outputs in testdata")

// TestTranscripts replays testdata/*.txt. A file holds cases: a line with the
// command ("default pods", "create services", "update pods", "row pods"), YAML
// documents ("---" between the old and the new object of an update), a line
// "----", and what is expected, up to an empty line.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { replay(t, file) })
	}
}

func replay(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, c := range strings.Split(strings.TrimRight(string(raw), "\n"), "\n\n") {
		head, rest, _ := strings.Cut(c, "\n")
		input, want, ok := strings.Cut(rest, "\n----\n")
		if !ok && !strings.HasSuffix(rest, "\n----") {
			t.Fatalf("case %q lacks its line ----", head)
		}
		input = strings.TrimSuffix(input, "\n----")
		got := strings.TrimRight(perform(t, head, input), "\n")
		if got != strings.TrimRight(want, "\n") && !*rewrite {
			t.Errorf("%s\n%s\ngot:\n%s\nwant:\n%s", head, input, got, want)
		}
		fmt.Fprintf(&out, "%s\n%s\n----\n%s\n\n", head, input, got)
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(strings.TrimRight(out.String(), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func perform(t *testing.T, head, input string) string {
	t.Helper()
	words := strings.Fields(head)
	if len(words) < 2 {
		t.Fatalf("no command in %q", head)
	}
	var r *api.Resource
	for _, have := range all.Resources() {
		if have.Name == strings.TrimSuffix(words[1], ":") {
			r = have
			break
		}
	}
	if r == nil {
		t.Fatalf("no resource %q", words[1])
	}
	v := stored(r)
	var objs []api.Object
	for _, doc := range strings.Split(input, "\n---\n") {
		o := v.New()
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Fatalf("%s: %v", head, err)
		}
		if v.Default != nil {
			v.Default(o)
		}
		objs = append(objs, o)
	}
	switch words[0] {
	case "default":
		raw, err := yaml.Marshal(objs[0])
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	case "row":
		now := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
		var cells []string
		for _, c := range r.Cells(objs[0], now) {
			cells = append(cells, fmt.Sprint(c))
		}
		return strings.Join(cells, " | ")
	case "create":
		return create(t, r, objs[0])
	case "update":
		return update(t, r, objs[0], objs[1])
	}
	t.Fatalf("no command %q", words[0])
	return ""
}

func create(t *testing.T, r *api.Resource, o api.Object) string {
	var lines []string
	if r.Strategy.PrepareForCreate != nil {
		r.Strategy.PrepareForCreate(t.Context(), o)
	}
	for _, e := range r.Strategy.Validate(t.Context(), o) {
		lines = append(lines, e.Error())
	}
	if r.Strategy.Warnings != nil {
		for _, w := range r.Strategy.Warnings(t.Context(), o, nil) {
			lines = append(lines, "Warning: "+w)
		}
	}
	if len(lines) == 0 {
		return "ok"
	}
	return strings.Join(lines, "\n")
}

func update(t *testing.T, r *api.Resource, old, o api.Object) string {
	if r.Strategy.PrepareForCreate != nil {
		r.Strategy.PrepareForCreate(t.Context(), old)
	}
	if r.Strategy.PrepareForUpdate != nil {
		r.Strategy.PrepareForUpdate(t.Context(), o, old)
	}
	var lines []string
	for _, e := range r.Strategy.ValidateUpdate(t.Context(), o, old) {
		text, _, _ := strings.Cut(e.Error(), "\n") // what follows is a diff, which is not stable
		lines = append(lines, text)
	}
	if len(lines) == 0 {
		return fmt.Sprintf("ok, generation %d", o.GetGeneration())
	}
	return strings.Join(lines, "\n")
}
