// Package customresource makes served resources out of
// CustomResourceDefinitions: schema in, behaviour out. What needs the schema
// (decoding, validation, documents) is compiled on first use, so that a
// definition nobody has instances of costs little more than its names.
package customresource

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiextensions"
)

// Convert asks whoever knows for objects, at least one, in another version of
// their group, all at once. The result is as long as objs.
// It may change and return obj.
type Convert func(ctx context.Context, objs []*unstructured.Unstructured, toVersion string) ([]*unstructured.Unstructured, error)

// Config makes a Definition.
type Config struct {
	// Outline is the definition without schemas; see apiextensions.Outline.
	Outline *apiextensions.CRD
	// Load decodes the whole definition.
	Load func() (*apiextensions.CRD, error)
	// Convert is called for objects stored or asked for in different versions
	// when the definition names a webhook.
	Convert Convert
}

// Definition is a custom resource. Safe for concurrent use.
type Definition struct {
	Config
	// Resources are the served versions, each a resource of its own; Stored is
	// the storage version, served or not.
	Resources []*api.Resource
	Stored    *api.Resource
	versions  map[string]*edition
	storage   *edition
}

// edition is one version of a definition, served or not.
type edition struct {
	d          *Definition
	out        *v1.CustomResourceDefinitionVersion
	kind       schema.GroupVersionKind
	structural func() (*structuralschema.Structural, error)
	checks     func() (*checks, error)
}

// New makes the resources of a definition; it compiles nothing.
func New(c Config) (*Definition, error) {
	d := &Definition{Config: c, versions: map[string]*edition{}}
	names := &c.Outline.Status.AcceptedNames
	if names.Plural == "" || names.Kind == "" || names.ListKind == "" || names.Singular == "" {
		return nil, fmt.Errorf("CustomResourceDefinition %s has no accepted names yet", c.Outline.Name)
	}
	for i := range c.Outline.Spec.Versions {
		out := &c.Outline.Spec.Versions[i]
		v := &edition{d: d, out: out, kind: schema.GroupVersionKind{Group: c.Outline.Spec.Group, Version: out.Name, Kind: names.Kind}}
		v.structural, v.checks = sync.OnceValues(v.compile), sync.OnceValues(v.compileChecks)
		d.versions[out.Name] = v
		if out.Storage {
			d.storage = v
		}
	}
	if d.storage == nil {
		return nil, fmt.Errorf("CustomResourceDefinition %s names no storage version", c.Outline.Name)
	}
	for i := range c.Outline.Spec.Versions {
		out := &c.Outline.Spec.Versions[i]
		if !out.Served && !out.Storage {
			continue
		}
		r := d.versions[out.Name].resource()
		if out.Served {
			d.Resources = append(d.Resources, r)
		}
		if out.Storage {
			d.Stored = r
		}
	}
	return d, nil
}

// All are the resources of all versions, served or not.
func (d *Definition) All() (all []*api.Resource) {
	for i := range d.Outline.Spec.Versions {
		all = append(all, d.versions[d.Outline.Spec.Versions[i].Name].resource())
	}
	return all
}

// Kinds are the kinds of all versions, served or not.
func (d *Definition) Kinds() (kinds []schema.GroupVersionKind) {
	for i := range d.Outline.Spec.Versions {
		kinds = append(kinds, d.versions[d.Outline.Spec.Versions[i].Name].kind)
	}
	return kinds
}

// Status tells whether a version has the status subresource.
func (d *Definition) Status(version string) bool {
	v := d.versions[version]
	return v != nil && v.hasStatus()
}

// To converts an object of any version to another.
func (d *Definition) To(obj *unstructured.Unstructured, version string) (*unstructured.Unstructured, error) {
	objs := []*unstructured.Unstructured{obj}
	err := d.allTo(objs, version)
	return objs[0], err
}

// allTo converts objects in place; the webhook, if there is one, is asked once.
func (d *Definition) allTo(objs []*unstructured.Unstructured, version string) error {
	to := d.versions[version]
	if to == nil {
		return fmt.Errorf("request to convert CR to an invalid group/version: %s/%s", d.Outline.Spec.Group, version)
	}
	var ask []*unstructured.Unstructured
	var at []int
	c := d.Outline.Spec.Conversion
	for i, obj := range objs {
		from := d.versions[obj.GroupVersionKind().Version]
		switch {
		case from == nil || obj.GroupVersionKind().Group != d.Outline.Spec.Group:
			return fmt.Errorf("request to convert CR from an invalid group/version: %s", obj.GetAPIVersion())
		case from == to:
		case c == nil || c.Strategy != v1.WebhookConverter || bare(obj):
			obj.SetAPIVersion(to.kind.GroupVersion().String())
		case d.Convert == nil:
			return fmt.Errorf("conversion webhook for %v failed: this server calls no webhooks", obj.GroupVersionKind())
		default:
			ask, at = append(ask, obj), append(at, i)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	out, err := d.Convert(context.Background(), ask, version)
	if err != nil {
		return err
	}
	for i, obj := range out {
		objs[at[i]] = obj
	}
	return nil
}

// bare objects have nothing but their kind; no webhook is asked about them.
func bare(u *unstructured.Unstructured) bool {
	_, kind := u.Object["kind"]
	_, ver := u.Object["apiVersion"]
	return len(u.Object) == 2 && kind && ver
}

// compile makes the structural schema; nil for a version without one.
func (v *edition) compile() (*structuralschema.Structural, error) {
	full, err := v.load()
	if err != nil || full == nil {
		return nil, err
	}
	in, err := apiextensions.InternalSchema(full.Schema)
	if err != nil || in == nil {
		return nil, err
	}
	s, err := structuralschema.NewStructural(in)
	if v.d.Outline.Spec.PreserveUnknownFields {
		if err != nil {
			return nil, nil
		}
		return s, nil
	}
	if err == nil {
		s = s.DeepCopy() // its defaults are changed next
		err = defaulting.PruneDefaults(s)
	}
	if err != nil {
		return nil, fmt.Errorf("the schema of %s cannot be served: %w", v.kind, err)
	}
	return s, nil
}

func (v *edition) load() (*v1.CustomResourceDefinitionVersion, error) {
	full, err := v.d.Load()
	if err != nil {
		return nil, err
	}
	for i := range full.Spec.Versions {
		if full.Spec.Versions[i].Name == v.out.Name {
			return &full.Spec.Versions[i], nil
		}
	}
	return nil, nil
}

func (v *edition) hasStatus() bool {
	return v.out.Subresources != nil && v.out.Subresources.Status != nil
}

func (v *edition) scale() *v1.CustomResourceSubresourceScale {
	if v.out.Subresources == nil {
		return nil
	}
	return v.out.Subresources.Scale
}

func (v *edition) resource() *api.Resource {
	spec, names := &v.d.Outline.Spec, &v.d.Outline.Status.AcceptedNames
	r := &api.Resource{
		Group: spec.Group, Name: names.Plural, Singular: names.Singular, Kind: names.Kind, ListKind: names.ListKind,
		ShortNames: names.ShortNames, Categories: names.Categories, Namespaced: spec.Scope == v1.NamespaceScoped,
		StoragePrefix: spec.Group + "/" + spec.Names.Plural, Codec: v, HashKind: v.d.storage.kind,
		Revision: fmt.Sprintf("%s/%d", v.d.Outline.UID, v.d.Outline.Generation),
		Versions: []api.Version{{
			Name: v.out.Name, New: func() api.Object { return v.empty() }, NewList: func() runtime.Object { return &unstructured.UnstructuredList{} },
			Default: v.setDefaults, Coerce: v.Coerce, Model: v.model, Deprecated: v.deprecation(),
		}},
		Strategy: v.strategy(),
	}
	if apiextensions.Terminating(v.d.Outline) {
		r.Verbs = []string{"delete", "deletecollection", "get", "list", "watch"}
	}
	if v.hasStatus() {
		r.Subresources = append(r.Subresources, api.Subresource{Name: "status", View: v.statusView()})
	}
	if sc := v.scale(); sc != nil {
		r.Subresources = append(r.Subresources, api.Subresource{Name: "scale", Kind: "Scale", Group: "autoscaling", Version: "v1", Scale: v.scaleOf(sc)})
	}
	r.Columns, r.Cells = table(v.out.AdditionalPrinterColumns)
	return r
}

func (v *edition) empty() *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(v.kind)
	return u
}

// deprecation is the warning sent with every answer of a deprecated version.
func (v *edition) deprecation() string {
	switch {
	case !v.out.Deprecated:
		return ""
	case v.out.DeprecationWarning != nil:
		return *v.out.DeprecationWarning
	}
	text := fmt.Sprintf("%s/%s %s is deprecated", v.kind.Group, v.kind.Version, v.d.Outline.Spec.Names.Kind)
	var better []string
	for _, o := range v.d.Outline.Spec.Versions {
		if o.Served && !o.Deprecated && version.CompareKubeAwareVersionStrings(v.out.Name, o.Name) < 0 {
			better = append(better, o.Name)
		}
	}
	if len(better) == 0 {
		return text
	}
	newest := slices.MaxFunc(better, version.CompareKubeAwareVersionStrings)
	return text + fmt.Sprintf("; use %s/%s %s", v.kind.Group, newest, v.d.Outline.Spec.Names.Kind)
}

// path splits a simple JSON path such as ".spec.replicas".
func path(jsonPath string) []string { return strings.Split(strings.TrimPrefix(jsonPath, "."), ".") }
