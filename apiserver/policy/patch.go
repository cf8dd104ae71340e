package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"google.golang.org/protobuf/types/known/structpb"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/cel/mutation"
	"k8s.io/apiserver/pkg/cel/mutation/dynamic"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/apiserver/admission"
)

func evaluateMutation(ctx context.Context, in expression.Inputs, code *program, i int) (ref.Val, error) {
	x := code.mutations[i]
	if x.Err != nil {
		return nil, x.Err
	}
	v, err, fatal := expression.Evaluate(ctx, in, code.variables, expression.Budget).Eval(x)
	if fatal != nil {
		return nil, fatal
	}
	return v, err
}

// apply merges an apply configuration into an object, as server-side apply
// would; who owns the fields is not recorded, as upstream does not.
func apply(types managedfields.TypeConverter, now api.Object, v ref.Val, f admission.Form) (api.Object, error) {
	config, ok := v.(*dynamic.ObjectVal)
	if !ok {
		return nil, fmt.Errorf("unsupported return type from ApplyConfiguration expression: %v", v.Type())
	}
	if err := config.CheckTypeNamesMatchFieldPathNames(); err != nil {
		return nil, fmt.Errorf("type mismatch: %w", err)
	}
	fields, ok := config.Value().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("invalid return type: %T", v)
	}
	u := &unstructured.Unstructured{Object: fields}
	u.SetGroupVersionKind(f.Kind)
	wrong := func(doing string, err error) error { return fmt.Errorf("error applying patch: %s: %w", doing, err) }
	change, err := types.ObjectToTyped(u)
	if err != nil {
		return nil, wrong("failed to convert patch object to typed object", err)
	}
	if found := atomics(nil, change.Schema(), change.TypeRef(), change.AsValue()); len(found) > 0 {
		return nil, wrong("invalid ApplyConfiguration", fmt.Errorf("may not mutate atomic arrays, maps or structs: %v", strings.Join(found, ", ")))
	}
	live, err := types.ObjectToTyped(now, typed.AllowDuplicates)
	if err != nil {
		return nil, wrong("failed to convert original object to typed object", err)
	}
	merged, err := live.Merge(change)
	if err != nil {
		return nil, wrong("failed to merge patch", err)
	}
	out, err := types.TypedToObject(merged)
	if err != nil {
		return nil, wrong("failed to convert typed object to object", err)
	}
	made, ok := out.(api.Object)
	if u, is := out.(*unstructured.Unstructured); is && !isMap(now) {
		made, ok = f.New(), true
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, made)
	}
	if !ok {
		err = fmt.Errorf("%T is no object", out)
	}
	return made, err
}

// atomics finds what v has that can only be set as a whole. Somebody who means
// to change a part of it would drop the rest.
func atomics(path []fieldpath.PathElement, s *schema.Schema, t schema.TypeRef, v value.Value) (out []string) {
	a, ok := s.Resolve(t)
	if !ok {
		return nil
	}
	here := func() {
		var b strings.Builder
		for _, p := range path {
			b.WriteString(p.String())
		}
		out = append(out, b.String())
	}
	if v.IsMap() && a.Map != nil {
		if a.Map.ElementRelationship == schema.Atomic {
			here()
		}
		v.AsMap().Iterate(func(name string, of value.Value) bool {
			if f, ok := a.Map.FindField(name); ok {
				out = append(out, atomics(append(path, fieldpath.PathElement{FieldName: &name}), s, f.Type, of)...)
			}
			return true
		})
	}
	if v.IsList() && a.List != nil {
		if a.List.ElementRelationship == schema.Atomic {
			here()
		}
		list := v.AsList()
		for i := range list.Length() {
			out = append(out, atomics(append(path, fieldpath.PathElement{Index: &i}), s, a.List.ElementType, list.At(i))...)
		}
	}
	return out
}

// patch applies JSON patch operations to an object. A test that fails leaves
// it as it is: nil.
func patch(now api.Object, v ref.Val, f admission.Form) (api.Object, error) {
	operations, err := patchOf(v)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(now)
	if err != nil {
		return nil, fmt.Errorf("failed to create JSON patch: %w", err)
	}
	after, err := operations.Apply(before)
	if errors.Is(err, jsonpatch.ErrTestFailed) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("JSON Patch: %w", err)
	}
	made := f.New()
	if u, ok := made.(*unstructured.Unstructured); ok {
		err = u.UnmarshalJSON(after)
	} else {
		var strict []error
		strict, err = kjson.UnmarshalStrict(after, made)
		if err == nil && len(strict) > 0 {
			err = runtime.NewStrictDecodingError(strict)
		}
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return made, nil
}

func patchOf(v ref.Val) (jsonpatch.Patch, error) {
	list, ok := v.(traits.Lister)
	if !ok {
		return nil, errors.New("type mismatch: JSONPatchType.expression should evaluate to array")
	}
	out := jsonpatch.Patch{}
	for it := list.Iterator(); it.HasNext() == types.True; {
		op, ok := it.Next().(*mutation.JSONPatchVal)
		if !ok {
			return nil, fmt.Errorf("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of %T", op)
		}
		o := jsonpatch.Operation{}
		set := func(name string, value any) error {
			text, err := json.Marshal(value)
			o[name] = (*json.RawMessage)(&text)
			return err
		}
		err := errors.Join(set("op", op.Op), set("path", op.Path))
		if op.From != "" {
			err = errors.Join(err, set("from", op.From))
		}
		if op.Val != nil {
			if obj, ok := op.Val.(*dynamic.ObjectVal); ok {
				if err := obj.CheckTypeNamesMatchFieldPathNames(); err != nil {
					return nil, fmt.Errorf("type mismatch: %w", err)
				}
			}
			plain, convertErr := op.Val.ConvertToNative(reflect.TypeFor[*structpb.Value]())
			if convertErr == nil {
				convertErr = set("value", plain)
			}
			if convertErr != nil {
				return nil, fmt.Errorf("JSONPath valueExpression evaluated to a type that could not marshal to JSON: %w", convertErr)
			}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}
