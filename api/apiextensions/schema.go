package apiextensions

import (
	"fmt"
	"reflect"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/api/check"
)

type props = apiextensions.JSONSchemaProps

// relaxed are the checks an update is spared because the stored definition
// does not pass them either.
type relaxed struct {
	noSchema, badTypes, nonStructural, unprunedDefaults, nonAtomicSets, looseKeys bool
}

func relaxedFor(old *apiextensions.CustomResourceDefinition) (r relaxed) {
	if old == nil {
		return r
	}
	s := &old.Spec
	if s.Validation == nil || s.Validation.OpenAPIV3Schema == nil {
		for _, v := range s.Versions {
			r.noSchema = r.noSchema || v.Schema == nil || v.Schema.OpenAPIV3Schema == nil
		}
	}
	r.badTypes = anySchema(s, func(s *props) bool { return badType(s) })
	r.nonAtomicSets = anySchema(s, func(s *props) bool { p, _ := nonAtomicSet(s); return p != "" })
	r.looseKeys = anySchema(s, func(s *props) bool { l := &check.List{}; checkListKeys(l, nil, s); return len(l.Errors) > 0 })
	for _, root := range roots(s) {
		ss, err := structuralschema.NewStructural(root)
		if err != nil || len(structuralschema.ValidateStructural(nil, ss)) > 0 {
			r.nonStructural = true
			continue
		}
		pruned := ss.DeepCopy()
		if defaulting.PruneDefaults(pruned) == nil && !reflect.DeepEqual(ss, pruned) {
			r.unprunedDefaults = true
		}
	}
	return r
}

// roots are the schemas of a definition.
func roots(s *apiextensions.CustomResourceDefinitionSpec) (out []*props) {
	if s.Validation != nil && s.Validation.OpenAPIV3Schema != nil {
		out = append(out, s.Validation.OpenAPIV3Schema)
	}
	for _, v := range s.Versions {
		if v.Schema != nil && v.Schema.OpenAPIV3Schema != nil {
			out = append(out, v.Schema.OpenAPIV3Schema)
		}
	}
	return out
}

// anySchema tells whether a schema somewhere in a definition satisfies is.
func anySchema(s *apiextensions.CustomResourceDefinitionSpec, is func(*props) bool) bool {
	return slices.ContainsFunc(roots(s), func(root *props) bool { return within(root, is) })
}

func within(s *props, is func(*props) bool) bool {
	if s == nil {
		return false
	}
	if is(s) {
		return true
	}
	found := false
	children(s, func(c *props) { found = found || within(c, is) })
	return found
}

// children calls f with each schema directly below s.
func children(s *props, f func(*props)) {
	each := func(l []props) {
		for i := range l {
			f(&l[i])
		}
	}
	byName := func(m map[string]props) {
		for _, c := range m {
			f(&c)
		}
	}
	if s.Items != nil {
		f(s.Items.Schema)
		each(s.Items.JSONSchemas)
	}
	each(s.AllOf)
	each(s.AnyOf)
	each(s.OneOf)
	f(s.Not)
	byName(s.Properties)
	if s.AdditionalProperties != nil {
		f(s.AdditionalProperties.Schema)
	}
	byName(s.PatternProperties)
	if s.AdditionalItems != nil {
		f(s.AdditionalItems.Schema)
	}
	byName(s.Definitions)
	for _, d := range s.Dependencies {
		f(d.Schema)
	}
}

var schemaTypes = []string{"array", "boolean", "integer", "number", "object", "string"}

func badType(s *props) bool { return s.Type != "" && !slices.Contains(schemaTypes, s.Type) }

// atRoot are the fields that may be set at the root of a schema whose
// "status" is checked by itself.
var atRoot = []string{"Description", "Type", "Format", "Title", "Maximum", "ExclusiveMaximum", "Minimum", "ExclusiveMinimum", "MaxLength", "MinLength", "Pattern", "MaxItems", "MinItems", "UniqueItems", "MultipleOf", "Required", "Items", "Properties", "ExternalDocs", "Example", "XPreserveUnknownFields", "XValidations"}

func (l *specChecks) checkValidation(p *field.Path, v *apiextensions.CustomResourceValidation, status bool, version string) {
	if v == nil {
		return
	}
	before := len(l.Errors)
	if v.OpenAPIV3Schema != nil {
		l.checkRoot(p, v.OpenAPIV3Schema, status, version)
	}
	if len(l.Errors) == before {
		if _, _, err := schemavalidation.NewSchemaValidator(v.OpenAPIV3Schema); err != nil {
			l.Invalid(p, "", fmt.Sprintf("error building validator: %v", err))
		}
	}
}

func (l *specChecks) checkRoot(parent *field.Path, s *props, status bool, version string) {
	p, before := parent.Child("openAPIV3Schema"), len(l.Errors)
	if status {
		l.checkRootFields(parent, s)
	}
	if s.Nullable {
		l.Forbidden(parent.Child("openAPIV3Schema.nullable"), "nullable cannot be true at the root")
	}
	var notStructural error
	var node *celNode
	if !l.relaxed.nonStructural {
		ss, err := structuralschema.NewStructural(s)
		if err != nil {
			notStructural = err
		} else if errs := structuralschema.ValidateStructural(p, ss); len(errs) > 0 {
			l.Add(errs)
		} else if errs, err := defaulting.ValidateDefaults(l.ctx, p, ss, true, !l.relaxed.unprunedDefaults); err != nil {
			l.Invalid(p, "", err.Error())
		} else if len(errs) > 0 {
			l.Add(errs)
		} else {
			node = rootNode(s)
		}
	}
	w := &walk{relaxed: l.relaxed, cel: l.settings, unchanged: l.unchanged(version)}
	w.schema(p, s, place{root: true}, node)
	l.Add(w.Errors)
	l.Add(w.celErrors)
	if len(l.Errors) == before && notStructural != nil {
		l.Invalid(p, "", notStructural.Error())
	}
	if node != nil {
		l.Add(node.total.check(p))
	}
}

func (l *specChecks) checkRootFields(p *field.Path, s *props) {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		switch {
		case v.Field(i).IsZero():
		case name == "Type" && s.Type != "object":
			l.Invalid(p.Child("openAPIV3Schema.type"), s.Type, `only "object" is allowed as the type at the root of the schema if the status subresource is enabled`)
			return
		case !slices.Contains(atRoot, name):
			l.Invalid(p.Child("openAPIV3Schema"), *s, fmt.Sprintf(`only %v fields are allowed at the root of the schema if the status subresource is enabled`, atRoot))
			return
		}
	}
}

// unchanged tells whether the schema of a version is as it was.
func (l *specChecks) unchanged(version string) bool {
	if l.old == nil {
		return false
	}
	now, err := apiextensions.GetSchemaForVersion(&apiextensions.CustomResourceDefinition{Spec: *l.spec}, version)
	before, errBefore := apiextensions.GetSchemaForVersion(l.old, version)
	return err == nil && errBefore == nil && reflect.DeepEqual(now, before)
}

// place is where in a schema the walk is.
type place struct {
	root      bool
	inMeta    bool        // inside the metadata of an object
	noDefault string      // why no default may be set; empty: it may
	uncertain *field.Path // above here, old and new values cannot be told to belong together
}

// walk checks a schema and all below it. Errors about rules are kept apart:
// they come last.
type walk struct {
	check.List
	celErrors field.ErrorList
	relaxed   relaxed
	cel       celSettings
	unchanged bool
}

var metaFields = []string{"metadata", "kind", "apiVersion"}

func (w *walk) schema(p *field.Path, s *props, at place, node *celNode) {
	if s == nil {
		return
	}
	before := len(w.Errors)
	w.unsupported(p, s, at)
	w.ForbidIf(p.Child("uniqueItems"), s.UniqueItems, "uniqueItems cannot be set to true since the runtime complexity becomes quadratic")
	below := place{inMeta: at.inMeta, noDefault: at.noDefault, uncertain: at.uncertain}
	if a := s.AdditionalProperties; a != nil {
		w.ForbidIf(p.Child("additionalProperties"), len(s.Properties) > 0 && (!a.Allows || a.Schema != nil), "additionalProperties and properties are mutual exclusive")
		in := below
		if at.inMeta {
			in.noDefault = "inside additionalProperties applying to object metadata"
		}
		w.schema(p.Child("additionalProperties"), a.Schema, in, node.values(a.Schema))
	}
	for name, child := range check.Sorted(s.Properties) {
		in := below
		if !cel.MapIsCorrelatable(s.XMapType) && in.uncertain == nil {
			in.uncertain = p
		}
		if (at.root || s.XEmbeddedResource) && slices.Contains(metaFields, name) {
			in.inMeta = true
			if at.root {
				in.noDefault = "in top-level " + name
			}
		}
		w.schema(p.Child("properties").Key(name), &child, in, node.property(&child, name))
	}
	w.schema(p.Child("not"), s.Not, below, nil)
	w.list(p.Child("allOf"), s.AllOf, below)
	w.list(p.Child("oneOf"), s.OneOf, below)
	w.list(p.Child("anyOf"), s.AnyOf, below)
	for name, child := range check.Sorted(s.Definitions) {
		w.schema(p.Child("definitions").Key(name), &child, below, nil)
	}
	if s.Items != nil {
		in := below
		if (s.XListType == nil || *s.XListType != "map") && in.uncertain == nil {
			in.uncertain = p
		}
		w.schema(p.Child("items"), s.Items.Schema, in, node.items(s.Items.Schema))
		for i := range s.Items.JSONSchemas {
			w.schema(p.Child("items").Index(i), &s.Items.JSONSchemas[i], in, node.items(&s.Items.JSONSchemas[i]))
		}
	}
	for name, d := range check.Sorted(s.Dependencies) {
		w.schema(p.Child("dependencies").Key(name), d.Schema, below, nil)
	}
	w.extensions(p, s)
	w.rules(p, s, at, node, before)
}

func (w *walk) list(p *field.Path, l []props, at place) {
	for i := range l {
		w.schema(p.Index(i), &l[i], at, nil)
	}
}

// unsupported forbids what OpenAPI has and structural schemas have not.
func (w *walk) unsupported(p *field.Path, s *props, at place) {
	if !w.relaxed.badTypes && badType(s) {
		w.Add(field.ErrorList{field.NotSupported(p.Child("type"), s.Type, schemaTypes)})
	}
	if s.Default != nil && at.noDefault != "" {
		w.Forbidden(p.Child("default"), "must not be set "+at.noDefault)
	}
	w.ForbidIf(p.Child("id"), s.ID != "", "id is not supported")
	w.ForbidIf(p.Child("additionalItems"), s.AdditionalItems != nil, "additionalItems is not supported")
	w.ForbidIf(p.Child("patternProperties"), len(s.PatternProperties) > 0, "patternProperties is not supported")
	w.ForbidIf(p.Child("definitions"), len(s.Definitions) > 0, "definitions is not supported")
	w.ForbidIf(p.Child("dependencies"), s.Dependencies != nil, "dependencies is not supported")
	w.ForbidIf(p.Child("$ref"), s.Ref != nil, "$ref is not supported")
	w.ForbidIf(p.Child("type"), s.Type == "null", "type cannot be set to null, use nullable as an alternative")
	w.ForbidIf(p.Child("items"), s.Items != nil && len(s.Items.JSONSchemas) > 0, "items must be a schema object and not an array")
	w.ForbidIf(p.Child("x-kubernetes-embedded-resource"), at.inMeta && s.XEmbeddedResource, "must not be used inside of resource meta")
}

// extensions checks how lists and maps are said to merge.
func (w *walk) extensions(p *field.Path, s *props) {
	if keep := s.XPreserveUnknownFields; keep != nil && !*keep {
		w.Invalid(p.Child("x-kubernetes-preserve-unknown-fields"), *keep, "must be true or undefined")
	}
	mustBe := func(kind, ext string) {
		detail := "must be " + kind + " if " + ext + " is specified"
		if s.Type == "" {
			w.Required(p.Child("type"), detail)
		} else {
			w.Invalid(p.Child("type"), s.Type, detail)
		}
	}
	if s.XMapType != nil {
		if s.Type != "object" {
			mustBe("object", "x-kubernetes-map-type")
		}
		if *s.XMapType != "atomic" && *s.XMapType != "granular" {
			w.Add(field.ErrorList{field.NotSupported(p.Child("x-kubernetes-map-type"), *s.XMapType, []string{"atomic", "granular"})})
		}
	}
	if s.XListType != nil {
		if s.Type != "array" {
			mustBe("array", "x-kubernetes-list-type")
		} else if ext, value := nonAtomicSet(s); ext != "" && !w.relaxed.nonAtomicSets {
			w.Invalid(p.Child("items").Child(ext), value, "must be atomic as item of a list with x-kubernetes-list-type=set")
		}
		if t := *s.XListType; t != "atomic" && t != "set" && t != "map" {
			w.Add(field.ErrorList{field.NotSupported(p.Child("x-kubernetes-list-type"), t, []string{"atomic", "set", "map"})})
		}
	}
	if len(s.XListMapKeys) > 0 {
		at, detail := p.Child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty"
		if s.XListType == nil {
			w.Required(at, detail)
		} else if *s.XListType != "map" {
			w.Invalid(at, *s.XListType, detail)
		}
	}
	if s.XListType != nil && *s.XListType == "map" {
		w.mapList(p, s)
	}
	if !w.relaxed.looseKeys {
		checkListKeys(&w.List, p, s)
	}
}

// nonAtomicSet names the extension and value that keep the items of a set
// from being compared as a whole; "" where they can be.
func nonAtomicSet(s *props) (ext string, value *string) {
	if s.XListType == nil || *s.XListType != "set" || s.Items == nil || s.Items.Schema == nil {
		return "", nil
	}
	switch is := s.Items.Schema; {
	case is.Type == "array" && is.XListType != nil && *is.XListType != "atomic":
		return "x-kubernetes-list-type", is.XListType
	case is.Type == "object" && (is.XMapType == nil || *is.XMapType != "atomic"):
		return "x-kubernetes-map-type", is.XListType
	}
	return "", nil
}

func (w *walk) mapList(p *field.Path, s *props) {
	keys, items := p.Child("x-kubernetes-list-map-keys"), p.Child("items")
	if len(s.XListMapKeys) == 0 {
		w.Required(keys, "must not be empty if x-kubernetes-list-type is map")
	}
	switch {
	case s.Items == nil:
		w.Required(items, "must have a schema if x-kubernetes-list-type is map")
		return
	case s.Items.Schema == nil:
		w.Invalid(items, s.Items, "must only have a single schema if x-kubernetes-list-type is map")
		return
	case s.Items.Schema.Type != "object":
		w.Invalid(items.Child("type"), s.Items.Schema.Type, "must be object if parent array's x-kubernetes-list-type is map")
		return
	}
	for i, k := range s.XListMapKeys {
		if f, ok := s.Items.Schema.Properties[k]; !ok {
			w.Invalid(keys, s.XListMapKeys, "entries must all be names of item properties")
		} else if f.Type == "array" || f.Type == "object" {
			w.Invalid(items.Child("properties").Key(k).Child("type"), s.Items.Schema.Type, "must be a scalar type if parent array's x-kubernetes-list-type is map")
		}
		if slices.Contains(s.XListMapKeys[:i], k) {
			w.Invalid(keys, s.XListMapKeys, "must not contain duplicate entries")
		}
	}
}

// checkListKeys: what items are known by must always be there.
func checkListKeys(l *check.List, p *field.Path, s *props) {
	if s.Items == nil || s.Items.Schema == nil || s.XListType == nil || *s.XListType != "set" && *s.XListType != "map" {
		return
	}
	item := s.Items.Schema
	l.ForbidIf(p.Child("items").Child("nullable"), item.Nullable, "cannot be nullable when x-kubernetes-list-type is "+*s.XListType)
	if *s.XListType == "set" {
		return
	}
	for _, k := range s.XListMapKeys {
		f, ok := item.Properties[k]
		if !ok {
			continue
		}
		at := p.Child("items").Child("properties").Key(k)
		if !slices.Contains(item.Required, k) && f.Default == nil {
			l.Required(at.Child("default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property")
		}
		l.ForbidIf(at.Child("nullable"), f.Nullable, "this property is in x-kubernetes-list-map-keys, so it cannot be nullable")
	}
}

func schemaWarnings(c *CRD) []string {
	in, err := internal(c)
	if err != nil {
		return nil
	}
	var formats, sets []string
	version := environment.DefaultCompatibilityVersion()
	anySchema(&in.Spec, func(s *props) bool {
		if s.Format != "" {
			for _, f := range schemavalidation.GetUnrecognizedFormats(&spec.Schema{SchemaProps: spec.SchemaProps{Format: s.Format, Type: []string{s.Type}}}, version) {
				formats = append(formats, fmt.Sprintf("unrecognized format %q", f))
			}
		}
		if s.XListType != nil && *s.XListType == "set" && s.Items != nil && s.Items.Schema != nil && (s.Items.Schema.Type == "object" || s.Items.Schema.Type == "array") {
			sets = append(sets, fmt.Sprintf("x-kubernetes-list-type: set for items of type %q is not supported by server-side apply or CEL validation rules", s.Items.Schema.Type))
		}
		return false
	})
	slices.Sort(sets)
	return append(formats, slices.Compact(sets)...)
}
