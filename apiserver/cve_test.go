package apiserver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// definition is a CustomResourceDefinition of the group cve.example.com.
func definition(plural, scope string) []byte {
	kind := strings.ToUpper(plural[:1]) + plural[1:]
	return fmt.Appendf(nil, `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"%[1]s.cve.example.com"},
		"spec":{"group":"cve.example.com","scope":%[2]q,"names":{"plural":%[1]q,"kind":%[3]q},"versions":[{"name":"v1","served":true,"storage":true,
		"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`, plural, scope, kind)
}

// CVE-2019-11254: YAML that took the parser time beyond all measure for its size is refused at once.
func TestYAMLCostsWhatItsSizeIs(t *testing.T) {
	c := newRaw(newServer(t, nil))
	for name, body := range map[string]string{
		"keys that begin":       strings.Repeat("? ", 100_000),
		"lists that begin":      strings.Repeat("[", 100_000),
		"maps that begin":       strings.Repeat("{a: ", 100_000),
		"items within items":    strings.Repeat("- ", 100_000),
		"maps without values":   strings.Repeat("{a, ", 100_000),
		"blocks ever deeper":    strings.Repeat(" ", 50_000) + strings.Repeat("- ", 50_000) + "a",
		"quotes without end":    `"` + strings.Repeat("\\n\n", 100_000),
		"documents without end": strings.Repeat("---\n", 100_000),
	} {
		for _, media := range []string{"application/yaml", "application/apply-patch+yaml"} {
			method, path := "POST", cmPath
			if media != "application/yaml" {
				method, path = "PATCH", cmPath+"/a?fieldManager=x"
			}
			before := spent(t)
			code, answer := c.do(t, method, path, media, []byte(body))
			if code < 400 || code > 499 {
				t.Errorf("%s, %s: %d %.300s", name, media, code, answer)
			}
			if took := spent(t) - before; took > time.Second {
				t.Errorf("%s, %s: cost %v of CPU", name, media, took)
			}
		}
	}
}

const definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// define makes a definition and waits until its objects are served at path.
func define(t testing.TB, c raw, definition []byte, path string) {
	if code, body := c.do(t, "POST", definitions, "application/json", definition); code != 201 {
		t.Fatalf("define what is served at %s: %d %s", path, code, body)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		code, body := c.do(t, "GET", path, "", nil)
		if code == 200 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not served: %d %s", path, code, body)
		}
	}
}

// CVE-2019-11247: an object of the cluster is not to be had by a path in a
// namespace, where a Role would allow it, nor the other way round.
func TestScopeIsPartOfThePath(t *testing.T) {
	c := newRaw(newServer(t, nil))
	const group = "/apis/cve.example.com/v1/"
	define(t, c, definition("clusterwides", "Cluster"), group+"clusterwides")
	define(t, c, definition("locals", "Namespaced"), group+"namespaces/default/locals")
	for path, object := range map[string]string{
		group + "clusterwides":              `{"apiVersion":"cve.example.com/v1","kind":"Clusterwides","metadata":{"name":"a"}}`,
		group + "namespaces/default/locals": `{"apiVersion":"cve.example.com/v1","kind":"Locals","metadata":{"name":"a"}}`,
	} {
		if code, body := c.do(t, "POST", path, "application/json", []byte(object)); code != 201 {
			t.Fatalf("create at %s: %d %s", path, code, body)
		}
	}
	for _, wrong := range []string{"namespaces/default/clusterwides/a", "namespaces/default/clusterwides", "locals/a"} {
		for _, method := range []string{"GET", "DELETE"} {
			if code, body := c.do(t, method, group+wrong, "", nil); code != 404 && code != 405 {
				t.Errorf("%s %s: %d %s", method, wrong, code, body)
			}
		}
	}
}

// CVE-2022-3162: a list of one resource has nothing of another whose name
// begins with its name.
func TestListsEndAtTheirResource(t *testing.T) {
	c := newRaw(newServer(t, nil))
	const space = "/apis/cve.example.com/v1/namespaces/default/"
	for _, plural := range []string{"foos", "foosbars"} {
		define(t, c, definition(plural, "Namespaced"), space+plural)
		object := fmt.Sprintf(`{"apiVersion":"cve.example.com/v1","kind":"%s","metadata":{"name":"of-%s"}}`, strings.ToUpper(plural[:1])+plural[1:], plural)
		if code, body := c.do(t, "POST", space+plural, "application/json", []byte(object)); code != 201 {
			t.Fatalf("create: %d %s", code, body)
		}
	}
	for _, path := range []string{space + "foos", "/apis/cve.example.com/v1/foos", space + "foos?limit=5"} {
		code, body := c.do(t, "GET", path, "", nil)
		if code != 200 || !strings.Contains(body, `"of-foos"`) || strings.Contains(body, "of-foosbars") {
			t.Errorf("GET %s: %d %s", path, code, body)
		}
	}
	if code, body := c.do(t, "DELETE", space+"foos", "", nil); code != 200 {
		t.Fatalf("delete all: %d %s", code, body)
	}
	if code, body := c.do(t, "GET", space+"foosbars/of-foosbars", "", nil); code != 200 {
		t.Errorf("the other resource's object after that: %d %s", code, body)
	}
}
