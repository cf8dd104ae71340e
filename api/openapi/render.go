package openapi

import (
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

var (
	objectTypes = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"}
	watchTypes  = []string{"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch", "application/cbor-seq"}
	patchTypes  = []string{
		"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json",
		"application/apply-patch+yaml", "application/apply-patch+cbor",
	}
	pathAbout = map[string]string{
		"name":      "name of the object",
		"namespace": "object name and auth scope, such as for teams and projects",
	}
)

func (o *operation) extensions() spec.Extensions {
	return spec.Extensions{
		"x-kubernetes-action":             o.action,
		"x-kubernetes-group-version-kind": map[string]any{"group": o.group, "kind": o.kind, "version": o.version},
	}
}

func (o *operation) consumes() []string {
	if o.method == "patch" && o.action == "patch" {
		if o.custom {
			return []string{patchTypes[0], patchTypes[1], patchTypes[3]}
		}
		return patchTypes
	}
	return []string{"*/*"}
}

func (o *operation) produces() []string {
	switch {
	case o.plain:
		return []string{"*/*"}
	case o.custom:
		return objectTypes[:2]
	case o.action == "list":
		return append(append([]string{}, objectTypes...), watchTypes...)
	}
	return objectTypes
}

// codes are the successful answers of an operation.
func (o *operation) codes() map[int]string {
	codes := map[int]string{200: "OK"}
	if o.created {
		codes[201] = "Created"
	}
	if o.method == "post" || o.action == "delete" {
		codes[202] = "Accepted"
	}
	return codes
}

func (m *models) refTo(name string) *spec.Schema {
	return &spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(m.prefix + name)}}
}

func pathV3(m *models, ops []operation) *spec3.Path {
	p := &spec3.Path{}
	for i := range ops {
		o := opV3(m, &ops[i])
		switch ops[i].method {
		case "get":
			p.Get = o
		case "put":
			p.Put = o
		case "post":
			p.Post = o
		case "delete":
			p.Delete = o
		case "patch":
			p.Patch = o
		}
	}
	return p
}

func simple(kind string) *spec.Schema {
	return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{kind}, UniqueItems: true}}
}

func opV3(m *models, o *operation) *spec3.Operation {
	out := &spec3.Operation{}
	out.Tags, out.Description, out.OperationId = []string{o.tag}, o.about, o.id
	out.Extensions = o.extensions()
	for _, name := range o.path {
		out.Parameters = append(out.Parameters, &spec3.Parameter{ParameterProps: spec3.ParameterProps{
			Name: name, In: "path", Required: true, Description: pathAbout[name], Schema: simple("string"),
		}})
	}
	for _, q := range o.query {
		out.Parameters = append(out.Parameters, &spec3.Parameter{ParameterProps: spec3.ParameterProps{
			Name: q.name, In: "query", Description: q.about, Schema: simple(q.kind),
		}})
	}
	if o.in != "" {
		body := &spec3.RequestBody{}
		body.Content, body.Required = map[string]*spec3.MediaType{}, o.method != "delete"
		for _, t := range o.consumes() {
			body.Content[t] = media(m.refTo(o.in))
		}
		out.RequestBody = body
	}
	answers := map[int]*spec3.Response{401: {ResponseProps: spec3.ResponseProps{Description: "Unauthorized"}}}
	for code, text := range o.codes() {
		r := &spec3.Response{}
		r.Description, r.Content = text, map[string]*spec3.MediaType{}
		body := simpleText()
		if o.out != "" && !o.plain {
			body = m.refTo(o.out)
		}
		for _, t := range o.produces() {
			r.Content[t] = media(body)
		}
		answers[code] = r
	}
	out.Responses = &spec3.Responses{ResponsesProps: spec3.ResponsesProps{StatusCodeResponses: answers}}
	return out
}

func simpleText() *spec.Schema {
	return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"string"}}}
}

func media(s *spec.Schema) *spec3.MediaType {
	return &spec3.MediaType{MediaTypeProps: spec3.MediaTypeProps{Schema: s}}
}

func bearerV3() *spec3.SecurityScheme {
	return &spec3.SecurityScheme{SecuritySchemeProps: spec3.SecuritySchemeProps{
		Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
	}}
}

func pathV2(m *models, ops []operation) spec.PathItem {
	p := spec.PathItem{}
	for i := range ops {
		o := opV2(m, &ops[i])
		switch ops[i].method {
		case "get":
			p.Get = o
		case "put":
			p.Put = o
		case "post":
			p.Post = o
		case "delete":
			p.Delete = o
		case "patch":
			p.Patch = o
		}
	}
	return p
}

func opV2(m *models, o *operation) *spec.Operation {
	out := &spec.Operation{}
	out.Tags, out.Description, out.ID = []string{o.tag}, o.about, o.id
	out.Schemes = []string{"https"}
	out.Consumes, out.Produces = o.consumes(), o.produces()
	out.Extensions = o.extensions()
	for _, name := range o.path {
		out.Parameters = append(out.Parameters, spec.Parameter{
			SimpleSchema:      spec.SimpleSchema{Type: "string"},
			CommonValidations: spec.CommonValidations{UniqueItems: true},
			ParamProps:        spec.ParamProps{Name: name, In: "path", Required: true, Description: pathAbout[name]},
		})
	}
	for _, q := range o.query {
		out.Parameters = append(out.Parameters, spec.Parameter{
			SimpleSchema:      spec.SimpleSchema{Type: q.kind},
			CommonValidations: spec.CommonValidations{UniqueItems: true},
			ParamProps:        spec.ParamProps{Name: q.name, In: "query", Description: q.about},
		})
	}
	if o.in != "" {
		out.Parameters = append(out.Parameters, spec.Parameter{ParamProps: spec.ParamProps{
			Name: "body", In: "body", Required: o.method != "delete", Schema: m.refTo(o.in),
		}})
	}
	answers := map[int]spec.Response{401: {ResponseProps: spec.ResponseProps{Description: "Unauthorized"}}}
	for code, text := range o.codes() {
		body := simpleText()
		if o.out != "" && !o.plain {
			body = m.refTo(o.out)
		}
		answers[code] = spec.Response{ResponseProps: spec.ResponseProps{Description: text, Schema: body}}
	}
	out.Responses = &spec.Responses{ResponsesProps: spec.ResponsesProps{StatusCodeResponses: answers}}
	return out
}
