package openapi

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"hash/fnv"
	"net/http"
	"slices"
	"strings"

	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

func (o *operation) extensions() spec.Extensions {
	if o.action == "" {
		return nil
	}
	return spec.Extensions{
		"x-kubernetes-action": o.action,
		kindsKey:              map[string]any{"group": o.group, "kind": o.kind, "version": o.version},
	}
}

// answer is the schema of what an operation answers with.
func (m *models) answer(o *operation) *spec.Schema {
	if o.out == "" {
		return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"string"}}}
	}
	return m.refTo(o.out)
}

func (m *models) refTo(name string) *spec.Schema {
	return &spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(m.prefix + name)}}
}

// split takes the parameters that all operations of a path have out of them.
func split(ops []operation) (shared []param, own [][]param) {
	counts := map[param]int{}
	for i := range ops {
		slices.SortFunc(ops[i].params, func(a, b param) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.in, b.in)) })
		for _, p := range ops[i].params {
			counts[p]++
		}
	}
	for i := range ops {
		var rest []param
		for _, p := range ops[i].params {
			switch {
			case counts[p] < len(ops):
				rest = append(rest, p)
			case i == 0:
				shared = append(shared, p)
			}
		}
		own = append(own, rest)
	}
	return shared, own
}

func paramsV3(params []param) (out []*spec3.Parameter) {
	for _, p := range params {
		out = append(out, &spec3.Parameter{ParameterProps: spec3.ParameterProps{
			Name: p.name, In: p.in, Required: p.in == "path", Description: p.about,
			Schema: &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{p.kind}, UniqueItems: true}},
		}})
	}
	return out
}

func pathV3(m *models, ops []operation) *spec3.Path {
	shared, own := split(ops)
	p := &spec3.Path{PathProps: spec3.PathProps{Parameters: paramsV3(shared)}}
	at := map[string]**spec3.Operation{
		"get": &p.Get, "put": &p.Put, "post": &p.Post, "delete": &p.Delete, "patch": &p.Patch, "head": &p.Head, "options": &p.Options,
	}
	for i := range ops {
		*at[ops[i].method] = opV3(m, &ops[i], own[i])
	}
	return p
}

func opV3(m *models, o *operation, params []param) *spec3.Operation {
	out := &spec3.Operation{}
	out.Tags, out.Description, out.OperationId = []string{o.tag}, o.about, o.id
	out.Extensions, out.Parameters = o.extensions(), paramsV3(params)
	content := func(types []string, s *spec.Schema) map[string]*spec3.MediaType {
		c := make(map[string]*spec3.MediaType, len(types))
		for _, t := range types {
			c[t] = &spec3.MediaType{MediaTypeProps: spec3.MediaTypeProps{Schema: s}}
		}
		return c
	}
	if o.in != "" {
		out.RequestBody = &spec3.RequestBody{RequestBodyProps: spec3.RequestBodyProps{
			Content: content(o.consumes, m.refTo(o.in)), Required: o.method != "delete",
		}}
	}
	answers := map[int]*spec3.Response{
		http.StatusUnauthorized: {ResponseProps: spec3.ResponseProps{Description: http.StatusText(http.StatusUnauthorized)}},
	}
	for _, code := range o.codes {
		answers[code] = &spec3.Response{ResponseProps: spec3.ResponseProps{
			Description: http.StatusText(code), Content: content(o.produces, m.answer(o)),
		}}
	}
	out.Responses = &spec3.Responses{ResponsesProps: spec3.ResponsesProps{StatusCodeResponses: answers}}
	return out
}

func bearerV3() *spec3.SecurityScheme {
	return &spec3.SecurityScheme{SecuritySchemeProps: spec3.SecuritySchemeProps{
		Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
	}}
}

// sharedV2 gathers the parameters of version 2 that paths refer to.
type sharedV2 struct {
	params map[string]spec.Parameter
	seen   map[param]spec.Parameter
}

// add returns the reference to p instead of p, unless clients look for p
// itself or p depends on the path.
func (s *sharedV2) add(p spec.Parameter) spec.Parameter {
	if p.Name == "name" || p.In == "query" && (p.Name == "dryRun" || p.Name == "fieldValidation") ||
		p.In == "body" && !strings.HasPrefix(p.Schema.Ref.String(), "#/definitions/io.k8s.apimachinery") {
		return p
	}
	text, err := json.Marshal(p)
	if err != nil {
		return p
	}
	sum := fnv.New64()
	sum.Write(text)
	name := p.Name + "-" + base64.URLEncoding.EncodeToString(sum.Sum(nil)[:6])
	s.params[name] = p
	return spec.Parameter{Refable: spec.Refable{Ref: spec.MustCreateRef("#/parameters/" + name)}}
}

func (s *sharedV2) all(params []param) []spec.Parameter {
	out := make([]spec.Parameter, len(params))
	for i, p := range params {
		shown, ok := s.seen[p]
		if !ok {
			shown = s.add(spec.Parameter{
				SimpleSchema:      spec.SimpleSchema{Type: p.kind},
				CommonValidations: spec.CommonValidations{UniqueItems: true},
				ParamProps:        spec.ParamProps{Name: p.name, In: p.in, Required: p.in == "path", Description: p.about},
			})
			s.seen[p] = shown
		}
		out[i] = shown
	}
	return out
}

func pathV2(m *models, shared *sharedV2, ops []operation) spec.PathItem {
	params, own := split(ops)
	p := spec.PathItem{PathItemProps: spec.PathItemProps{Parameters: shared.all(params)}}
	at := map[string]**spec.Operation{
		"get": &p.Get, "put": &p.Put, "post": &p.Post, "delete": &p.Delete, "patch": &p.Patch, "head": &p.Head, "options": &p.Options,
	}
	for i := range ops {
		*at[ops[i].method] = opV2(m, shared, &ops[i], own[i])
	}
	return p
}

func opV2(m *models, shared *sharedV2, o *operation, params []param) *spec.Operation {
	out := &spec.Operation{}
	out.Tags, out.Description, out.ID = []string{o.tag}, o.about, o.id
	out.Schemes = []string{"https"}
	out.Consumes, out.Produces = o.consumes, o.produces
	out.Extensions = o.extensions()
	if o.in != "" {
		out.Parameters = append(out.Parameters, shared.add(spec.Parameter{ParamProps: spec.ParamProps{
			Name: "body", In: "body", Required: o.method != "delete", Schema: m.refTo(o.in),
		}}))
	}
	out.Parameters = append(out.Parameters, shared.all(params)...)
	answers := map[int]spec.Response{http.StatusUnauthorized: {ResponseProps: spec.ResponseProps{Description: http.StatusText(http.StatusUnauthorized)}}}
	for _, code := range o.codes {
		answers[code] = spec.Response{ResponseProps: spec.ResponseProps{Description: http.StatusText(code), Schema: m.answer(o)}}
	}
	out.Responses = &spec.Responses{ResponsesProps: spec.ResponsesProps{StatusCodeResponses: answers}}
	return out
}
