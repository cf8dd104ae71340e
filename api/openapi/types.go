package openapi

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"k8s.io/kube-openapi/pkg/validation/spec"
)

// The definitions of Go types in OpenAPI v3, by name: what upstream's generator
// reads off the comments and tags of their sources. TestTypesAreUpstreams says
// when they are not that any more, and writes them with -update. What every
// object has is apart: custom resources need no more.
var (
	//go:embed meta.json.gz
	packedMeta []byte
	//go:embed types.json.gz
	packedTypes []byte
)

// types has the definitions; what it returns is the caller's own.
type types func(name string) (spec.Schema, error)

// isMeta tells in which part a definition is.
func isMeta(name string) bool { return strings.HasPrefix(name, "io.k8s.apimachinery.") }

// packed are the embedded types; each part is unpacked when the first of it is asked for.
func packed() types {
	meta := sync.OnceValues(func() (map[string]json.RawMessage, error) { return unpack(packedMeta) })
	rest := sync.OnceValues(func() (map[string]json.RawMessage, error) { return unpack(packedTypes) })
	return func(name string) (s spec.Schema, err error) {
		part := rest
		if isMeta(name) {
			part = meta
		}
		all, err := part()
		if err != nil {
			return s, err
		}
		raw, ok := all[name]
		if !ok {
			return s, fmt.Errorf("the table of types lacks %s: go test ./api/openapi -update writes it anew", name)
		}
		return s, s.UnmarshalJSON(raw)
	}
}

func unpack(packed []byte) (all map[string]json.RawMessage, err error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		err = json.NewDecoder(z).Decode(&all)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack the table of types: %w", err)
	}
	return all, nil
}

const refPrefix = "#/components/schemas/"

// models gathers the definitions of one document, each with all it refers to.
type models struct {
	v3     bool
	prefix string // of references
	types  types
	defs   map[string]spec.Schema
	params map[string][]param // of options, by type
	err    error              // the first definition that could not be had
}

func newModels(v3 bool, types types) *models {
	m := &models{v3: v3, prefix: refPrefix, types: types, defs: map[string]spec.Schema{}, params: map[string][]param{}}
	if !v3 {
		m.prefix = "#/definitions/"
	}
	return m
}

// modelName is the definition name of a built-in object: "io.k8s.api.core.v1.Pod".
func modelName(obj any) string {
	return obj.(interface{ OpenAPIModelName() string }).OpenAPIModelName()
}

// define adds a definition, and returns its name.
func (m *models) define(name string) string {
	if _, ok := m.defs[name]; ok {
		return name
	}
	s, err := m.types(name)
	if err != nil && m.err == nil {
		m.err = err
	}
	m.defs[name] = s // stops recursion
	m.adapt(&s)
	m.defs[name] = s
	return name
}

// adapt adds the definitions that s refers to, and puts s in the words of the
// document's version: version 2 has no defaults, no alternatives, and
// descriptions beside references.
func (m *models) adapt(s *spec.Schema) {
	if !m.v3 {
		s.Default = nil
		if len(s.AllOf) == 1 {
			s.Ref, s.AllOf = s.AllOf[0].Ref, nil
		}
		if len(s.OneOf) > 0 {
			s.Type, s.OneOf = []string{"string"}, nil
		}
	}
	if ref := s.Ref.String(); ref != "" {
		s.Ref = spec.MustCreateRef(m.prefix + m.define(strings.TrimPrefix(ref, refPrefix)))
	}
	for i := range s.AllOf {
		m.adapt(&s.AllOf[i])
	}
	if s.Items != nil {
		m.adapt(s.Items.Schema)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		m.adapt(s.AdditionalProperties.Schema)
	}
	for name, p := range s.Properties {
		m.adapt(&p)
		s.Properties[name] = p
	}
}

// reference points at a definition. In version 3 a description may only stand
// beside a reference when that is wrapped.
func (m *models) reference(name, doc string) spec.Schema {
	ref := spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(m.prefix + m.define(name))}}
	if !m.v3 {
		ref.Description = doc
		return ref
	}
	return spec.Schema{SchemaProps: spec.SchemaProps{Description: doc, AllOf: []spec.Schema{ref}}}
}
