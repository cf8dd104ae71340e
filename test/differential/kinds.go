package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/skiff-project/skiff/test/samples"
)

// resource is a served resource and an object of it to begin with.
type resource struct {
	group, version, name, kind string
	namespaced                 bool
	verbs                      []string
	subresources               []string
	sample                     map[string]any
	schemas                    schemas
	schema                     map[string]any
}

func (r *resource) label() string {
	if r.group == "" {
		return r.name
	}
	return r.name + "." + r.group + "/" + r.version
}

func (r *resource) has(verb string) bool { return slices.Contains(r.verbs, verb) }

// collection is the path of all objects, as far as the sample's namespace.
func (r *resource) collection() string {
	base := "/apis/" + r.group + "/" + r.version + "/"
	if r.group == "" {
		base = "/api/" + r.version + "/"
	}
	if r.namespaced {
		base += "namespaces/diff/"
	}
	return base + r.name
}

func (r *resource) path() string {
	meta, _ := r.sample["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	return r.collection() + "/" + name
}

// builtIn sends requests about every kind that upstream serves.
func builtIn(ctx context.Context, p *pair) error {
	resources, err := p.discover(ctx)
	if err != nil {
		return err
	}
	if err := p.prepare(ctx); err != nil {
		return err
	}
	var missing []error
	for _, r := range resources {
		if r.sample == nil && r.has("create") {
			missing = append(missing, fmt.Errorf("test/samples/kinds.yaml has no object for %s", r.label()))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return err
	}
	for _, r := range resources {
		if !p.only.MatchString(r.label()) {
			continue
		}
		if r.sample == nil {
			p.reads(ctx, r)
			continue
		}
		if !r.has("get") { // reviews: nothing is stored
			p.creates(ctx, r)
			continue
		}
		p.creates(ctx, r)
		p.reads(ctx, r)
		p.updates(ctx, r)
		p.patches(ctx, r)
		p.statuses(ctx, r)
		p.deletes(ctx, r)
	}
	return ctx.Err()
}

// prepare makes what objects need: no controller does.
func (p *pair) prepare(ctx context.Context) error {
	for _, s := range []struct{ path, body string }{
		{"/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"diff"}}`},
		{"/api/v1/namespaces/diff/serviceaccounts", `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}`},
		{"/api/v1/namespaces/diff/pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bound"},"spec":{"containers":[{"name":"a","image":"x"}]}}`},
	} {
		if code := p.send(ctx, request{name: "prepare " + s.path, method: "POST", path: s.path, body: []byte(s.body)}); code != http.StatusCreated {
			return fmt.Errorf("POST %s: %d", s.path, code)
		}
	}
	return nil
}

// discover compares what is served and returns upstream's, with samples and schemas.
func (p *pair) discover(ctx context.Context) ([]*resource, error) {
	aggregated := "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	for _, path := range []string{"/api", "/apis", "/version", "/nothing", "/apis/nothing", "/apis/apps/v0", "/api/v1/nothing", "/", "/healthz", "/livez", "/readyz"} {
		p.send(ctx, request{name: "GET " + path, method: "GET", path: path})
	}
	p.send(ctx, request{name: "GET /api aggregated", method: "GET", path: "/api", accept: aggregated})
	p.send(ctx, request{name: "GET /apis aggregated", method: "GET", path: "/apis", accept: aggregated})
	if err := p.openAPI(ctx); err != nil {
		return nil, err
	}
	objects, err := samples.Objects()
	if err != nil {
		return nil, err
	}
	byKind := map[string]map[string]any{}
	for _, o := range objects {
		byKind[fmt.Sprint(o["apiVersion"], " ", o["kind"])] = o
	}
	groups, err := p.servers[0].object(ctx, "/apis")
	if err != nil {
		return nil, err
	}
	versions := []string{"v1"}
	list, _ := groups["groups"].([]any)
	for _, g := range list {
		vs, _ := g.(map[string]any)["versions"].([]any)
		for _, v := range vs {
			versions = append(versions, v.(map[string]any)["groupVersion"].(string))
		}
	}
	var all []*resource
	for _, gv := range versions {
		got, err := p.discoverVersion(ctx, gv, byKind)
		if err != nil {
			return nil, err
		}
		all = append(all, got...)
	}
	return all, nil
}

func (p *pair) discoverVersion(ctx context.Context, gv string, byKind map[string]map[string]any) ([]*resource, error) {
	prefix, group, version := "/apis/", "", gv
	if g, v, ok := strings.Cut(gv, "/"); ok {
		group, version = g, v
	} else {
		prefix = "/api/"
	}
	p.send(ctx, request{name: "GET " + prefix + gv, method: "GET", path: prefix + gv})
	data := p.servers[0].do(ctx, request{method: "GET", path: prefix + gv}, nil)
	var doc struct {
		Resources []struct {
			Name, Kind string
			Namespaced bool
			Verbs      []string
		}
	}
	if err := json.Unmarshal(data.body, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", gv, err)
	}
	open, err := p.servers[0].object(ctx, "/openapi/v3"+prefix+gv)
	if err != nil {
		return nil, err
	}
	components, _ := open["components"].(map[string]any)
	all, _ := components["schemas"].(map[string]any)
	byName := map[string]*resource{}
	var list []*resource
	for _, d := range doc.Resources {
		name, sub, isSub := strings.Cut(d.Name, "/")
		if isSub {
			if r := byName[name]; r != nil {
				r.subresources = append(r.subresources, sub)
			}
			continue
		}
		r := &resource{group: group, version: version, name: name, kind: d.Kind, namespaced: d.Namespaced, verbs: d.Verbs,
			sample: byKind[gv+" "+d.Kind], schemas: all}
		r.schema = r.schemas.kind(group, version, d.Kind)
		byName[name] = r
		list = append(list, r)
	}
	return list, nil
}

// openAPI compares the documents whole.
func (p *pair) openAPI(ctx context.Context) error {
	p.send(ctx, request{name: "GET /openapi/v2", method: "GET", path: "/openapi/v2"})
	p.send(ctx, request{name: "GET /openapi/v3", method: "GET", path: "/openapi/v3", shown: func(index any) any {
		paths, _ := index.(map[string]any)["paths"].(map[string]any)
		return sortedKeys(paths) // the URLs have hashes of each server's own
	}})
	index, err := p.servers[0].object(ctx, "/openapi/v3")
	if err != nil {
		return err
	}
	paths, _ := index["paths"].(map[string]any)
	for _, path := range sortedKeys(paths) {
		p.send(ctx, request{name: "GET /openapi/v3/" + path, method: "GET", path: "/openapi/v3/" + path})
	}
	return nil
}

const dryRun = "dryRun=All"

// creates makes the sample, after every change of it was tried.
func (p *pair) creates(ctx context.Context, r *resource) {
	name, path := r.label()+" create ", r.collection()
	post := func(what, query string, body []byte) int {
		return p.send(ctx, request{name: name + what, method: "POST", path: path + query, body: body})
	}
	try := func(what string, change func(map[string]any)) {
		o := clone(r.sample).(map[string]any)
		change(o)
		post(what, "?"+dryRun, marshal(o))
	}
	meta := func(o map[string]any) map[string]any { return o["metadata"].(map[string]any) }
	if r.has("get") {
		try("without a name", func(o map[string]any) { delete(meta(o), "name") })
		try("generateName", func(o map[string]any) { delete(meta(o), "name"); meta(o)["generateName"] = "some-" })
	}
	try("of another kind", func(o map[string]any) { o["kind"] = "Other" })
	try("of another version", func(o map[string]any) { o["apiVersion"] = "other/v7" })
	try("without a kind", func(o map[string]any) { delete(o, "kind"); delete(o, "apiVersion") })
	try("in another namespace", func(o map[string]any) { meta(o)["namespace"] = "elsewhere" })
	try("an unknown field", func(o map[string]any) { o["unknown"] = 1 })
	good := marshal(r.sample)
	for _, b := range []struct{ what, body string }{
		{"an empty body", ""}, {"no JSON", "{"}, {"a list", "[]"}, {"a string", `"x"`}, {"null", "null"}, {"NUL bytes", "\x00\x01"},
		{"duplicate fields", strings.Replace(string(good), "{", `{"kind":"`+r.kind+`",`, 1)},
	} {
		post(b.what, "?"+dryRun, []byte(b.body))
	}
	twisted := clone(r.sample).(map[string]any)
	twisted["unknown"], meta(twisted)["strange"] = 1, "x"
	if spec, ok := twisted["spec"].(map[string]any); ok {
		spec["odd"] = map[string]any{"a": 1}
	}
	if r.has("get") {
		stale := clone(r.sample).(map[string]any)
		meta(stale)["resourceVersion"] = "1"
		post("with a resourceVersion, really", "", marshal(stale))
	}
	for _, v := range []string{"Strict", "Warn", "Ignore", "strange"} {
		post("unknown fields "+v, "?"+dryRun+"&fieldValidation="+v, marshal(twisted))
		post("duplicate fields "+v, "?"+dryRun+"&fieldValidation="+v, []byte(strings.Replace(string(good), "{", `{"kind":"`+r.kind+`",`, 1)))
	}
	post("dryRun wrong", "?dryRun=Some", good)
	post("fieldManager wrong", "?"+dryRun+"&fieldManager="+strings.Repeat("a", 200), good)
	post("fieldManager unprintable", "?"+dryRun+"&fieldManager=%00", good)
	post("pretty", "?"+dryRun+"&pretty=true", good)
	for _, t := range []string{"text/plain", "application/xml", "application/yaml", "application/vnd.kubernetes.protobuf", "application/merge-patch+json", ";;"} {
		p.send(ctx, request{name: name + "as " + t, method: "POST", path: path + "?" + dryRun, body: good, contentType: t})
	}
	for _, a := range []string{"text/plain", "application/yaml", tableAccept, partialAccept, "application/json;as=Strange;v=v1;g=meta.k8s.io"} {
		p.send(ctx, request{name: name + "accept " + a, method: "POST", path: path + "?" + dryRun, body: good, accept: a})
	}
	if code := post("it dry", "?"+dryRun, good); code != http.StatusCreated { // then no change of it says much
		p.report(name+"it dry", []string{fmt.Sprintf("test/samples/kinds.yaml: upstream answers %d", code)})
		return
	}
	for _, m := range r.schemas.mutants(r.schema, r.sample, r.reach(), r.changing()...) {
		post(m.String(), "?"+dryRun, marshal(m.apply(r.sample)))
	}
	for _, m := range r.schemas.metadata(r.sample) {
		post(m.String(), "?"+dryRun, marshal(m.apply(r.sample)))
	}
	if code := post("it", "", good); code != http.StatusCreated {
		p.report(name+"it", []string{fmt.Sprintf("test/samples/kinds.yaml: upstream answers %d", code)})
	}
	if r.has("get") {
		post("it again", "", good)
	}
}

// reach is how far mutants of a new object go; those of all other pods are much the same.
func (r *resource) reach() int {
	if r.name == "pods" {
		return 3
	}
	return 2
}

// changing names the parts whose fields are changed.
func (r *resource) changing() []string {
	var names []string
	props, _ := r.schema["properties"].(map[string]any)
	for name := range props {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "status"}, name) {
			names = append(names, name)
		}
	}
	return names
}

// metadata changes what every kind has.
func (s schemas) metadata(object map[string]any) []mutant {
	var list []mutant
	long := strings.Repeat("a", 300)
	for _, m := range []struct {
		path   string
		values []any
	}{
		{"metadata.name", []any{"Bad Value!", "UPPER", "a..b", "-a", "a/b", "..", "a:b", long, 5}},
		{"metadata.generateName", []any{"Bad Value!", long, 5}},
		{"metadata.labels", []any{map[string]any{"Bad Key!": "x"}, map[string]any{"a": "Bad Value!"}, map[string]any{"a": long}, map[string]any{"a": 5}, "x", map[string]any{"a/b/c": "x"}}},
		{"metadata.annotations", []any{map[string]any{"Bad Key!": "x"}, map[string]any{"A": "x"}, map[string]any{"a": 5}, map[string]any{"a": strings.Repeat("x", 300000)}}},
		{"metadata.finalizers", []any{[]any{"Bad Value!"}, []any{"unqualified"}, []any{"example.com/x"}, []any{"orphan", "foregroundDeletion"}, "x"}},
		{"metadata.ownerReferences", []any{
			[]any{map[string]any{}}, []any{map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}}, []any{map[string]any{"apiVersion": "v1", "kind": "Event", "name": "x", "uid": "y"}},
			[]any{map[string]any{"apiVersion": "a/b/c", "kind": "Pod", "name": "x", "uid": "y"}},
			[]any{map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y", "controller": true}, map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "z", "uid": "z", "controller": true}},
		}},
		{"metadata.generation", []any{-1, 7}},
		{"metadata.uid", []any{"x"}},
		{"metadata.creationTimestamp", []any{"yesterday", "2026-01-02T03:04:05Z"}},
		{"metadata.deletionTimestamp", []any{"2026-01-02T03:04:05Z"}},
		{"metadata.deletionGracePeriodSeconds", []any{5}},
		{"metadata.selfLink", []any{"/x"}},
		{"metadata.managedFields", []any{[]any{map[string]any{}}, []any{map[string]any{"manager": "x", "operation": "Apply", "apiVersion": "v1", "fieldsType": "Strange"}}, []any{}}},
		{"metadata", []any{removed{}, "x", []any{}}},
	} {
		for _, v := range m.values {
			list = append(list, mutant{parsePath(m.path), v})
		}
	}
	return list
}
