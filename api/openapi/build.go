// Package openapi builds the OpenAPI documents of the served resources, equal
// to those of upstream's kube-apiserver. A Builder keeps the definitions of
// types that it has unpacked, and no documents: those are a few megabytes that
// clients ask for once an hour, so callers cache what they serve and drop both
// when idle.
package openapi

import (
	"fmt"
	"slices"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/api"
)

// Config says what to describe.
type Config struct {
	Resources []*api.Resource
	// Version is the version of the API server, as shown in the documents: "v1.37.2".
	Version string
}

// Builder builds documents. It is safe for concurrent use.
type Builder struct {
	cfg   Config
	types types
}

// New checks the configuration.
func New(cfg Config) (*Builder, error) {
	if len(cfg.Resources) == 0 {
		return nil, fmt.Errorf("openapi: no resources to describe")
	}
	return &Builder{cfg: cfg, types: packed()}, nil
}

// PathOf is the path of a group version's document below /openapi/v3/: "api/v1", "apis/apps/v1".
func PathOf(group, version string) string {
	if group == "" {
		return "api/" + version
	}
	return "apis/" + group + "/" + version
}

// Documents are the version 3 documents, by path below /openapi/v3/, each with
// the resources it describes; those about the server itself have none.
func Documents(resources []*api.Resource) map[string][]*api.Resource {
	docs := map[string][]*api.Resource{}
	for path := range pages(resources) {
		docs[path] = nil
	}
	for _, r := range resources {
		for _, v := range r.Versions {
			path := PathOf(r.Group, v.Name)
			docs[path] = append(docs[path], r)
		}
	}
	return docs
}

// V3 is a version 3 document, as JSON, by its path below /openapi/v3/.
func (b *Builder) V3(path string) ([]byte, error) {
	m := newModels(true, b.types)
	doc := &spec3.OpenAPI{
		Version: "3.0.0",
		Info:    &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: b.cfg.Version}},
		Paths:   &spec3.Paths{Paths: map[string]*spec3.Path{}},
	}
	page, found := pages(b.cfg.Resources)[path]
	if found {
		doc.Paths.Paths["/"+path+"/"] = pathV3(m, []operation{m.page(page)})
	}
	group, version, custom := "", "", false
	for _, r := range b.cfg.Resources {
		for _, v := range r.Versions {
			if PathOf(r.Group, v.Name) != path {
				continue
			}
			group, version, found, custom = r.Group, v.Name, true, custom || r.Codec != nil
			for url, ops := range operations(m, r, v) {
				doc.Paths.Paths[url] = pathV3(m, ops)
			}
		}
	}
	if !found {
		return nil, fmt.Errorf("openapi: nothing is served at %s", path)
	}
	if m.err != nil {
		return nil, fmt.Errorf("openapi: %s: %w", path, m.err)
	}
	for name, s := range m.defs {
		scope(&s, group, version, custom)
		m.defs[name] = s
	}
	doc.Components = &spec3.Components{Schemas: pointers(m.defs)}
	if custom {
		doc.Info.Title, doc.Info.Version = "Kubernetes CRD Swagger", "v0.1.0"
	} else {
		doc.Components.SecuritySchemes = spec3.SecuritySchemes{"BearerToken": bearerV3()}
	}
	return doc.MarshalJSON()
}

// V2 is the OpenAPI v2 document of everything, as JSON.
func (b *Builder) V2() ([]byte, error) {
	m := newModels(false, b.types)
	shared := &sharedV2{params: map[string]spec.Parameter{}, seen: map[param]spec.Parameter{}}
	doc := &spec.Swagger{SwaggerProps: spec.SwaggerProps{
		Swagger: "2.0",
		Info:    &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: b.cfg.Version}},
		Paths:   &spec.Paths{Paths: map[string]spec.PathItem{}},
		SecurityDefinitions: spec.SecurityDefinitions{"BearerToken": {SecuritySchemeProps: spec.SecuritySchemeProps{
			Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
		}}},
		Security: []map[string][]string{{"BearerToken": {}}},
	}}
	for path, page := range pages(b.cfg.Resources) {
		doc.Paths.Paths["/"+path+"/"] = pathV2(m, shared, []operation{m.page(page)})
	}
	for _, r := range b.cfg.Resources {
		for _, v := range r.Versions {
			for path, ops := range operations(m, r, v) {
				doc.Paths.Paths[path] = pathV2(m, shared, ops)
			}
		}
	}
	if m.err != nil {
		return nil, fmt.Errorf("openapi: version 2: %w", m.err)
	}
	doc.Definitions, doc.Parameters = m.defs, shared.params
	return doc.MarshalJSON()
}

// ProtoV2 encodes a version 2 document as gnostic's protobuf, which clients ask for.
func ProtoV2(doc []byte) ([]byte, error) {
	parsed, err := openapi_v2.ParseDocument(doc)
	if err != nil {
		return nil, fmt.Errorf("openapi: encode version 2: %w", err)
	}
	return proto.Marshal(parsed)
}

// ProtoV3 encodes a version 3 document as gnostic's protobuf.
func ProtoV3(doc []byte) ([]byte, error) {
	parsed, err := openapi_v3.ParseDocument(doc)
	if err != nil {
		return nil, fmt.Errorf("openapi: encode version 3: %w", err)
	}
	return proto.Marshal(parsed)
}

// Models are the version 3 definitions of all resources, by name; a server-side
// apply type converter can be built from them.
func (b *Builder) Models() (map[string]*spec.Schema, error) {
	m := newModels(true, b.types)
	for _, r := range b.cfg.Resources {
		for _, v := range r.Versions {
			m.addResource(r, &v)
		}
	}
	return pointers(m.defs), m.err
}

const kindsKey = "x-kubernetes-group-version-kind"

// scope leaves, of the some sixty groups that the bodies all groups share are
// known in, the one without a name and that of the document. Upstream tells of
// custom resources what its clients know, and they do not know all.
func scope(s *spec.Schema, group, version string, custom bool) {
	kinds, _ := s.Extensions[kindsKey].([]any)
	if len(kinds) < 2 {
		return
	}
	kinds = slices.DeleteFunc(kinds, func(k any) bool {
		kind := k.(map[string]any)
		of := kind["group"]
		if custom {
			return of == "admission.k8s.io" || of == "apiextensions.k8s.io" || of == "apiregistration.k8s.io" || of == "imagepolicy.k8s.io"
		}
		return of != "" && (of != group || kind["version"] != version)
	})
	s.Extensions[kindsKey] = kinds
}

func pointers(defs map[string]spec.Schema) map[string]*spec.Schema {
	out := make(map[string]*spec.Schema, len(defs))
	for name, s := range defs {
		out[name] = &s
	}
	return out
}
