// Package managed tracks which manager owns which field of an object and
// merges apply configurations, for every resource and subresource.
package managed

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/object/applyschema"
)

// Type describes one served version of a resource.
type Type struct {
	Resource *api.Resource
	Version  *api.Version
	Kind     schema.GroupVersionKind // of this version
	Stored   schema.GroupVersionKind // of the stored objects
	New      func() api.Object       // an empty stored object
	// Sharing are the other resources stored as the same kind: managers may
	// have written to the object through them.
	Sharing []*api.Resource
	// Scheme knows the type; nil: client-go's does. Writes of the others are rare, and left to the library.
	Scheme *runtime.Scheme
	// Custom, when set, makes the manager of a custom resource, whose types only its definition knows.
	Custom *Custom
}

// Custom is a custom resource to the field manager. Its managers live as long as it does.
type Custom struct {
	Kinds     []schema.GroupVersionKind // of all versions
	HasStatus func(version string) bool
	// Types makes the converter to typed values, when first needed.
	Types func() (managedfields.TypeConverter, error)
	// Convert changes an object's version; it may change its argument.
	Convert func(obj *unstructured.Unstructured, version string) (*unstructured.Unstructured, error)
	// Default fills in defaults.
	Default func(api.Object)

	mu    sync.Mutex
	bySub map[string]*managedfields.FieldManager
}

// manager returns the manager for a subresource.
func (c *Custom) manager(typ *Type, sub string) (*managedfields.FieldManager, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.bySub[sub]; m != nil {
		return m, nil
	}
	types, err := c.Types()
	if err != nil {
		return nil, err
	}
	conv := customConverter{c}
	m, err := managedfields.NewDefaultCRDFieldManager(types, conv, conv, conv, typ.Kind, typ.Kind.GroupVersion(), sub, c.resetFields(sub))
	if err == nil {
		if c.bySub == nil {
			c.bySub = map[string]*managedfields.FieldManager{}
		}
		c.bySub[sub] = m
	}
	return m, err
}

func (c *Custom) resetFields(sub string) map[fieldpath.APIVersion]fieldpath.Filter {
	out := map[fieldpath.APIVersion]fieldpath.Filter{}
	for _, k := range c.Kinds {
		set := fieldpath.NewSet()
		switch {
		case !c.HasStatus(k.Version):
			continue
		case sub == "status":
			set.Insert(fieldpath.MakePathOrDie("metadata"))
			set.Insert(fieldpath.MakePathOrDie("spec"))
		default:
			set.Insert(fieldpath.MakePathOrDie("status"))
		}
		out[fieldpath.APIVersion(k.GroupVersion().String())] = fieldpath.NewExcludeSetFilter(set)
	}
	return out
}

// customConverter converts between the versions of a custom resource for the field manager.
type customConverter struct{ c *Custom }

// ConvertToVersion implements runtime.ObjectConvertor.
func (v customConverter) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	kind, known := target.KindForGroupVersionKinds([]schema.GroupVersionKind{in.GetObjectKind().GroupVersionKind()})
	if !ok || !known {
		return nil, fmt.Errorf("%T is not suitable for converting to %q", in, target)
	}
	if u.GroupVersionKind() == kind {
		return u, nil // the library only reads it
	}
	return v.c.Convert(u.DeepCopy(), kind.Version)
}

// Convert implements runtime.ObjectConvertor.
func (v customConverter) Convert(in, out, context any) error {
	return fmt.Errorf("conversion of %T into %T is not supported", in, out)
}

// ConvertFieldLabel implements runtime.ObjectConvertor.
func (v customConverter) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// Default implements runtime.ObjectDefaulter.
func (v customConverter) Default(in runtime.Object) {
	if obj, ok := in.(api.Object); ok {
		v.c.Default(obj)
	}
}

// New implements runtime.ObjectCreater.
func (v customConverter) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(kind)
	return u, nil
}

// resources are all resources the stored objects are served as.
func (t *Type) resources() []*api.Resource {
	return append([]*api.Resource{t.Resource}, t.Sharing...)
}

// served are the kinds the stored objects are served as.
func (t *Type) served() []schema.GroupVersionKind {
	var out []schema.GroupVersionKind
	for _, r := range t.resources() {
		for i := range r.Versions {
			out = append(out, schema.GroupVersionKind{Group: r.Group, Version: r.Versions[i].Name, Kind: r.Kind})
		}
	}
	return out
}

// Apply is what a client asks of an apply configuration.
type Apply struct {
	Manager string
	Force   bool
}

// Fields tracks who owns which field. The schema of all types is large, so it
// is parsed on first use.
type Fields struct {
	plans firstPlans
	mu    sync.Mutex
	byKey map[managerKey]*managedfields.FieldManager
	// Scale is the type of the objects that scale subresources show.
	Scale *Type
}

// Types converts objects of the type to typed values. It fails for a custom resource whose schema is gone.
func (t *Type) Types() (managedfields.TypeConverter, error) {
	switch {
	case t.Custom != nil:
		return t.Custom.Types()
	case t.Scheme != nil:
		return applyschema.Converter(t.Scheme), nil
	}
	return applyschema.Converter(scheme.Scheme), nil
}

type managerKey struct {
	typ *Type
	sub string
}

// New returns a tracker for the built-in types.
func New() *Fields {
	scale := (&api.Scale{}).Resource()
	return &Fields{
		Scale: &Type{Resource: scale, Version: &scale.Versions[0], Kind: api.ScaleKind(), Stored: api.ScaleKind(), New: scale.Versions[0].New},
		byKey: map[managerKey]*managedfields.FieldManager{},
		plans: firstPlans{byTyp: map[*Type]*plan{}},
	}
}

func (f *Fields) get(typ *Type, sub string) (*managedfields.FieldManager, error) {
	if typ.Custom != nil {
		return typ.Custom.manager(typ, sub)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := managerKey{typ, sub}
	if m := f.byKey[key]; m != nil {
		return m, nil
	}
	conv := versionConverter{typ}
	hub := typ.Stored.GroupVersion()
	types, err := typ.Types()
	if err != nil {
		return nil, err
	}
	m, err := managedfields.NewDefaultFieldManager(types, conv, conv, conv, typ.Kind, hub, sub, resetFields(typ, sub))
	if err == nil {
		f.byKey[key] = m
	}
	return m, err
}

// resetFields are the fields a write to this endpoint cannot change, so that
// no manager comes to own them by it.
func resetFields(typ *Type, sub string) map[fieldpath.APIVersion]fieldpath.Filter {
	paths := fieldpath.NewSet()
	for _, p := range moreReset(typ.Resource, sub) {
		parts := []any{}
		for part := range strings.SplitSeq(p, ".") {
			parts = append(parts, part)
		}
		paths.Insert(fieldpath.MakePathOrDie(parts...))
	}
	switch {
	case sub == "status":
		paths.Insert(fieldpath.MakePathOrDie("spec"))
	case sub == "" && slices.ContainsFunc(typ.Resource.Subresources, func(s api.Subresource) bool { return s.Name == "status" }):
		paths.Insert(fieldpath.MakePathOrDie("status"))
	case paths.Empty():
		return nil
	}
	out := map[fieldpath.APIVersion]fieldpath.Filter{}
	for _, gvk := range typ.served() {
		out[fieldpath.APIVersion(gvk.GroupVersion().String())] = fieldpath.NewExcludeSetFilter(paths)
	}
	return out
}

// moreReset are the fields that are reset at this endpoint besides spec or status.
func moreReset(res *api.Resource, sub string) []string {
	if sub == "" {
		return res.Strategy.Reset
	}
	for i := range res.Subresources {
		if s := &res.Subresources[i]; s.Name == sub && s.View != nil {
			return s.View.Reset
		}
	}
	return nil
}

// usualReset tells whether no more than spec or status has to be reset in a write:
// such writes have a short way.
func usualReset(res *api.Resource, sub string, old, obj api.Object) bool {
	more := moreReset(res, sub)
	return len(more) == 0 || old != nil && !slices.ContainsFunc(more, func(p string) bool { return !strings.HasPrefix(p, "metadata") }) &&
		old.GetGenerateName() == obj.GetGenerateName() && maps.Equal(old.GetLabels(), obj.GetLabels()) && maps.Equal(old.GetAnnotations(), obj.GetAnnotations()) &&
		slices.Equal(old.GetFinalizers(), obj.GetFinalizers()) && reflect.DeepEqual(old.GetOwnerReferences(), obj.GetOwnerReferences()) &&
		old.GetDeletionTimestamp().Equal(obj.GetDeletionTimestamp()) && reflect.DeepEqual(old.GetDeletionGracePeriodSeconds(), obj.GetDeletionGracePeriodSeconds())
}

// Update records a create (old nil) or update in obj's managedFields. Both
// are stored objects; obj is changed and returned. Whatever cannot be tracked
// is stored untracked rather than refused, as upstream does.
func (f *Fields) Update(typ *Type, sub string, old, obj api.Object, manager string) api.Object {
	kind := typ.Stored
	obj.GetObjectKind().SetGroupVersionKind(kind)
	if typ.Custom == nil && typ.Scheme == nil {
		if old == nil && sub == "" && f.first(typ, obj, manager) || old != nil && f.later(typ, sub, old, obj, manager) {
			return obj
		}
	}
	return f.update(typ, sub, old, obj, manager)
}

// update has the library do what Update says.
func (f *Fields) update(typ *Type, sub string, old, obj api.Object, manager string) api.Object {
	m, err := f.get(typ, sub)
	if err != nil {
		return obj
	}
	kind := typ.Stored
	if old == nil {
		old = typ.New()
	}
	old.GetObjectKind().SetGroupVersionKind(kind)
	if out, ok := m.UpdateNoErrors(old, obj, manager).(api.Object); ok {
		return out
	}
	return obj
}

// Apply merges an apply configuration into old and returns the new stored
// object. What is wrong with the configuration is told by an error that is no
// API status, as upstream does; conflicts and versions are API statuses.
func (f *Fields) Apply(typ *Type, sub string, old api.Object, config *unstructured.Unstructured, p Apply) (api.Object, error) {
	m, err := f.get(typ, sub)
	if err != nil {
		return nil, err
	}
	old.GetObjectKind().SetGroupVersionKind(typ.Stored)
	out, err := m.Apply(old, config, p.Manager, p.Force)
	if err != nil {
		return nil, err
	}
	obj, ok := out.(api.Object)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("apply produced a %T", out))
	}
	return obj, nil
}

// versionConverter converts between the versions stored objects are served in
// for the field manager.
type versionConverter struct{ typ *Type }

func (v versionConverter) version(gv schema.GroupVersion) *api.Version {
	for _, r := range v.typ.resources() {
		for i := range r.Versions {
			if r.Group == gv.Group && r.Versions[i].Name == gv.Version {
				return &r.Versions[i]
			}
		}
	}
	return nil
}

// ConvertToVersion implements runtime.ObjectConvertor.
func (v versionConverter) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	from := in.GetObjectKind().GroupVersionKind()
	if from.Empty() {
		from = v.typ.Stored
	}
	kind, ok := target.KindForGroupVersionKinds(append([]schema.GroupVersionKind{from, v.typ.Kind, v.typ.Stored}, v.typ.served()...))
	if !ok {
		return nil, runtime.NewNotRegisteredErrForTarget("apiserver", reflect.TypeOf(in), target)
	}
	obj, err := v.typed(in, from)
	if err != nil {
		return nil, err
	}
	if kind == from { // the library only reads it, so it needs no copy
		obj.GetObjectKind().SetGroupVersionKind(kind)
		return obj, nil
	}
	return v.convert(obj.DeepCopyObject().(api.Object), from, kind)
}

// typed returns in as its Go type; what the merge made is unstructured still,
// and gets its defaults here.
func (v versionConverter) typed(in runtime.Object, kind schema.GroupVersionKind) (api.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		obj, ok := in.(api.Object)
		if !ok {
			return nil, fmt.Errorf("cannot convert %T", in)
		}
		return obj, nil
	}
	made, err := v.New(kind)
	if err != nil {
		return nil, err
	}
	obj, ok := made.(api.Object)
	if !ok {
		return nil, fmt.Errorf("cannot convert into %T", made)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, obj); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	obj.GetObjectKind().SetGroupVersionKind(kind)
	v.Default(obj)
	return obj, nil
}

func (v versionConverter) convert(obj api.Object, from, to schema.GroupVersionKind) (runtime.Object, error) {
	hub := v.typ.Stored
	var err error
	if from != hub {
		src := v.version(from.GroupVersion())
		if src == nil {
			return nil, runtime.NewNotRegisteredErrForKind("apiserver", from)
		}
		if src.ToStorage != nil {
			obj, err = src.ToStorage(obj)
		}
	}
	if err == nil && to != hub {
		dst := v.version(to.GroupVersion())
		if dst == nil {
			return nil, runtime.NewNotRegisteredErrForKind("apiserver", to)
		}
		if dst.FromStorage != nil {
			obj, err = dst.FromStorage(obj)
		}
	}
	if err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(to)
	return obj, nil
}

// Convert implements runtime.ObjectConvertor.
func (v versionConverter) Convert(in, out, context any) error {
	return fmt.Errorf("conversion of %T into %T is not supported", in, out)
}

// ConvertFieldLabel implements runtime.ObjectConvertor.
func (v versionConverter) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// Default implements runtime.ObjectDefaulter.
func (v versionConverter) Default(in runtime.Object) {
	obj, ok := in.(api.Object)
	if _, un := in.(runtime.Unstructured); un || !ok {
		return
	}
	gvk := obj.GetObjectKind().GroupVersionKind()
	ver := v.version(gvk.GroupVersion())
	if ver == nil {
		ver = v.typ.Version
	}
	if ver.Default != nil {
		ver.Default(obj)
	}
}

// New implements runtime.ObjectCreater.
func (v versionConverter) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	ver := v.version(kind.GroupVersion())
	if ver == nil || kind.Kind != v.typ.Kind.Kind {
		return scheme.Scheme.New(kind)
	}
	obj := ver.New()
	obj.GetObjectKind().SetGroupVersionKind(kind)
	return obj, nil
}

var _ interface {
	runtime.ObjectConvertor
	runtime.ObjectDefaulter
	runtime.ObjectCreater
} = versionConverter{}

// Name is the field manager of a request: as asked, or the user agent up to its first slash.
func Name(asked, agent string) string {
	if asked != "" {
		return asked
	}
	name, _, _ := strings.Cut(agent, "/")
	const longest = 128
	var b strings.Builder
	for _, r := range name {
		if r < ' ' || r == 0x7f || r > 0xffff {
			continue
		}
		if b.Len()+len(string(r)) > longest {
			break
		}
		b.WriteRune(r)
	}
	if b.Len() == 0 {
		return "unknown"
	}
	return b.String()
}
