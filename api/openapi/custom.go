package openapi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/api"
)

// customName is the definition name of a custom resource: "com.example.stable.v1.CronTab".
func customName(group, version, kind string) string {
	parts := strings.Split(group, ".")
	slices.Reverse(parts)
	return strings.Join(append(parts, version, kind), ".")
}

// addCustom adds the definitions of a custom resource and of its lists.
func (m *models) addCustom(r *api.Resource, v *api.Version) (kind, list string) {
	kind, list = customName(r.Group, v.Name, r.Kind), customName(r.Group, v.Name, r.List())
	s, open, err := v.Model(!m.v3)
	if err != nil || s == nil { // the definition is gone, or its schema is one that cannot be told
		s, open = &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}, true
	}
	if !open {
		m.embedded(s)
		m.objectFields(s)
	}
	gvk := func(kind string) []any {
		return []any{map[string]any{"group": r.Group, "kind": kind, "version": v.Name}}
	}
	l := spec.Schema{SchemaProps: spec.SchemaProps{
		Type: []string{"object"}, Description: fmt.Sprintf("%s is a list of %s", r.List(), r.Kind), Required: []string{"items"},
	}}
	about := fmt.Sprintf("List of %s. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", r.Name)
	l.SetProperty("items", spec.Schema{SchemaProps: spec.SchemaProps{
		Type: []string{"array"}, Description: about, Items: &spec.SchemaOrArray{Schema: m.refTo(kind)},
	}})
	l.SetProperty("metadata", m.reference(metav1.ListMeta{}.OpenAPIModelName(), metav1.PartialObjectMetadataList{}.SwaggerDoc()["metadata"]))
	m.typeFields(&l)
	for of, def := range map[string]*spec.Schema{r.Kind: s, r.List(): &l} {
		def.AddExtension("x-kubernetes-group-version-kind", gvk(of))
		if r.Strategy.Selectable == nil {
			continue
		}
		var paths []any
		for _, f := range slices.Sorted(maps.Keys(r.Strategy.Selectable(v.New()))) {
			paths = append(paths, map[string]any{"fieldPath": f})
		}
		if len(paths) > 0 {
			def.AddExtension("x-kubernetes-selectable-fields", paths)
		}
	}
	m.defs[kind], m.defs[list] = *s, l
	return kind, list
}

// TypeConverter knows the types of resources for server-side apply. With
// preserve, fields no schema has are tracked too.
func TypeConverter(resources []*api.Resource, preserve bool) (managedfields.TypeConverter, error) {
	b, err := New(Config{Resources: resources})
	if err != nil {
		return nil, err
	}
	models, err := b.Models()
	if err != nil {
		return nil, err
	}
	return managedfields.NewTypeConverter(models, preserve)
}

// typeFields adds apiVersion and kind.
func (m *models) typeFields(s *spec.Schema) {
	docs := metav1.TypeMeta{}.SwaggerDoc()
	for _, f := range []string{"apiVersion", "kind"} {
		s.SetProperty(f, spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"string"}, Description: docs[f]}})
	}
}

// objectFields adds what every object has.
func (m *models) objectFields(s *spec.Schema) {
	s.SetProperty("metadata", m.reference(metav1.ObjectMeta{}.OpenAPIModelName(), metav1.PartialObjectMetadata{}.SwaggerDoc()["metadata"]))
	m.typeFields(s)
}

// embedded adds it to the objects within s, too; version 2 tells no defaults.
func (m *models) embedded(s *spec.Schema) {
	if s == nil {
		return
	}
	if !m.v3 {
		s.Default = nil
	}
	for name, p := range s.Properties {
		m.embedded(&p)
		s.Properties[name] = p
	}
	if s.Items != nil {
		m.embedded(s.Items.Schema)
	}
	if s.AdditionalProperties != nil {
		m.embedded(s.AdditionalProperties.Schema)
	}
	if keeps, ok := s.Extensions.GetBool("x-kubernetes-preserve-unknown-fields"); ok && keeps && !m.v3 {
		return // kubectl would take what it is told for all there is
	}
	if is, ok := s.Extensions.GetBool("x-kubernetes-embedded-resource"); !ok || !is {
		return
	}
	m.objectFields(s)
	const more = " More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"
	for f, about := range map[string]string{
		"kind":       "kind is a string value representing the type of this object. In CamelCase." + more + "#types-kinds",
		"apiVersion": "apiVersion defines the versioned schema of this representation of an object." + more + "#resources",
	} {
		s.SetProperty(f, spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"string"}, Description: about}})
	}
	for _, f := range []string{"kind", "apiVersion"} {
		if !slices.Contains(s.Required, f) {
			s.Required = append(s.Required, f)
		}
	}
}
