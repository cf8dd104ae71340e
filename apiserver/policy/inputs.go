package policy

import (
	"reflect"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/cel/common"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/match"
)

// inputs are the values expressions see of a request in a form. Objects are
// read where they are, field by field as expressions ask: nothing is copied
// but the struct around them.
func (c *Config) inputs(r *admission.Request, f admission.Form) (expression.Inputs, error) {
	var in expression.Inputs
	ns, err := c.namespace(r)
	if err != nil {
		return in, err
	}
	if in.Object, err = show(r.Object, f); err == nil {
		in.OldObject, err = show(r.Old, f)
	}
	in.Namespace = ns
	match.Ask(&in, r, f, c.Authorizer)
	return in, err
}

// show is the value of an object in a form.
func show(obj api.Object, f admission.Form) (ref.Val, error) {
	if obj == nil {
		return types.NullValue, nil
	}
	if f.New != nil && reflect.TypeOf(f.New()) != reflect.TypeOf(obj) || isMap(obj) {
		var err error
		if obj, err = f.Show(obj); err != nil {
			return nil, err
		}
	}
	return valueOf(obj, f.Kind), nil
}

func isMap(obj api.Object) bool {
	_, ok := obj.(*unstructured.Unstructured)
	return ok
}

// valueOf shows an object, which need not say of what kind it is.
func valueOf(obj api.Object, kind schema.GroupVersionKind) ref.Val {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return types.DefaultTypeAdapter.NativeToValue(u.Object)
	}
	if obj.GetObjectKind().GroupVersionKind() != kind {
		was := reflect.ValueOf(obj).Elem()
		shallow := reflect.New(was.Type())
		shallow.Elem().Set(was)
		obj = shallow.Interface().(api.Object)
		obj.GetObjectKind().SetGroupVersionKind(kind)
	}
	return common.SchemalessTypedToVal(obj)
}

// namespace is the request's namespace, or null: a Namespace is in none.
func (c *Config) namespace(r *admission.Request) (ref.Val, error) {
	own := r.Own().Kind
	if r.Namespace == "" || own.Group == "" && own.Kind == "Namespace" {
		return types.NullValue, nil
	}
	obj, err := c.Reader.Get("", "namespaces", "", r.Namespace)
	if err != nil {
		return nil, err
	}
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return types.NullValue, nil
	}
	shown := &corev1.Namespace{ObjectMeta: ns.ObjectMeta, Spec: ns.Spec, Status: ns.Status}
	shown.ManagedFields, shown.OwnerReferences, shown.SelfLink = nil, nil, ""
	return common.SchemalessTypedToVal(shown), nil
}
