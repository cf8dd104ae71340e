package webhook

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
)

// view shows a request's objects in one form at a time. What webhooks changed
// in one form is carried over to the next and, by done, to the request.
type view struct {
	r     *admission.Request
	form  admission.Form
	shown bool
	now   runtime.Object // of a connect: its options; nil: none
	old   runtime.Object
	dirty bool // now differs from r.Object
}

// object is the object as it is now, nil for none.
func (v *view) object() api.Object {
	if obj, ok := v.now.(api.Object); ok {
		return obj
	}
	return v.r.Object
}

// in shows the request in another form.
func (v *view) in(f admission.Form) error {
	if v.shown && v.form.Kind == f.Kind {
		return nil
	}
	if err := v.done(); err != nil {
		return err
	}
	v.form, v.shown, v.now, v.old = f, true, nil, nil
	if v.r.Operation() == admission.Connect {
		v.now = v.r.Options
		return nil
	}
	if v.r.Object != nil {
		obj, err := f.Show(v.r.Object)
		if err != nil {
			return err
		}
		v.now = obj
	}
	if v.r.Old != nil {
		obj, err := f.Show(v.r.Old)
		if err != nil {
			return err
		}
		v.old = obj
	}
	return nil
}

// set makes JSON the object, with defaults, and returns what it was.
func (v *view) set(data []byte) (before runtime.Object, err error) {
	obj := v.form.New()
	if u, ok := obj.(*unstructured.Unstructured); ok {
		err = u.UnmarshalJSON(data)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, obj)
	}
	if err != nil {
		return nil, err
	}
	if got := obj.GetObjectKind().GroupVersionKind(); got != v.form.Kind {
		return nil, fmt.Errorf("the patch made a %v of a %v", got, v.form.Kind)
	}
	if v.form.Default != nil {
		v.form.Default(obj)
	}
	before, v.now, v.dirty = v.now, obj, true
	return before, nil
}

// json is the object as JSON.
func (v *view) json() ([]byte, error) { return json.Marshal(v.now) }

// done gives the request what webhooks made of its object.
func (v *view) done() error {
	if !v.dirty {
		return nil
	}
	obj, err := v.form.Store(v.now.(api.Object))
	if err == nil {
		v.r.Replace(obj)
		v.dirty = false
	}
	return err
}
