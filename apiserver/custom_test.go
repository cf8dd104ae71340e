package apiserver_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected answers in testdata")

// TestCustomResources replays testdata/custom/*.txt: requests, each with what
// the server answered, "----" between them. A request is a line "METHOD path
// [content type] [Header:value]...", then the body (YAML unless it says otherwise).
// A line "established NAME" or "condition NAME REASON" waits for a definition,
// "until PATH TEXT" for an answer that has a text, "gone PATH" for a 404.
// "make PATH" is a POST of which only the code is of interest, if it succeeds, "may METHOD PATH" any request,
// "managers PATH" a GET of which only who manages what is.
func TestCustomResources(t *testing.T) { replayFiles(t, "testdata/custom/*.txt", nil) }

// TestBuiltin replays testdata/builtin/*.txt, of built-in resources, likewise; roles decide.
func TestBuiltin(t *testing.T) {
	replayFiles(t, "testdata/builtin/*.txt", func(c *apiserver.Config) {
		reader, err := apiserver.NewReader(c.Store, c.Resources, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Authorizer = auth.Authorizers(auth.Masters(), rbac.New(source{reader}))
	})
}

func replayFiles(t *testing.T, pattern string, edit func(*apiserver.Config)) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newServer(t, edit)
			var out strings.Builder
			for block := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n\n") {
				ask, _, _ := strings.Cut(block+"\n", "----\n")
				fmt.Fprintf(&out, "%s----\n%s\n\n", ask, replay(t, s, ask))
			}
			got := strings.TrimSpace(out.String()) + "\n"
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			compare(t, string(data), got)
		})
	}
}

func compare(t *testing.T, want, got string) {
	t.Helper()
	w, g := strings.Split(want, "\n\n"), strings.Split(got, "\n\n")
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = strings.TrimSpace(w[i])
		}
		if i < len(g) {
			b = strings.TrimSpace(g[i])
		}
		if a != b {
			t.Errorf("step %d\nwant:\n%s\n\ngot:\n%s", i+1, a, b)
		}
	}
}

func replay(t *testing.T, s *apiserver.Server, ask string) string {
	var lines []string
	for line := range strings.Lines(ask) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	head := strings.Fields(lines[0])
	c := newRaw(s)
	switch head[0] {
	case "established":
		return waitFor(t, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"+head[1], func(code int, body string) bool {
			return strings.Contains(body, `"InitialNamesAccepted"`)
		}, c)
	case "condition":
		return waitFor(t, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"+head[1], func(_ int, body string) bool {
			return strings.Contains(body, `"`+head[2]+`"`)
		}, c)
	case "until":
		return waitFor(t, head[1], func(_ int, body string) bool { return strings.Contains(body, head[2]) }, c)
	case "gone":
		return waitFor(t, head[1], func(code int, _ string) bool { return code == 404 }, c)
	}
	if head[0] == "managers" {
		_, body := c.do(t, "GET", head[1], "", nil)
		return showManagers(t, body)
	}
	if head[0] == "make" {
		head = slices.Insert(head, 1, "POST")
	}
	if head[0] == "make" || head[0] == "may" {
		answer := replay(t, s, strings.Join(head[1:], " ")+"\n"+strings.Join(lines[1:], ""))
		if code, _, _ := strings.Cut(answer, "\n"); code == "200" || code == "201" {
			return code
		}
		return answer
	}
	heard := &listener{RoundTripper: c.rt}
	c.rt = heard
	contentType, headers := "", []string(nil)
	for _, h := range head[2:] {
		if name, value, ok := strings.Cut(h, ":"); ok {
			headers = append(headers, name, value)
		} else {
			contentType = h
		}
	}
	body := strings.Join(lines[1:], "")
	if contentType == "" && strings.TrimSpace(body) != "" {
		contentType = "application/yaml"
	}
	code, answer := c.do(t, head[0], head[1], contentType, []byte(body), headers...)
	shown := show(t, code, answer)
	if len(heard.warnings) > 0 {
		status, rest, _ := strings.Cut(shown, "\n")
		shown = strings.Join(slices.Concat([]string{status}, heard.warnings, []string{rest}), "\n")
	}
	return strings.TrimSpace(shown)
}

// listener keeps the warnings of answers.
type listener struct {
	http.RoundTripper
	warnings []string
}

func (l *listener) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		for _, w := range resp.Header["Warning"] {
			l.warnings = append(l.warnings, "Warning: "+w)
		}
	}
	return resp, err
}

func waitFor(t *testing.T, path string, ok func(int, string) bool, c raw) string {
	for range 500 {
		if code, body := c.do(t, "GET", path, "", nil); ok(code, body) {
			return "ok"
		}
		time.Sleep(10 * time.Millisecond)
	}
	_, body := c.do(t, "GET", path, "", nil)
	t.Errorf("GET %s never became what it should: %s", path, body)
	return "never"
}

var times = regexp.MustCompile(`(?m)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|(^  - )\d+s$`)

// show makes an answer comparable: of metadata only what tests set, of
// definitions only their conditions.
func show(t *testing.T, code int, answer string) string {
	var m map[string]any
	if err := json.Unmarshal([]byte(answer), &m); err != nil {
		return strings.TrimSpace(fmt.Sprintf("%d %s", code, answer))
	}
	if m["kind"] == "Status" {
		text := fmt.Sprintf("%d %v %v", code, m["status"], m["reason"])
		if msg, ok := m["message"].(string); ok {
			head, list, many := strings.Cut(msg, "is invalid: [")
			if many { // in no particular order
				parts := strings.Split(strings.TrimSuffix(list, "]"), ", ")
				slices.Sort(parts)
				msg = head + "is invalid: [" + strings.Join(parts, ", ") + "]"
			}
			text += "\n" + strings.ReplaceAll(msg, ", ", ",\n  ")
		}
		return text
	}
	strip(m)
	out, err := yaml.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(times.ReplaceAllString(string(out), "${1}TIME"), "\n\n", "\n") // a blank line ends a step
	return fmt.Sprintf("%d\n%s", code, strings.TrimSpace(text))
}

// showManagers tells who manages the fields of an object. The order of those
// with a time is that of the clock, which tests do not wait for.
func showManagers(t *testing.T, body string) string {
	var obj metav1.PartialObjectMetadata
	if err := json.Unmarshal([]byte(body), &obj); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range obj.ManagedFields {
		when := "at a time"
		if e.Time == nil {
			when = "at no time"
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %q %s\n  %s", e.Manager, e.Operation, e.APIVersion, e.Subresource, when, e.FieldsV1.Raw))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func strip(v any) {
	switch v := v.(type) {
	case map[string]any:
		if v["kind"] == "CustomResourceDefinition" {
			delete(v, "spec")
		}
		for _, f := range []string{"uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink"} {
			delete(v, f)
		}
		for _, c := range v {
			strip(c)
		}
	case []any:
		for _, c := range v {
			strip(c)
		}
	}
}

// A schema nested as deep as a body can hold gets an answer, whichever.
func TestDeepSchema(t *testing.T) {
	const deep = 2000
	c := newRaw(newServer(t, nil))
	body := `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"deeps.example.com"},"spec":{"group":"example.com","scope":"Cluster","names":{"plural":"deeps","kind":"Deep"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":` +
		strings.Repeat(`{"type":"object","properties":{"a":`, deep) + `{"type":"string"}` + strings.Repeat(`}}`, deep) + `}}]}}`
	if code, answer := c.do(t, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "application/json", []byte(body)); code != 201 && code != 400 && code != 422 {
		t.Errorf("%d %.300s", code, answer)
	}
	far := `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","spec":` + strings.Repeat(`{"a":`, 20000) + `1` + strings.Repeat(`}`, 20000) + `}`
	if code, answer := c.do(t, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "application/json", []byte(far)); code != 400 {
		t.Errorf("%d %.300s", code, answer)
	}
}
