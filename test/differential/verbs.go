package main

import (
	"context"
	"fmt"
	"strings"
)

const (
	tableAccept       = "application/json;as=Table;v=v1;g=meta.k8s.io"
	partialAccept     = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
	partialListAccept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
)

// reads gets, lists and begins to watch.
func (p *pair) reads(ctx context.Context, r *resource) {
	name := r.label()
	get := func(what, path, accept string) {
		p.send(ctx, request{name: name + what, method: "GET", path: path, accept: accept})
	}
	if r.has("get") && r.sample != nil {
		for _, a := range []string{"", "application/yaml", "text/html", "*/*", "application/json, text/plain", "application/json;stream=watch", tableAccept, partialAccept, partialListAccept,
			"application/json;as=Table;v=v1beta1;g=meta.k8s.io", "application/json;as=Table;v=v9;g=meta.k8s.io", "text/plain"} {
			get(" get as "+a, r.path(), a)
		}
		get(" get pretty", r.path()+"?pretty=1", "")
		get(" get resourceVersion=bad", r.path()+"?resourceVersion=bad", "")
		get(" get resourceVersion=0", r.path()+"?resourceVersion=0", "")
		get(" get missing", r.collection()+"/missing", "")
		get(" get missing as Table", r.collection()+"/missing", tableAccept)
		get(" get Bad Name", r.collection()+"/Bad%20Name", "")
		get(" get includeObject", r.path()+"?includeObject=None", tableAccept)
		get(" get includeObject wrong", r.path()+"?includeObject=Some", tableAccept)
		get(" get subresource nothing", r.path()+"/nothing", "")
	}
	if r.has("list") {
		for _, a := range []string{"", "application/yaml", tableAccept, partialListAccept, partialAccept, "text/plain"} {
			get(" list as "+a, r.collection(), a)
		}
		for _, q := range []string{
			"limit=1", "limit=-1", "limit=x", "limit=1&continue=bad", "continue=bad", "resourceVersion=bad", "resourceVersion=0", "resourceVersion=-1",
			"resourceVersionMatch=Exact", "resourceVersionMatch=Strange&resourceVersion=1", "resourceVersionMatch=Exact&resourceVersion=0", "resourceVersionMatch=NotOlderThan&resourceVersion=0",
			"resourceVersionMatch=NotOlderThan&resourceVersion=0&continue=x", "sendInitialEvents=true", "sendInitialEvents=true&resourceVersionMatch=NotOlderThan", "timeoutSeconds=x", "allowWatchBookmarks=x",
			"labelSelector=a", "labelSelector=%21%21", "labelSelector=a+in+(b", "labelSelector=a=Bad+Value!", "labelSelector=Bad+Key=x", "labelSelector=a+notin+(b),c", "labelSelector=a>5", "labelSelector=a>x",
			"fieldSelector=metadata.name=diff", "fieldSelector=metadata.name!=diff", "fieldSelector=metadata.namespace=diff", "fieldSelector=metadata.name", "fieldSelector=strange.field=x", "fieldSelector=metadata.name=a,metadata.name=b",
			"fieldSelector=status.phase=Running", "fieldSelector=spec.nodeName=a", "fieldSelector=type=Opaque", "fieldSelector=reason=x", "fieldSelector=spec.unschedulable=true", "fieldSelector=status.successful=1", "fieldSelector=involvedObject.name=x", "fieldSelector=spec.signerName=x", "fieldSelector=spec.clusterIP=None",
			"includeObject=Object", "watch=1&resourceVersion=bad", "watch=1&limit=x", "watch=1&sendInitialEvents=true&resourceVersionMatch=Exact", "watch=1&resourceVersionMatch=NotOlderThan",
			"watch=1&fieldSelector=strange.field=x", "watch=1&labelSelector=%21%21", "watch=1&timeoutSeconds=x", "shardSelector=x",
		} {
			get(" list "+q, r.collection()+"?"+q, "")
		}
		get(" list limit=1 as Table", r.collection()+"?limit=1", tableAccept)
		get(" list Table without objects", r.collection()+"?includeObject=None", tableAccept)
		get(" list Table with objects", r.collection()+"?includeObject=Object", tableAccept)
		get(" watch as Strange", r.collection()+"?watch=1&timeoutSeconds=1", "application/json;as=Strange;v=v1;g=meta.k8s.io")
		if r.name == "configmaps" { // each takes seconds
			for _, q := range []string{"resourceVersion=99999999", "watch=1&timeoutSeconds=1&resourceVersion=0", "watch=1&timeoutSeconds=1&continue=x", "watch=1&timeoutSeconds=1&sendInitialEvents=true", "watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "watch=1&timeoutSeconds=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", "watch=1&timeoutSeconds=1&limit=1&labelSelector=a"} {
				get(" list "+q, r.collection()+"?"+q, "")
			}
			get(" get resourceVersion=99999999", r.path()+"?resourceVersion=99999999", "")
			get(" watch as Table", r.collection()+"?watch=1&timeoutSeconds=1&resourceVersion=0", tableAccept)
			get(" watch as PartialObjectMetadata", r.collection()+"?watch=1&timeoutSeconds=1&resourceVersion=0", partialAccept)
		}
		if r.namespaced {
			get(" list of all namespaces", strings.Replace(r.collection(), "namespaces/diff/", "", 1)+"?fieldSelector=metadata.namespace=diff", "")
			get(" list of a missing namespace", strings.Replace(r.collection(), "namespaces/diff/", "namespaces/missing/", 1), "")
		}
	}
	for _, m := range []string{"PUT", "PATCH"} {
		p.send(ctx, request{name: name + " " + m + " the collection", method: m, path: r.collection(), body: []byte("{}")})
	}
	if !r.has("list") {
		get(" list", r.collection(), "")
	}
	if r.sample != nil {
		p.send(ctx, request{name: name + " POST an object", method: "POST", path: r.path(), body: marshal(r.sample)})
	}
	p.send(ctx, request{name: name + " OPTIONS", method: "OPTIONS", path: r.collection()})
	p.send(ctx, request{name: name + " HEAD", method: "HEAD", path: r.collection()})
}

// both is the object at a path as each server has it.
func (p *pair) both(ctx context.Context, path string) (objects [2]map[string]any, err error) {
	for i := range p.servers {
		if objects[i], err = p.servers[i].object(ctx, path); err != nil {
			return objects, err
		}
	}
	return objects, nil
}

// changed sends the live object at a path with changes, none of which last.
func (p *pair) changed(ctx context.Context, name, path, query string, live [2]map[string]any, m mutant) {
	p.exchange(ctx, request{name: name + m.String(), method: "PUT", path: path + "?" + dryRun + query},
		[2][]byte{marshal(m.apply(live[0])), marshal(m.apply(live[1]))})
}

// updates puts the object with every change of it.
func (p *pair) updates(ctx context.Context, r *resource) {
	if !r.has("update") {
		p.send(ctx, request{name: r.label() + " update", method: "PUT", path: r.path(), body: marshal(r.sample)})
		return
	}
	live, err := p.both(ctx, r.path())
	if err != nil {
		p.report(r.label()+" update", []string{err.Error()})
		return
	}
	name := r.label() + " update "
	for _, m := range r.schemas.mutants(r.schema, live[0], 1, r.changing()...) {
		p.changed(ctx, name, r.path(), "", live, m)
	}
	for _, m := range r.schemas.metadata(live[0]) {
		p.changed(ctx, name, r.path(), "", live, m)
	}
	for _, m := range []mutant{{parsePath("metadata.resourceVersion"), "1"}, {parsePath("metadata.resourceVersion"), "bad"}, {parsePath("metadata.uid"), "x"}} {
		p.exchange(ctx, request{name: name + "really " + m.String(), method: "PUT", path: r.path()}, [2][]byte{marshal(m.apply(live[0])), marshal(m.apply(live[1]))})
	}
	for _, m := range []mutant{
		{parsePath("metadata.resourceVersion"), removed{}},
		{parsePath("metadata.resourceVersion"), "0"}, {parsePath("metadata.uid"), removed{}}, {parsePath("metadata.labels"), map[string]any{"a": "b"}}, {parsePath("status"), removed{}},
		{parsePath("metadata.namespace"), removed{}}, {parsePath("metadata.namespace"), "elsewhere"}, {parsePath("kind"), "Other"}, {parsePath("apiVersion"), "v7"}, {parsePath("kind"), removed{}},
	} {
		p.changed(ctx, name, r.path(), "", live, m)
		p.changed(ctx, name+"strict ", r.path(), "&fieldValidation=Strict", live, m)
	}
	p.changed(ctx, name+"missing ", r.collection()+"/missing", "", live, mutant{parsePath("metadata.name"), "missing"})
	p.changed(ctx, name+"mismatch ", r.collection()+"/missing", "", live, mutant{parsePath("metadata.labels"), map[string]any{"a": "b"}})
	p.changed(ctx, name+"missing without version ", r.collection()+"/missing", "", [2]map[string]any{r.sample, r.sample}, mutant{parsePath("metadata.name"), "missing"})
	p.exchange(ctx, request{name: name + "unchanged", method: "PUT", path: r.path()}, [2][]byte{marshal(live[0]), marshal(live[1])})
}

// patches sends each type of patch, well and badly formed.
func (p *pair) patches(ctx context.Context, r *resource) {
	if !r.has("patch") {
		return
	}
	apiVersion := r.sample["apiVersion"].(string)
	id := fmt.Sprintf(`"apiVersion":%q,"kind":%q`, apiVersion, r.kind)
	named := fmt.Sprintf(`{%s,"metadata":{"name":"%s","labels":{"applied":"x"}}}`, id, r.path()[strings.LastIndex(r.path(), "/")+1:])
	send := func(what, kind, query, body string) {
		p.send(ctx, request{name: r.label() + " " + kind + " patch " + what, method: "PATCH", path: r.path() + "?" + query,
			contentType: "application/" + kind + "+" + map[bool]string{true: "yaml", false: "json"}[kind == "apply-patch"], body: []byte(body)})
	}
	for _, kind := range []string{"merge-patch", "strategic-merge-patch"} {
		for _, b := range []string{
			`{}`, `{"metadata":{"labels":{"a":"b"}}}`, `{"metadata":{"labels":null}}`, `{"metadata":{"name":"other"}}`, `{"metadata":{"uid":"x"}}`, `{"metadata":{"resourceVersion":"1"}}`, `{"metadata":{"labels":{"Bad Key!":"b"}}}`,
			`{"metadata":null}`, `{"kind":"Other"}`, `{"apiVersion":"v7"}`, `{"unknown":1}`, `{"spec":null}`, `{"spec":5}`, `{"status":null}`, `{"metadata":{"labels":5}}`, `[]`, `{`, ``, `"x"`, `null`, `{"metadata":{"$patch":"strange"}}`,
			`{"metadata":{"$patch":"delete"}}`, `{"metadata":{"finalizers":["example.com/x"],"$deleteFromPrimitiveList/finalizers":["y"]}}`, `{"metadata":{"labels":{"$patch":"replace","z":"y"}}}`, `{"metadata":{"$retainKeys":["name"]}}`,
			`{"metadata":{"ownerReferences":[{"$patch":"delete"}]}}`, `{"metadata":{"ownerReferences":[{"name":"x"}]}}`, `{"metadata":{"managedFields":[]}}`,
		} {
			send(b, kind, dryRun, b)
		}
		send("strict", kind, dryRun+"&fieldValidation=Strict", `{"unknown":1,"metadata":{"strange":1}}`)
		send("duplicate", kind, dryRun+"&fieldValidation=Strict", `{"metadata":{"labels":{"a":"b","a":"c"}}}`)
		send("warn", kind, dryRun, `{"unknown":1,"metadata":{"strange":1}}`)
		send("force", kind, dryRun+"&force=true", `{}`)
	}
	for _, b := range []string{
		`[]`, `{}`, `[{}]`, `[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`, `[{"op":"add","path":"/metadata/labels/x/y","value":"b"}]`, `[{"op":"remove","path":"/nothing"}]`, `[{"op":"replace","path":"/nothing","value":1}]`,
		`[{"op":"test","path":"/kind","value":"Other"}]`, `[{"op":"test","path":"/kind","value":"` + r.kind + `"}]`, `[{"op":"strange","path":"/kind"}]`, `[{"op":"move","from":"/kind","path":"/metadata/labels"}]`, `[{"op":"copy","from":"/nothing","path":"/x"}]`,
		`[{"op":"replace","path":"/metadata/name","value":"other"}]`, `[{"op":"add","path":"no-slash","value":1}]`, `[{"op":"add","path":"/unknown","value":1}]`, `[{"op":"remove","path":"/metadata"}]`, `[{"op":"replace","path":"","value":{}}]`, `{`, ``, `[{"op":"add"}]`,
	} {
		send(b, "json-patch", dryRun, b)
	}
	for _, b := range []string{
		named, `{}`, `{` + id + `}`, `{"kind":"` + r.kind + `"}`, `{"apiVersion":"v7","kind":"Other"}`, `[]`, `{`, ``, strings.Replace(named, `"labels"`, `"managedFields":[{}],"labels"`, 1),
		strings.Replace(named, `"name":"`, `"name":"other-`, 1), strings.Replace(named, `{"apiVersion"`, `{"unknown":1,"apiVersion"`, 1), strings.Replace(named, `"labels":{`, `"labels":{"a":"b","a":"c",`, 1), strings.Replace(named, `"labels"`, `"resourceVersion":"1","labels"`, 1),
		strings.Replace(named, `"labels"`, `"uid":"x","labels"`, 1), strings.Replace(named, `{"applied":"x"}`, `5`, 1), strings.Replace(named, `"labels"`, `"namespace":"elsewhere","labels"`, 1), strings.Replace(named, `{"apiVersion"`, `{"spec":5,"apiVersion"`, 1),
	} {
		send(b, "apply-patch", dryRun+"&fieldManager=one", b)
	}
	send("without manager", "apply-patch", dryRun, named)
	send("strict", "apply-patch", dryRun+"&fieldManager=one&fieldValidation=Strict", strings.Replace(named, `{"apiVersion"`, `{"unknown":1,"apiVersion"`, 1))
	send("manager too long", "apply-patch", dryRun+"&fieldManager="+strings.Repeat("a", 200), named)
	send("by one", "apply-patch", "fieldManager=one", named)
	send("conflict", "apply-patch", "fieldManager=two", strings.Replace(named, `"x"`, `"y"`, 1))
	send("forced", "apply-patch", "fieldManager=two&force=true", strings.Replace(named, `"x"`, `"y"`, 1))
	send("shared", "apply-patch", "fieldManager=three", strings.Replace(named, `"x"`, `"y"`, 1))
	send("given up", "apply-patch", "fieldManager=three", `{`+id+`,"metadata":{"name":"`+r.path()[strings.LastIndex(r.path(), "/")+1:]+`"}}`)
	send("whole conflict", "apply-patch", dryRun+"&fieldManager=four", string(marshal(r.sample)))
	send("whole forced", "apply-patch", dryRun+"&force=true&fieldManager=four", string(marshal(r.sample)))
	missing := r.collection() + "/missing?" + dryRun
	p.send(ctx, request{name: r.label() + " merge patch missing", method: "PATCH", path: missing, contentType: "application/merge-patch+json", body: []byte("{}")})
	whole := clone(r.sample).(map[string]any)
	whole["metadata"].(map[string]any)["name"] = "missing"
	p.send(ctx, request{name: r.label() + " apply creates", method: "PATCH", path: missing + "&fieldManager=x", contentType: "application/apply-patch+yaml", body: marshal(whole)})
	p.send(ctx, request{name: r.label() + " patch of no type", method: "PATCH", path: r.path(), contentType: "application/json", body: []byte("{}")})
	p.send(ctx, request{name: r.label() + " patch as text", method: "PATCH", path: r.path(), contentType: "text/plain", body: []byte("{}")})
}

// statuses changes the status, and asks every other subresource.
func (p *pair) statuses(ctx context.Context, r *resource) {
	for _, sub := range r.subresources {
		path, name := r.path()+"/"+sub, r.label()+"/"+sub
		streams := sub == "proxy" || sub == "exec" || sub == "attach" || sub == "portforward" || sub == "log"
		if streams {
			continue
		}
		p.send(ctx, request{name: name + " get", method: "GET", path: path})
		p.send(ctx, request{name: name + " get as Table", method: "GET", path: path, accept: tableAccept})
		p.send(ctx, request{name: name + " get missing", method: "GET", path: r.collection() + "/missing/" + sub})
		p.send(ctx, request{name: name + " DELETE", method: "DELETE", path: path})
		p.send(ctx, request{name: name + " POST nothing", method: "POST", path: path + "?" + dryRun, body: []byte("{}")})
		p.send(ctx, request{name: name + " PUT nothing", method: "PUT", path: path + "?" + dryRun, body: []byte("{}")})
		for _, b := range []string{`{"metadata":{"labels":{"sub":"x"}}}`, `{"status":5}`, `{"spec":null}`, `{"spec":{"replicas":5}}`, `{"spec":{"replicas":-5}}`} {
			p.send(ctx, request{name: name + " merge patch " + b, method: "PATCH", path: path + "?" + dryRun, contentType: "application/merge-patch+json", body: []byte(b)})
		}
		live, err := p.both(ctx, path)
		if err != nil {
			continue // not one to read
		}
		if sub == "status" {
			for _, m := range r.schemas.mutants(r.schema, live[0], 2, "status") {
				p.changed(ctx, name+" update ", path, "", live, m)
			}
			p.changed(ctx, name+" update ", path, "", live, mutant{parsePath("spec"), map[string]any{}})
			p.changed(ctx, name+" update ", path, "", live, mutant{parsePath("metadata.labels"), map[string]any{"l": "x"}})
			p.changed(ctx, name+" update ", path, "", live, mutant{parsePath("metadata.finalizers"), []any{"example.com/x"}})
			continue
		}
		for _, m := range []mutant{{parsePath("spec.replicas"), 3}, {parsePath("spec.replicas"), -3}, {parsePath("spec.replicas"), "x"}, {parsePath("spec"), removed{}}, {parsePath("metadata.resourceVersion"), "1"}, {parsePath("metadata.name"), "other"}, {parsePath("kind"), "Other"}} {
			p.changed(ctx, name+" update ", path, "", live, m)
		}
	}
}

// deletes tries every option, and then deletes.
func (p *pair) deletes(ctx context.Context, r *resource) {
	if !r.has("delete") {
		p.send(ctx, request{name: r.label() + " delete", method: "DELETE", path: r.path()})
		return
	}
	// A body takes the place of the query, so the dry run is in the body.
	for _, b := range []string{
		`{"gracePeriodSeconds":-5}`, `{"gracePeriodSeconds":"x"}`, `{"gracePeriodSeconds":0}`, `{"preconditions":{"uid":"x"}}`, `{"preconditions":{"resourceVersion":"1"}}`, `{"propagationPolicy":"Strange"}`, `{"propagationPolicy":"Orphan"}`, `{"propagationPolicy":"Foreground"}`,
		`{"propagationPolicy":"Background"}`, `{"orphanDependents":true}`, `{"orphanDependents":true,"propagationPolicy":"Background"}`, `{"unknown":1}`, `{"kind":"Other"}`, `{"kind":"DeleteOptions","apiVersion":"v1"}`, `{"kind":"DeleteOptions","apiVersion":"v7"}`, `{`, `[]`,
		`{"ignoreStoreReadErrorWithClusterBreakingPotential":true}`,
	} {
		p.send(ctx, request{name: r.label() + " delete " + b, method: "DELETE", path: r.path(), body: []byte(strings.Replace(b, `{"`, `{"dryRun":["All"],"`, 1))})
	}
	for _, q := range []string{dryRun, "dryRun=Some", dryRun + "&gracePeriodSeconds=x", dryRun + "&gracePeriodSeconds=5", dryRun + "&propagationPolicy=Strange", dryRun + "&propagationPolicy=Foreground", dryRun + "&orphanDependents=true&propagationPolicy=Orphan"} {
		p.send(ctx, request{name: r.label() + " delete with " + q, method: "DELETE", path: r.path() + "?" + q})
	}
	p.send(ctx, request{name: r.label() + " delete missing", method: "DELETE", path: r.collection() + "/missing"})
	p.send(ctx, request{name: r.label() + " delete as text", method: "DELETE", path: r.path() + "?" + dryRun, body: []byte("{}"), contentType: "text/plain"})
	if r.has("deletecollection") {
		for _, q := range []string{dryRun + "&labelSelector=nothing=here", dryRun + "&labelSelector=%21%21", dryRun + "&fieldSelector=strange.field=x", dryRun + "&limit=x", dryRun + "&propagationPolicy=Strange", dryRun + "&fieldSelector=metadata.name=nothing"} {
			p.send(ctx, request{name: r.label() + " deletecollection " + q, method: "DELETE", path: r.collection() + "?" + q})
		}
	} else {
		p.send(ctx, request{name: r.label() + " deletecollection", method: "DELETE", path: r.collection() + "?" + dryRun})
	}
	p.send(ctx, request{name: r.label() + " delete it", method: "DELETE", path: r.path()})
	p.send(ctx, request{name: r.label() + " get what was deleted", method: "GET", path: r.path()})
}
