package openapi

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
)

// models gathers the definitions of Go types, each with all it refers to.
type models struct {
	v3     bool
	prefix string // of references: "#/definitions/" or "#/components/schemas/"
	defs   map[string]spec.Schema
	// lists tells how lists and maps merge, by definition name; nil: unknown.
	lists map[string]schema.TypeDef
}

func newModels(v3 bool, lists map[string]schema.TypeDef) *models {
	m := &models{v3: v3, prefix: "#/definitions/", defs: map[string]spec.Schema{}, lists: lists}
	if v3 {
		m.prefix = "#/components/schemas/"
	}
	return m
}

// Types may say how they look on the wire; most look like their Go kind.
type (
	named    interface{ OpenAPIModelName() string }
	typed    interface{ OpenAPISchemaType() []string }
	format   interface{ OpenAPISchemaFormat() string }
	oneOf    interface{ OpenAPIV3OneOfTypes() []string }
	describe interface{ SwaggerDoc() map[string]string }
)

// ModelName is the definition name of a Go type: "io.k8s.api.core.v1.Pod".
func ModelName(t reflect.Type) string {
	if n, ok := reflect.New(t).Elem().Interface().(named); ok {
		return n.OpenAPIModelName()
	}
	return strings.ReplaceAll(strings.ReplaceAll(t.PkgPath(), "/", "."), "k8s.io.", "io.k8s.") + "." + t.Name()
}

// define adds the definition of a named type and returns its name.
func (m *models) define(t reflect.Type) string {
	name := ModelName(t)
	if _, ok := m.defs[name]; ok {
		return name
	}
	m.defs[name] = spec.Schema{} // stops recursion
	m.defs[name] = m.definition(name, t)
	return name
}

func (m *models) definition(name string, t reflect.Type) spec.Schema {
	s := spec.Schema{}
	v := reflect.New(t).Elem().Interface()
	if d, ok := v.(describe); ok {
		s.Description = d.SwaggerDoc()[""]
	}
	if w, ok := v.(typed); ok {
		s.Type = w.OpenAPISchemaType()
		if f, ok := v.(format); ok {
			s.Format = f.OpenAPISchemaFormat()
		}
		if o, ok := v.(oneOf); ok && m.v3 {
			s.Type = nil
			for _, kind := range o.OpenAPIV3OneOfTypes() {
				s.OneOf = append(s.OneOf, spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{kind}}})
			}
		}
		return s
	}
	s.Type = []string{"object"}
	if opaque(name) || t.Kind() != reflect.Struct {
		return s
	}
	s.Properties = map[string]spec.Schema{}
	m.properties(&s, name, t)
	slices.Sort(s.Required)
	if len(s.Properties) == 0 {
		s.Properties = nil
	}
	if d, ok := m.lists[name]; ok && d.Map != nil && d.Map.ElementRelationship == schema.Atomic {
		s.AddExtension("x-kubernetes-map-type", "atomic")
	}
	return s
}

// opaque types hold any JSON.
func opaque(name string) bool {
	switch name {
	case "io.k8s.apimachinery.pkg.runtime.RawExtension", "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1":
		return true
	}
	return false
}

func (m *models) properties(s *spec.Schema, owner string, t reflect.Type) {
	var docs map[string]string
	if d, ok := reflect.New(t).Elem().Interface().(describe); ok {
		docs = d.SwaggerDoc()
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		inline := strings.Contains(opts, "inline") || f.Anonymous && name == ""
		if inline && indirect(f.Type).Kind() == reflect.Struct {
			m.properties(s, owner, indirect(f.Type))
			continue
		}
		if name == "" || name == "-" || !f.IsExported() {
			continue
		}
		p := m.property(f.Type, docs[name])
		if v := f.Tag.Get("patchStrategy"); v != "" {
			p.AddExtension("x-kubernetes-patch-strategy", v)
		}
		if v := f.Tag.Get("patchMergeKey"); v != "" {
			p.AddExtension("x-kubernetes-patch-merge-key", v)
		}
		m.addMergeRules(&p, owner, name)
		s.Properties[name] = p
		if !strings.Contains(opts, "omitempty") && !strings.Contains(opts, "omitzero") && !optional[t.Name()+"."+name] {
			s.Required = append(s.Required, name)
		}
	}
}

// addMergeRules tells how a list or map field merges, and its default.
func (m *models) addMergeRules(p *spec.Schema, owner, name string) {
	def, ok := m.lists[owner]
	if !ok || def.Map == nil {
		return
	}
	f, ok := def.Map.FindField(name)
	if !ok {
		return
	}
	if f.Default != nil && p.Default == nil {
		if d, isMap := f.Default.(map[any]any); !isMap || len(d) > 0 {
			p.Default = f.Default
		}
	}
	switch l := f.Type.Inlined.List; {
	case l == nil:
		if mp := f.Type.Inlined.Map; mp != nil && mp.ElementRelationship == schema.Atomic {
			p.AddExtension("x-kubernetes-map-type", "atomic")
		}
	case l.ElementRelationship == schema.Associative && len(l.Keys) > 0:
		keys := make([]any, len(l.Keys))
		for i, k := range l.Keys {
			keys[i] = k
		}
		p.AddExtension("x-kubernetes-list-type", "map")
		p.AddExtension("x-kubernetes-list-map-keys", keys)
	case l.ElementRelationship == schema.Associative:
		p.AddExtension("x-kubernetes-list-type", "set")
	default:
		p.AddExtension("x-kubernetes-list-type", "atomic")
	}
}

func indirect(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

// property is the schema of a value of type t where it is used.
func (m *models) property(t reflect.Type, doc string) spec.Schema {
	t = indirect(t)
	s := spec.Schema{SchemaProps: spec.SchemaProps{Description: doc}}
	simple := func(kind, format string) { s.Type, s.Format = []string{kind}, format }
	_, isNamed := reflect.New(t).Elem().Interface().(named)
	switch k := t.Kind(); {
	case k == reflect.Struct || isNamed && k != reflect.String:
		return m.reference(t, doc)
	case k == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		simple("string", "byte")
	case k == reflect.Slice:
		items := m.property(t.Elem(), "")
		simple("array", "")
		s.Items = &spec.SchemaOrArray{Schema: &items}
	case k == reflect.Map:
		elem := m.property(t.Elem(), "")
		simple("object", "")
		s.AdditionalProperties = &spec.SchemaOrBool{Allows: true, Schema: &elem}
	case k == reflect.Bool:
		simple("boolean", "")
	case k == reflect.Int32:
		simple("integer", "int32")
	case k == reflect.Int64, k == reflect.Int:
		simple("integer", "int64")
	case k == reflect.Float64:
		simple("number", "double")
	case k == reflect.Interface:
		simple("object", "")
	default:
		simple("string", "")
	}
	return s
}

// reference points at the definition of t. In version 3 a description may only
// stand beside a reference when that is wrapped.
func (m *models) reference(t reflect.Type, doc string) spec.Schema {
	ref := spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(m.prefix + m.define(t))}}
	if !m.v3 {
		ref.Description = doc
		return ref
	}
	if doc == "" {
		return ref
	}
	return spec.Schema{SchemaProps: spec.SchemaProps{Description: doc, AllOf: []spec.Schema{ref}}}
}

// addKind notes which kind, in which group and version, a definition is the body of.
func (m *models) addKind(t reflect.Type, group, version, kind string) string {
	name := m.define(t)
	s := m.defs[name]
	gvk := map[string]any{"group": group, "kind": kind, "version": version}
	var all []any
	if old, ok := s.Extensions["x-kubernetes-group-version-kind"].([]any); ok {
		all = slices.Clone(old)
	}
	for _, have := range all {
		if maps.Equal(have.(map[string]any), gvk) {
			return name
		}
	}
	s.AddExtension("x-kubernetes-group-version-kind", append(all, gvk))
	m.defs[name] = s
	return name
}

// optional lists the fields that may be left out though their Go tags do not say so.
var optional = map[string]bool{
	"StatefulSetOrdinals.start": true, "StatefulSetSpec.serviceName": true, "StatefulSetStatus.availableReplicas": true,
	"TokenRequestSpec.expirationSeconds": true, "TokenRequestSpec.boundObjectRef": true,
	"HorizontalPodAutoscalerStatus.currentMetrics": true, "PodFailurePolicyOnPodConditionsPattern.status": true,
	"TypedObjectReference.apiGroup": true, "TypedLocalObjectReference.apiGroup": true,
	"AzureFilePersistentVolumeSource.secretNamespace": true, "ProjectedVolumeSource.sources": true, "GRPCAction.service": true,
	"NodeRuntimeHandler.name": true, "ContainerImage.names": true, "Event.reportingComponent": true, "Event.reportingInstance": true,
	"Event.metadata": false, "EndpointSlice.ports": true, "FlowSchemaSpec.matchingPrecedence": true,
	"LimitedPriorityLevelConfiguration.nominalConcurrencyShares": true, "QueuingConfiguration.queues": true,
	"QueuingConfiguration.handSize": true, "QueuingConfiguration.queueLengthLimit": true, "NetworkPolicySpec.podSelector": true,
	"ResourceClaimSpec.devices": true, "DeviceClaim.requests": true, "AllocatedDeviceStatus.conditions": true,
	"CapacityRequestPolicy.default": true, "ClusterRole.rules": true, "Role.rules": true, "CSINodeDriver.topologyKeys": true,
}
