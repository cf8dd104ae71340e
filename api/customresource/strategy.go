package customresource

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/client-go/util/jsonpath"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiextensions"
)

// checks are the compiled validators of one version.
type checks struct {
	object, status schemavalidation.SchemaValidator // status: nil without a schema for it
	rules          *cel.Validator                   // nil: there are none
}

func (v *edition) compileChecks() (*checks, error) {
	full, err := v.load()
	if err != nil || full == nil {
		return nil, err
	}
	in, err := apiextensions.InternalSchema(full.Schema)
	if err != nil {
		return nil, err
	}
	c := &checks{}
	if c.object, _, err = schemavalidation.NewSchemaValidator(in); err != nil {
		return nil, err
	}
	if in != nil && v.hasStatus() {
		if status, ok := in.Properties["status"]; ok {
			if c.status, _, err = schemavalidation.NewSchemaValidator(&status); err != nil {
				return nil, err
			}
		}
	}
	s, err := v.structural()
	c.rules = cel.NewValidator(s, true, apiextensions.PerCall)
	return c, err
}

func (v *edition) strategy() api.Strategy {
	return api.Strategy{
		PrepareForCreate: api.On(func(u *unstructured.Unstructured) {
			if v.hasStatus() {
				delete(u.Object, "status")
				v.setDefaults(u) // those of the status, as every reader sees it
			}
			u.SetGeneration(1)
		}),
		PrepareForUpdate: api.OnUpdate(v.prepareUpdate),
		Validate:         func(ctx context.Context, obj api.Object) field.ErrorList { return v.validate(ctx, obj, nil) },
		ValidateUpdate:   v.validate,
		Warnings:         api.Warn(finalizerWarnings),
		Selectable:       v.selectable(),

		DenyUnconditionalUpdate: true,
	}
}

func (v *edition) prepareUpdate(u, old *unstructured.Unstructured) {
	if v.hasStatus() {
		keep(u, old, "status")
	}
	changed := func(a, b map[string]any) bool {
		a, b = maps.Clone(a), maps.Clone(b)
		delete(a, "metadata")
		delete(b, "metadata")
		return api.Changed(a, b)
	}
	api.BumpGeneration(u, old, changed(u.Object, old.Object))
}

// keep copies a top-level field of old over u's.
func keep(u, old *unstructured.Unstructured, name string) {
	if value, ok := old.Object[name]; ok {
		u.Object[name] = value
	} else {
		delete(u.Object, name)
	}
}

// statusView changes only the status.
func (v *edition) statusView() *api.View {
	return &api.View{
		PrepareForUpdate: api.OnUpdate(func(u, old *unstructured.Unstructured) {
			managers := u.GetManagedFields()
			rv := u.GetResourceVersion()
			status, ok := u.Object["status"]
			u.Object = old.DeepCopy().Object
			u.SetManagedFields(managers)
			u.SetResourceVersion(rv)
			delete(u.Object, "status")
			if ok {
				u.Object["status"] = status
			}
		}),
		ValidateUpdate: v.validateStatus,
	}
}

// ready returns what validation needs, or why there is none.
func (v *edition) ready(obj api.Object) (*unstructured.Unstructured, *checks, field.ErrorList) {
	u, ok := obj.(*unstructured.Unstructured)
	c, err := v.checks()
	if err == nil && (c == nil || !ok) {
		err = fmt.Errorf("%s is not known any more", v.kind)
	}
	if err != nil {
		return nil, nil, field.ErrorList{field.InternalError(nil, err)}
	}
	return u, c, nil
}

// validate checks an object; old is nil on create. On update, what was wrong
// before and has not changed is forgiven.
func (v *edition) validate(ctx context.Context, obj, old api.Object) field.ErrorList {
	u, c, errs := v.ready(obj)
	if len(errs) > 0 {
		return errs
	}
	s, _ := v.structural()
	var before map[string]any
	var same *common.CorrelatedObject
	if old == nil {
		errs = schemavalidation.ValidateCustomResource(nil, u.Object, c.object)
	} else {
		before = old.(*unstructured.Unstructured).Object
		same = common.NewCorrelatedObject(u.Object, before, &model.Structural{Structural: s})
		errs = schemavalidation.ValidateCustomResourceUpdate(nil, u.Object, before, c.object, schemavalidation.WithRatcheting(same))
	}
	errs = append(errs, v.validateScale(u, true)...)
	errs = append(errs, objectmeta.Validate(ctx, nil, u.Object, s, false)...)
	if old == nil || len(listtype.ValidateListSetsAndMaps(nil, s, before)) == 0 {
		errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s, u.Object)...)
	}
	return v.validateRules(ctx, c, u, before, same, errs)
}

func (v *edition) validateStatus(ctx context.Context, obj, old api.Object) field.ErrorList {
	u, c, errs := v.ready(obj)
	if len(errs) > 0 {
		return errs
	}
	s, _ := v.structural()
	before := old.(*unstructured.Unstructured).Object
	same := common.NewCorrelatedObject(u.Object, before, &model.Structural{Structural: s})
	if status, ok := u.Object["status"]; ok && c.status != nil {
		var options []schemavalidation.ValidationOption
		if s != nil {
			options = append(options, schemavalidation.WithRatcheting(same.Key("status")))
		}
		errs = schemavalidation.ValidateCustomResourceUpdate(field.NewPath("status"), status, before["status"], c.status, options...)
	}
	errs = append(errs, v.validateScale(u, false)...)
	if len(listtype.ValidateListSetsAndMaps(nil, s, before)) == 0 {
		errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s, u.Object)...)
	}
	return v.validateRules(ctx, c, u, before, same, errs)
}

// validateRules evaluates the rules unless the object is not of the shape
// they were compiled for.
func (v *edition) validateRules(ctx context.Context, c *checks, u *unstructured.Unstructured, before map[string]any, same *common.CorrelatedObject, errs field.ErrorList) field.ErrorList {
	if c.rules == nil {
		return errs
	}
	for _, e := range errs {
		switch e.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return append(errs, field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"))
		}
	}
	s, err := v.structural()
	if err != nil {
		return append(errs, field.InternalError(nil, err))
	}
	var options []cel.Option
	var old any
	if before != nil {
		old, options = before, []cel.Option{cel.WithRatcheting(same)}
	}
	broken, _ := c.rules.Validate(ctx, nil, s, u.Object, old, apiextensions.Budget, options...)
	return append(errs, broken...)
}

func (v *edition) validateScale(u *unstructured.Unstructured, spec bool) (errs field.ErrorList) {
	sc := v.scale()
	if sc == nil {
		return nil
	}
	replicas := func(at string) {
		n, _, err := unstructured.NestedInt64(u.Object, path(at)...)
		p := field.NewPath(at)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(p, n, err.Error()))
		case n < 0:
			errs = append(errs, field.Invalid(p, n, "should be a non-negative integer"))
		case n > math.MaxInt32:
			errs = append(errs, field.Invalid(p, n, fmt.Sprintf("should be less than or equal to %v", math.MaxInt32)))
		}
	}
	if spec {
		replicas(sc.SpecReplicasPath)
	}
	replicas(sc.StatusReplicasPath)
	if sc.LabelSelectorPath != nil {
		sel, _, err := unstructured.NestedString(u.Object, path(*sc.LabelSelectorPath)...)
		if err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*sc.LabelSelectorPath), sel, err.Error()))
		}
	}
	return errs
}

var standardFinalizers = []string{metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents, string(corev1.FinalizerKubernetes)}

func finalizerWarnings(u, old *unstructured.Unstructured) (texts []string) {
	var known []string
	if old != nil {
		known = old.GetFinalizers()
	}
	added := slices.DeleteFunc(u.GetFinalizers(), func(f string) bool { return slices.Contains(known, f) })
	slices.Sort(added)
	for _, f := range slices.Compact(added) {
		for _, msg := range validation.IsQualifiedName(f) {
			texts = append(texts, fmt.Sprintf("metadata.finalizers: %q: %s", f, msg))
		}
		switch {
		case strings.Contains(f, "/") || slices.Contains(standardFinalizers, f):
		case strings.Contains(f, "."):
			texts = append(texts, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers", f))
		default:
			texts = append(texts, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers", f))
		}
	}
	return texts
}

// selectable computes the fields the definition makes usable in field selectors.
func (v *edition) selectable() func(api.Object) fields.Set {
	return func(obj api.Object) fields.Set {
		set := fields.Set{}
		for _, f := range v.out.SelectableFields {
			set[strings.TrimPrefix(f.JSONPath, ".")] = ""
			u, ok := obj.(*unstructured.Unstructured)
			if value := find(u, f); ok && value != nil {
				set[strings.TrimPrefix(f.JSONPath, ".")] = fmt.Sprint(value)
			}
		}
		return set
	}
}

func find(u *unstructured.Unstructured, f v1.SelectableField) any {
	p := jsonpath.New("selectableField").AllowMissingKeys(true)
	if u == nil || p.Parse("{"+f.JSONPath+"}") != nil {
		return nil
	}
	results, err := p.FindResults(u.Object)
	if err != nil || len(results) != 1 || len(results[0]) != 1 {
		return nil
	}
	return results[0][0].Interface()
}
