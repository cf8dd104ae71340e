package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

//go:embed testdata/schemas.yaml
var schemasText string

// tableRow is one document of testdata/schemas.yaml: a schema of spec and what to
// make of it, or (crd) changes of the definition itself.
type tableRow struct {
	Name    string
	Schema  any              // of spec
	Rules   any              // x-kubernetes-validations of the root
	CRD     map[string]any   // paths of the definition, and their values; null removes
	Objects []any            // values of spec to create
	Whole   []map[string]any // whole objects to create, but for kind, apiVersion and name
	Updates [][2]any         // values of spec before and after
}

// modules are where real definitions and objects come from.
var modules = []struct{ path, crds, objects string }{
	{"sigs.k8s.io/gateway-api@v1.5.0", "config/crd/experimental/*.yaml", "*/standard/*.yaml,*/experimental/*.yaml,hack/invalid-examples/*/*/*.yaml,*/standard/*/*.yaml"},
	{"github.com/cert-manager/cert-manager@v1.19.1", "deploy/crds/*.yaml", ""},
}

// custom sends definitions of custom resources, valid and not, and objects of
// those that are valid.
func custom(ctx context.Context, p *pair) error {
	if p.only.MatchString("matrix") {
		if err := p.matrix(ctx); err != nil {
			return err
		}
	}
	for i, doc := range strings.Split(schemasText, "\n---\n") {
		var row tableRow
		if err := yaml.UnmarshalStrict([]byte(doc), &row); err != nil {
			return fmt.Errorf("testdata/schemas.yaml: %w in\n%s", err, doc)
		}
		if p.only.MatchString("schema " + row.Name) {
			if err := p.row(ctx, i, row); err != nil {
				return err
			}
		}
	}
	for _, m := range modules {
		if !p.only.MatchString(m.path) {
			continue
		}
		if err := p.module(ctx, m.path, m.crds, m.objects); err != nil {
			return err
		}
	}
	return ctx.Err()
}

const crdPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// definition is a CRD of kind <Name>, plural <name>s.
func definition(name string, root map[string]any) map[string]any {
	lower := strings.ToLower(name)
	return map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": lower + "s.custom.example.com"},
		"spec": map[string]any{
			"group": "custom.example.com", "scope": "Namespaced", "names": map[string]any{"plural": lower + "s", "singular": lower, "kind": name, "listKind": name + "List"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{"openAPIV3Schema": root}}},
		},
	}
}

func objectSchema(properties map[string]any) map[string]any {
	return map[string]any{"type": "object", "properties": properties}
}

// define tries a definition and, where upstream takes it, makes it and waits
// until both serve it.
func (p *pair) define(ctx context.Context, name string, crd map[string]any) (bool, error) {
	if p.send(ctx, request{name: name + " definition", method: "POST", path: crdPath + "?" + dryRun, body: marshal(crd)}) != http.StatusCreated {
		return false, nil
	}
	if p.send(ctx, request{name: name + " definition, really", method: "POST", path: crdPath, body: marshal(crd)}) != http.StatusCreated {
		return false, nil
	}
	path := crdPath + "/" + crd["metadata"].(map[string]any)["name"].(string)
	spec := crd["spec"].(map[string]any)
	for _, v := range spec["versions"].([]any) {
		version := v.(map[string]any)
		if version["served"] != true {
			continue
		}
		list := fmt.Sprintf("/apis/%s/%s/%s", spec["group"], version["name"], spec["names"].(map[string]any)["plural"])
		for i := range p.servers {
			if err := p.servers[i].await(ctx, path, list); err != nil {
				p.report(name+" definition, really", []string{fmt.Sprintf("server %d: %v", i, err)})
				return false, ctx.Err()
			}
		}
	}
	return true, nil
}

// await waits until a definition is established and served.
func (s *server) await(ctx context.Context, path, list string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		crd, err := s.object(ctx, path)
		if err == nil && strings.Contains(string(marshal(crd["status"])), `"reason":"InitialNamesAccepted","status":"True","type":"Established"`) {
			if a := s.do(ctx, request{method: "GET", path: list}, nil); a.code == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("the definition is not served"), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// undefine deletes a definition, so that servers do not slow down with them.
func (p *pair) undefine(ctx context.Context, crd map[string]any) {
	path := crdPath + "/" + crd["metadata"].(map[string]any)["name"].(string)
	for i := range p.servers {
		p.servers[i].do(ctx, request{method: "DELETE", path: path}, nil)
	}
}

// row sends one row of the table.
func (p *pair) row(ctx context.Context, i int, row tableRow) error {
	name := "schema " + row.Name
	kind := fmt.Sprintf("Row%d", i)
	root := objectSchema(map[string]any{"spec": row.Schema})
	if row.Schema == nil {
		root = objectSchema(map[string]any{"spec": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}})
	}
	if row.Rules != nil {
		root["x-kubernetes-validations"] = row.Rules
	}
	crd := definition(kind, root)
	for _, path := range sortedKeys(row.CRD) {
		value := row.CRD[path]
		if value == nil {
			value = removed{}
		}
		crd = mutant{parsePath(path), value}.apply(crd).(map[string]any)
	}
	ok, err := p.define(ctx, name, crd)
	if !ok {
		return err
	}
	defer p.undefine(ctx, crd)
	spec := crd["spec"].(map[string]any)
	version := spec["versions"].([]any)[0].(map[string]any)["name"].(string)
	collection := fmt.Sprintf("/apis/%s/%s/namespaces/diff/%s", spec["group"], version, spec["names"].(map[string]any)["plural"])
	if spec["scope"] == "Cluster" {
		collection = strings.Replace(collection, "namespaces/diff/", "", 1)
	}
	object := func(body map[string]any, name string) []byte {
		o := map[string]any{"apiVersion": fmt.Sprint(spec["group"], "/", version), "kind": spec["names"].(map[string]any)["kind"], "metadata": map[string]any{"name": name}}
		for k, v := range body {
			o[k] = v
		}
		return marshal(o)
	}
	for _, v := range row.Objects {
		for _, how := range []string{"Strict", "Warn"} {
			p.send(ctx, request{name: fmt.Sprintf("%s create %s %s", name, how, show(v)), method: "POST", path: collection + "?" + dryRun + "&fieldValidation=" + how, body: object(map[string]any{"spec": v}, "a")})
		}
	}
	for n, body := range row.Whole {
		named := fmt.Sprintf("whole-%d", n)
		p.send(ctx, request{name: fmt.Sprintf("%s create %s", name, show(body)), method: "POST", path: collection, body: object(body, named)})
		for _, sub := range []string{"", "/status", "/scale"} {
			p.send(ctx, request{name: fmt.Sprintf("%s get %d%s", name, n, sub), method: "GET", path: collection + "/" + named + sub})
			p.send(ctx, request{name: fmt.Sprintf("%s merge %d%s", name, n, sub), method: "PATCH", path: collection + "/" + named + sub, contentType: "application/merge-patch+json", body: []byte(`{"spec":{"replicas":7},"status":{"replicas":3}}`)})
		}
	}
	for n, u := range row.Updates {
		named := fmt.Sprintf("update-%d", n)
		p.send(ctx, request{name: fmt.Sprintf("%s before %s", name, show(u[0])), method: "POST", path: collection, body: object(map[string]any{"spec": u[0]}, named)})
		p.send(ctx, request{name: fmt.Sprintf("%s update %s to %s", name, show(u[0]), show(u[1])), method: "PUT", path: collection + "/" + named + "?" + dryRun, live: func(o any) any {
			return mutant{parsePath("spec"), u[1]}.apply(o)
		}})
		p.send(ctx, request{name: fmt.Sprintf("%s apply %s to %s", name, show(u[0]), show(u[1])), method: "PATCH", path: collection + "/" + named + "?" + dryRun + "&force=true&fieldManager=x", contentType: "application/apply-patch+yaml", body: object(map[string]any{"spec": u[1]}, named)})
	}
	if len(row.Whole) > 0 {
		for _, accept := range []string{"", tableAccept, partialListAccept, "application/yaml", "application/vnd.kubernetes.protobuf"} {
			p.send(ctx, request{name: name + " list as " + accept, method: "GET", path: collection, accept: accept})
		}
		for _, q := range []string{"fieldSelector=spec.a=x", "fieldSelector=spec.b=1", "fieldSelector=metadata.name=whole-0", "labelSelector=a=b", "limit=1"} {
			p.send(ctx, request{name: name + " list " + q, method: "GET", path: collection + "?" + q})
		}
		for _, path := range []string{"/apis/custom.example.com", "/apis/custom.example.com/v1", crdPath + "/" + crd["metadata"].(map[string]any)["name"].(string)} {
			p.send(ctx, request{name: name + " GET " + path, method: "GET", path: path})
		}
	}
	return nil
}

// The matrix: every keyword on every type, and every value for each.
var (
	matrixTypes = map[string]map[string]any{
		"string": {"type": "string"}, "integer": {"type": "integer"}, "number": {"type": "number"}, "boolean": {"type": "boolean"}, "untyped": {},
		"object": objectSchema(map[string]any{"a": map[string]any{"type": "integer"}, "b": map[string]any{"type": "string", "default": "d"}}), "array": {"type": "array", "items": map[string]any{"type": "integer"}},
		"map": {"type": "object", "additionalProperties": map[string]any{"type": "string"}}, "intorstring": {"x-kubernetes-int-or-string": true}, "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
		"embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
	}
	matrixKeywords = []struct {
		name  string
		value any
	}{
		{"title", "t"}, {"minimum", 2}, {"maximum", 2}, {"exclusiveMinimum", true}, {"multipleOf", 2}, {"multipleOf", -1}, {"minLength", 2}, {"minLength", -2}, {"maxLength", 2}, {"pattern", "^a+$"}, {"pattern", "("},
		{"format", "date-time"}, {"format", "int32"}, {"format", "uuid"}, {"format", "byte"}, {"format", "ipv4"}, {"format", "strange"}, {"format", "duration"}, {"format", "hostname"}, {"format", "k8s-short-name"},
		{"minItems", 1}, {"maxItems", 1}, {"uniqueItems", true}, {"minProperties", 1}, {"maxProperties", 1}, {"required", []any{"a"}}, {"required", []any{"zz"}}, {"enum", []any{"a", 5, true, nil}}, {"enum", []any{}},
		{"nullable", true}, {"default", 5}, {"default", "a"}, {"default", map[string]any{"a": 1, "zz": 2}}, {"default", nil}, {"x-kubernetes-list-type", "set"}, {"x-kubernetes-list-type", "map"}, {"x-kubernetes-list-type", "strange"},
		{"x-kubernetes-map-type", "atomic"}, {"x-kubernetes-preserve-unknown-fields", true}, {"x-kubernetes-preserve-unknown-fields", false}, {"x-kubernetes-int-or-string", true}, {"x-kubernetes-embedded-resource", true}, {"additionalProperties", false},
		{"additionalProperties", map[string]any{"type": "string"}}, {"items", map[string]any{"type": "string"}}, {"not", map[string]any{"enum": []any{5}}}, {"anyOf", []any{map[string]any{"minimum": 3}, map[string]any{"pattern": "b"}}}, {"oneOf", []any{map[string]any{"required": []any{"a"}}, map[string]any{"required": []any{"b"}}}},
		{"allOf", []any{map[string]any{"type": "string"}}}, {"$ref", "#/x"}, {"definitions", map[string]any{}}, {"id", "x"}, {"example", 5}, {"externalDocs", map[string]any{"url": "x"}}, {"dependencies", map[string]any{}}, {"patternProperties", map[string]any{}},
		{"x-kubernetes-validations", []any{map[string]any{"rule": "self == self"}}}, {"x-kubernetes-validations", []any{map[string]any{"rule": "self.size() > 1", "message": "too small"}}}, {"x-kubernetes-validations", []any{map[string]any{"rule": "self > 1"}}},
	}
	matrixValues = []string{`null`, `""`, `"abc"`, `"aa"`, `5`, `-1`, `1.5`, `true`, `[]`, `[1,1]`, `["x","y"]`, `{}`, `{"a":1}`, `{"b":"x","zz":1}`, `{"a":null}`, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"BAD","strange":1}}`, `"2026-01-02T03:04:05Z"`, `"10.0.0.1"`, `{"a":"x"}`}
)

// matrix tries each schema alone, and puts those that upstream takes into one
// definition, whose objects then have one property each.
func (p *pair) matrix(ctx context.Context) error {
	good := map[string]any{}
	for _, kind := range sortedKeys(matrixTypes) {
		for i, k := range matrixKeywords {
			schema := clone(matrixTypes[kind]).(map[string]any)
			schema[k.name] = k.value
			key := fmt.Sprintf("%s%d", kind, i)
			crd := definition("Matrix", objectSchema(map[string]any{key: schema}))
			if p.send(ctx, request{name: fmt.Sprintf("matrix %s %s=%s", kind, k.name, show(k.value)), method: "POST", path: crdPath + "?" + dryRun, body: marshal(crd)}) == http.StatusCreated {
				good[key] = schema
			}
		}
	}
	// Properties with rules count against one budget; without defaults, objects show only what they are about.
	for key, schema := range good {
		if _, ok := schema.(map[string]any)["default"]; ok {
			delete(good, key)
		}
	}
	crd := definition("Matrix", objectSchema(good))
	ok, err := p.define(ctx, "matrix", crd)
	if !ok {
		return errors.Join(err, errors.New("upstream refuses the matrix as a whole"))
	}
	defer p.undefine(ctx, crd)
	for _, key := range sortedKeys(good) {
		for _, v := range matrixValues {
			body := fmt.Sprintf(`{"apiVersion":"custom.example.com/v1","kind":"Matrix","metadata":{"name":"a"},%q:%s}`, key, v)
			p.send(ctx, request{name: fmt.Sprintf("matrix %s value %s", show(good[key]), v), method: "POST", path: "/apis/custom.example.com/v1/namespaces/diff/matrixs?" + dryRun, body: []byte(body)})
		}
	}
	return nil
}

// module takes definitions and objects out of a Go module.
func (p *pair) module(ctx context.Context, module, crds, objects string) error {
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", module).Output()
	if err != nil {
		return fmt.Errorf("download %s: %w\n%s", module, err, out)
	}
	var at struct{ Dir string }
	if err := json.Unmarshal(out, &at); err != nil {
		return err
	}
	served := map[string]*resource{}
	var made []map[string]any
	defer func() {
		for _, crd := range made {
			p.undefine(ctx, crd)
		}
	}()
	err = documents(at.Dir, crds, func(file string, o map[string]any) error {
		if o["kind"] != "CustomResourceDefinition" {
			return nil
		}
		ok, err := p.define(ctx, module+" "+file, o)
		if !ok {
			return err
		}
		made = append(made, o)
		spec := o["spec"].(map[string]any)
		names := spec["names"].(map[string]any)
		for _, v := range spec["versions"].([]any) {
			version := v.(map[string]any)
			r := &resource{group: spec["group"].(string), version: version["name"].(string), name: names["plural"].(string), kind: names["kind"].(string), namespaced: spec["scope"] == "Namespaced"}
			r.schema, _ = version["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)
			served[r.group+"/"+r.version+" "+r.kind] = r
		}
		return nil
	})
	if err != nil {
		return err
	}
	mutated := map[string]bool{}
	for _, pattern := range strings.Split(objects, ",") {
		if pattern == "" {
			continue
		}
		err = documents(at.Dir, pattern, func(file string, o map[string]any) error {
			r := served[fmt.Sprint(o["apiVersion"], " ", o["kind"])]
			if r == nil {
				return nil
			}
			if meta, ok := o["metadata"].(map[string]any); ok {
				delete(meta, "namespace")
			}
			name := fmt.Sprintf("%s %s %s", module, file, r.kind)
			code := p.send(ctx, request{name: name, method: "POST", path: r.collection() + "?" + dryRun, body: marshal(o)})
			if code != http.StatusCreated || mutated[r.kind] {
				return nil
			}
			mutated[r.kind] = true
			for _, m := range r.schemas.mutants(r.schema, o, 2, "spec") {
				p.send(ctx, request{name: name + " " + m.String(), method: "POST", path: r.collection() + "?" + dryRun, body: marshal(m.apply(o))})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// documents reads the objects in the YAML files that match a pattern.
func documents(dir, pattern string, do func(file string, o map[string]any) error) error {
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		for doc := range strings.SplitSeq(string(text), "\n---") {
			var o map[string]any
			if yaml.Unmarshal([]byte(doc), &o) != nil || o["kind"] == nil {
				continue
			}
			if err := do(filepath.Base(f), o); err != nil {
				return err
			}
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
