package apiextensions

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

// Bounds of upstream's.
const (
	maxSelectableFields   = 8
	maxDeprecationWarning = 256
)

var (
	columnTypes   = []string{"boolean", "date", "integer", "number", "string"}
	columnFormats = []string{"byte", "date", "date-time", "double", "float", "int32", "int64", "password"}
)

// specChecks checks one definition; what an existing one got away with before
// stays allowed.
type specChecks struct {
	check.List
	ctx      context.Context
	spec     *apiextensions.CustomResourceDefinitionSpec
	old      *apiextensions.CustomResourceDefinition // nil on create
	relaxed  relaxed
	settings celSettings
}

func validate(ctx context.Context, c, old *CRD) field.ErrorList {
	in, err := internal(c)
	var was *apiextensions.CustomResourceDefinition
	if err == nil && old != nil {
		was, err = internal(old)
	}
	if err != nil {
		return field.ErrorList{field.Invalid(specPath, "", err.Error())}
	}
	l := &specChecks{ctx: ctx, spec: &in.Spec, old: was, relaxed: relaxedFor(was), settings: newCELSettings(was)}
	if old == nil {
		l.Names(c, func(name string) []string {
			if name != in.Spec.Names.Plural+"."+in.Spec.Group {
				return []string{`must be spec.names.plural+"."+spec.group`}
			}
			return nil
		})
	}
	l.checkSpec(specPath)
	if was != nil {
		l.checkImmutable(specPath, &was.Spec)
	}
	checkNames(&l.List, statusPath.Child("acceptedNames"), &in.Status.AcceptedNames)
	l.checkStored(statusPath.Child("storedVersions"), in.Status.StoredVersions)
	l.checkApproval(c, old)
	if keep := in.Spec.PreserveUnknownFields; keep != nil && *keep && (was == nil || was.Spec.PreserveUnknownFields == nil || !*was.Spec.PreserveUnknownFields) {
		l.Invalid(specPath.Child("preserveUnknownFields"), keep, "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead")
	}
	return l.Errors
}

func (l *specChecks) checkImmutable(p *field.Path, old *apiextensions.CustomResourceDefinitionSpec) {
	if apiextensions.IsCRDConditionTrue(l.old, apiextensions.Established) {
		l.Add(apivalidation.ValidateImmutableField(l.spec.Scope, old.Scope, p.Child("scope")))
		l.Add(apivalidation.ValidateImmutableField(l.spec.Names.Kind, old.Names.Kind, p.Child("names", "kind")))
	}
	l.Add(apivalidation.ValidateImmutableField(l.spec.Group, old.Group, p.Child("group")))
	l.Add(apivalidation.ValidateImmutableField(l.spec.Names.Plural, old.Names.Plural, p.Child("names", "plural")))
}

func (l *specChecks) checkStored(p *field.Path, stored []string) {
	if len(stored) == 0 {
		l.Invalid(p, stored, "must have at least one stored version")
		return
	}
	for _, v := range l.spec.Versions {
		if v.Storage && !slices.Contains(stored, v.Name) {
			l.Invalid(p, stored, "must have the storage version "+v.Name)
		}
	}
	for i, name := range stored {
		if !slices.ContainsFunc(l.spec.Versions, func(v apiextensions.CustomResourceDefinitionVersion) bool { return v.Name == name }) {
			l.Invalid(p.Index(i), name, fmt.Sprintf("missing from spec.versions; %[1]s was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in %[1]s and removes %[1]s from status.storedVersions", name))
		}
	}
}

func (l *specChecks) checkApproval(c, old *CRD) {
	if !apihelpers.IsProtectedCommunityGroup(c.Spec.Group) {
		return
	}
	state, reason := apihelpers.GetAPIApprovalState(c.Annotations)
	if old != nil {
		if before, _ := apihelpers.GetAPIApprovalState(old.Annotations); before == state {
			return
		}
	}
	p := field.NewPath("metadata", "annotations").Key(apiextensionsv1.KubeAPIApprovedAnnotation)
	switch state {
	case apihelpers.APIApprovalMissing:
		l.Required(p, reason)
	case apihelpers.APIApproved, apihelpers.APIApprovalBypassed:
	default:
		l.Invalid(p, c.Annotations[apiextensionsv1.KubeAPIApprovedAnnotation], reason)
	}
}

func (l *specChecks) checkSpec(p *field.Path) {
	s := l.spec
	switch errs := validation.IsDNS1123Subdomain(s.Group); {
	case s.Group == "":
		l.Required(p.Child("group"), "")
	case len(errs) > 0:
		l.Invalid(p.Child("group"), s.Group, strings.Join(errs, ","))
	case !strings.Contains(s.Group, "."):
		l.Invalid(p.Child("group"), s.Group, "should be a domain with at least one dot")
	}
	switch s.Scope {
	case "":
		l.Required(p.Child("scope"), "")
	case apiextensions.ClusterScoped, apiextensions.NamespaceScoped:
	default:
		l.Add(field.ErrorList{field.NotSupported(p.Child("scope"), s.Scope, []string{"Cluster", "Namespaced"})})
	}
	l.checkSchemasThere(p)
	l.checkVersions(p)
	n := &s.Names
	for _, f := range []struct{ name, value string }{{"plural", n.Plural}, {"singular", n.Singular}, {"kind", n.Kind}, {"listKind", n.ListKind}} {
		if f.value == "" {
			l.Required(p.Child("names", f.name), "")
		}
	}
	checkNames(&l.List, p.Child("names"), n)
	anyStatus := hasStatus(s.Subresources)
	for _, v := range s.Versions {
		anyStatus = anyStatus || hasStatus(v.Subresources)
	}
	l.checkValidation(p.Child("validation"), s.Validation, anyStatus, s.Version)
	l.checkSubresources(p.Child("subresources"), s.Subresources)
	l.checkColumns(p.Child("additionalPrinterColumns"), s.AdditionalPrinterColumns)
	if len(s.SelectableFields) > 0 {
		if s.Validation == nil || s.Validation.OpenAPIV3Schema == nil {
			l.Invalid(p.Child("selectableFields"), "", "may only be set when validations.schema is included")
		} else {
			l.checkSelectable(p, s.SelectableFields, s.Validation.OpenAPIV3Schema, "")
		}
	}
	l.checkConversion(p.Child("conversion"))
}

// preserves tells whether unknown fields are kept in general.
func preserves(s *apiextensions.CustomResourceDefinitionSpec) bool {
	return s.PreserveUnknownFields != nil && *s.PreserveUnknownFields
}

func (l *specChecks) checkSchemasThere(p *field.Path) {
	s := l.spec
	keeps := preserves(s)
	if !keeps {
		l.relaxed.nonStructural = false
	}
	if s.Validation == nil || s.Validation.OpenAPIV3Schema == nil {
		for i, v := range s.Versions {
			missing, at := v.Schema == nil || v.Schema.OpenAPIV3Schema == nil, p.Child("versions").Index(i).Child("schema", "openAPIV3Schema")
			switch {
			case !missing:
			case !l.relaxed.noSchema:
				l.Required(at, "")
			case v.Served && !keeps:
				l.Required(at, "because otherwise all fields are pruned")
			}
		}
	}
	if anySchema(s, func(s *apiextensions.JSONSchemaProps) bool { return s.Default != nil }) {
		l.relaxed.nonStructural = false
		if s.PreserveUnknownFields == nil || *s.PreserveUnknownFields {
			l.Invalid(p.Child("preserveUnknownFields"), true, "must be false in order to use defaults in the schema")
		}
	}
	if anySchema(s, func(s *apiextensions.JSONSchemaProps) bool {
		return s.XEmbeddedResource || s.XPreserveUnknownFields != nil || s.XIntOrString || len(s.XListMapKeys) > 0 || s.XListType != nil || len(s.XValidations) > 0
	}) {
		l.relaxed.nonStructural = false
	}
}

func (l *specChecks) checkVersions(p *field.Path) {
	s, at := l.spec, p.Child("versions")
	storage, names, unique := 0, map[string]bool{}, true
	for i := range s.Versions {
		v := &s.Versions[i]
		if v.Storage {
			storage++
		}
		unique = unique && !names[v.Name]
		names[v.Name] = true
		if errs := validation.IsDNS1035Label(v.Name); len(errs) > 0 {
			l.Invalid(at.Index(i).Child("name"), v.Name, strings.Join(errs, ","))
		}
		l.checkVersion(at.Index(i), v)
	}
	if !unique {
		l.Invalid(at, s.Versions, "must contain unique version names")
	}
	if storage != 1 {
		l.Invalid(at, s.Versions, "must have exactly one version marked as storage version")
	}
}

func (l *specChecks) checkVersion(p *field.Path, v *apiextensions.CustomResourceDefinitionVersion) {
	for _, text := range checkDeprecation(v.Deprecated, v.DeprecationWarning) {
		l.Invalid(p.Child("deprecationWarning"), v.DeprecationWarning, text)
	}
	subs := v.Subresources
	if subs == nil {
		subs = l.spec.Subresources
	}
	l.checkValidation(p.Child("schema"), v.Schema, hasStatus(subs), v.Name)
	l.checkSubresources(p.Child("subresources"), v.Subresources)
	l.checkColumns(p.Child("additionalPrinterColumns"), v.AdditionalPrinterColumns)
	if len(v.SelectableFields) == 0 {
		return
	}
	if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
		l.Invalid(p.Child("selectableFields"), "", "may only be set when `version.schema.openAPIV3Schema` is not included")
		return
	}
	l.checkSelectable(p, v.SelectableFields, v.Schema.OpenAPIV3Schema, v.Name)
}

func hasStatus(s *apiextensions.CustomResourceSubresources) bool { return s != nil && s.Status != nil }

func checkDeprecation(deprecated bool, warning *string) (errs []string) {
	switch {
	case warning == nil:
		return nil
	case !deprecated:
		return []string{"can only be set for deprecated versions"}
	case *warning == "":
		return []string{"must not be an empty string"}
	}
	if len(*warning) > maxDeprecationWarning {
		errs = append(errs, "must be <= 256 characters long")
	}
	for i, r := range *warning {
		if !unicode.IsPrint(r) {
			errs = append(errs, fmt.Sprintf("must only contain printable UTF-8 characters; non-printable character found at index %d", i))
			break
		}
	}
	if !utf8.ValidString(*warning) {
		errs = append(errs, "must only contain printable UTF-8 characters")
	}
	return errs
}

func checkNames(l *check.List, p *field.Path, n *apiextensions.CustomResourceDefinitionNames) {
	label := func(p *field.Path, value, shown, prefix string) {
		if errs := validation.IsDNS1035Label(value); value != "" && len(errs) > 0 {
			l.Invalid(p, shown, prefix+strings.Join(errs, ","))
		}
	}
	const mixed = "may have mixed case, but should otherwise match: "
	label(p.Child("plural"), n.Plural, n.Plural, "")
	label(p.Child("singular"), n.Singular, n.Singular, "")
	label(p.Child("kind"), strings.ToLower(n.Kind), n.Kind, mixed)
	label(p.Child("listKind"), strings.ToLower(n.ListKind), n.ListKind, mixed)
	list := func(p *field.Path, names []string) {
		for i, name := range names {
			if errs := validation.IsDNS1035Label(name); len(errs) > 0 {
				l.Invalid(p.Index(i), name, strings.Join(errs, ","))
			}
		}
	}
	list(p.Child("shortNames"), n.ShortNames)
	if n.Kind != "" && n.Kind == n.ListKind {
		l.Invalid(p.Child("listKind"), n.ListKind, "kind and listKind may not be the same")
	}
	list(p.Child("categories"), n.Categories)
}

func (l *specChecks) checkColumns(p *field.Path, columns []apiextensions.CustomResourceColumnDefinition) {
	for i := range columns {
		col, at := &columns[i], p.Index(i)
		if col.Name == "" {
			l.Required(at.Child("name"), "")
		}
		switch types := "must be one of " + strings.Join(columnTypes, ","); {
		case col.Type == "":
			l.Required(at.Child("type"), types)
		case !slices.Contains(columnTypes, col.Type):
			l.Invalid(at.Child("type"), col.Type, types)
		}
		if col.Format != "" && !slices.Contains(columnFormats, col.Format) {
			l.Invalid(at.Child("format"), col.Format, "must be one of "+strings.Join(columnFormats, ","))
		}
		if col.JSONPath == "" {
			l.Required(at.Child("JSONPath"), "")
		} else {
			l.checkPath(at.Child("JSONPath"), col.JSONPath)
		}
	}
}

// checkPath: paths here begin with a dot.
func (l *specChecks) checkPath(p *field.Path, path string) bool {
	if path[0] != '.' {
		l.Invalid(p, path, "must be a simple json path starting with .")
		return false
	}
	return true
}

func (l *specChecks) checkSubresources(p *field.Path, s *apiextensions.CustomResourceSubresources) {
	if s == nil || s.Scale == nil {
		return
	}
	under := func(name, path, parent string) {
		at := p.Child(name)
		if path == "" {
			l.Required(at, "")
		} else if l.checkPath(at, path) && !strings.HasPrefix(path, parent+".") {
			l.Invalid(at, path, "should be a json path under "+parent)
		}
	}
	under("scale.specReplicasPath", s.Scale.SpecReplicasPath, ".spec")
	under("scale.statusReplicasPath", s.Scale.StatusReplicasPath, ".status")
	if sel := s.Scale.LabelSelectorPath; sel != nil && *sel != "" {
		at := p.Child("scale.labelSelectorPath")
		if l.checkPath(at, *sel) && !strings.HasPrefix(*sel, ".spec.") && !strings.HasPrefix(*sel, ".status.") {
			l.Invalid(at, sel, "should be a json path under either .spec or .status")
		}
	}
}

func (l *specChecks) checkSelectable(parent *field.Path, fields []apiextensions.SelectableField, props *apiextensions.JSONSchemaProps, version string) {
	p := parent.Child("selectableFields")
	schema, err := structuralschema.NewStructural(props)
	if err != nil {
		l.Invalid(parent.Child("schema.openAPIV3Schema"), "", err.Error())
	}
	seen := map[string]bool{}
	for i, f := range fields {
		at := p.Index(i).Child("jsonPath")
		if f.JSONPath == "" {
			l.Required(at, "")
			continue
		}
		path, found, err := cel.ValidFieldPath(f.JSONPath, schema, cel.WithFieldPathAllowArrayNotation(false))
		if err != nil {
			l.Invalid(at, f.JSONPath, fmt.Sprintf("is an invalid path: %v", err))
			continue
		}
		if path.Root().String() == "metadata" {
			l.Invalid(at, f.JSONPath, "must not point to fields in metadata")
		}
		if found == nil || !slices.Contains([]string{"string", "boolean", "integer"}, found.Type) {
			l.Invalid(at, f.JSONPath, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.")
		}
		if seen[path.String()] {
			l.Duplicate(at, f.JSONPath)
		}
		seen[path.String()] = true
	}
	if len(seen) > maxSelectableFields && !l.sameSelectable(fields, version) {
		l.TooMany(p, len(seen), maxSelectableFields)
	}
}

// sameSelectable: what is there already may stay.
func (l *specChecks) sameSelectable(fields []apiextensions.SelectableField, version string) bool {
	if l.old == nil {
		return false
	}
	if version == "" {
		return apiequality.Semantic.DeepEqual(fields, l.old.Spec.SelectableFields)
	}
	return slices.ContainsFunc(l.old.Spec.Versions, func(v apiextensions.CustomResourceDefinitionVersion) bool {
		return v.Name == version && apiequality.Semantic.DeepEqual(fields, v.SelectableFields)
	})
}
