package admission

import (
	"context"
	"reflect"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
)

// Form is one way the objects of a request can be shown: as a resource in a
// version. Its functions never change what they get and share nothing with it.
type Form struct {
	Resource schema.GroupVersionResource
	// Kind of the object shown; of a subresource's own body (Scale, Eviction),
	// the body's.
	Kind schema.GroupVersionKind
	// New returns an empty object of the form.
	New func() api.Object
	// Show makes what Request.Object or Old look like in this form, kind included.
	Show func(obj api.Object) (api.Object, error)
	// Default fills unset fields as this version does, in place. May be nil.
	Default func(obj api.Object)
	// Store is the way back from Show: fields a custom resource's schema does
	// not have are dropped.
	Store func(shown api.Object) (api.Object, error)
}

// Shower knows the forms a request's objects have: as the client sees them,
// then as the other served resources and versions of the same storage do.
type Shower interface {
	Forms(r *Request) []Form
}

// round is what one request's plugins tell each other.
type round struct {
	wanted, again bool
	replaced      bool // the object, by Replace
	state         map[string]any
	forms         []Form
}

// Own is the form the client sees.
func (r *Request) Own() Form { return r.allForms()[0] }

// Equivalents are the other forms; see Shower.
func (r *Request) Equivalents() []Form { return r.allForms()[1:] }

func (r *Request) allForms() []Form {
	if r.round.forms == nil && r.Forms != nil {
		r.round.forms = r.Forms.Forms(r)
	}
	if r.round.forms == nil {
		r.round.forms = []Form{r.BodyForm(schema.GroupVersionResource{Group: r.APIGroup, Version: r.APIVersion, Resource: r.Resource})}
	}
	return r.round.forms
}

// BodyForm is the form of a body that looks the same everywhere.
func (r *Request) BodyForm(resource schema.GroupVersionResource) Form {
	same := func(obj api.Object) (api.Object, error) {
		obj = obj.DeepCopyObject().(api.Object)
		obj.GetObjectKind().SetGroupVersionKind(r.Kind)
		return obj, nil
	}
	return Form{
		Resource: resource, Kind: r.Kind, Show: same, Store: same,
		New: func() api.Object { return reflect.New(reflect.TypeOf(r.Object).Elem()).Interface().(api.Object) },
	}
}

// Replace makes obj, which must be of r.Object's Go type and is not used
// afterwards, what r.Object points to: everybody holding the object sees it.
func (r *Request) Replace(obj api.Object) {
	r.round.replaced = true
	reflect.ValueOf(r.Object).Elem().Set(reflect.ValueOf(obj).Elem())
}

// ObjectName is the name webhooks and policies see: the URL's, else the
// object's. A deletecollection names nothing.
func (r *Request) ObjectName() string {
	if r.Verb == "deletecollection" {
		return ""
	}
	return r.name()
}

// Review describes the request as webhooks and CEL expressions see it, in a
// form; uid and objects are left to the caller.
func (r *Request) Review(f Form) *admissionv1.AdmissionRequest {
	own, name := r.Own(), r.ObjectName()
	u := authenticationv1.UserInfo{Username: r.User.Name, UID: r.User.UID, Groups: r.User.Groups, Extra: map[string]authenticationv1.ExtraValue{}}
	for k, v := range r.User.Extra {
		u.Extra[k] = v
	}
	out := &admissionv1.AdmissionRequest{
		Kind: metav1.GroupVersionKind(f.Kind), Resource: metav1.GroupVersionResource(f.Resource), SubResource: r.Subresource,
		RequestKind: (*metav1.GroupVersionKind)(&own.Kind), RequestResource: (*metav1.GroupVersionResource)(&own.Resource),
		RequestSubResource: r.Subresource, Name: name, Namespace: r.Namespace,
		Operation: admissionv1.Operation(r.Operation()), UserInfo: u, DryRun: &r.DryRun,
	}
	if r.Operation() != Connect {
		out.Options = runtime.RawExtension{Object: r.Options}
	}
	return out
}

// Reinvoke asks for a second round of Admit, after something changed that
// earlier plugins may care about.
func (r *Request) Reinvoke() { r.round.wanted = true }

// Again tells the second round of Admit.
func (r *Request) Again() bool { return r.round.again }

// State is what the plugin of that name kept with SetState in the first round; nil: nothing.
func (r *Request) State(plugin string) any { return r.round.state[plugin] }

// SetState keeps a plugin's state for the second round.
func (r *Request) SetState(plugin string, state any) {
	if r.round.state == nil {
		r.round.state = map[string]any{}
	}
	r.round.state[plugin] = state
}

type annotatorKey struct{}

// Annotator is handed audit annotations; body tells those that show parts of
// the request's body.
type Annotator func(key, value string, body bool)

// WithAnnotator returns a context in which plugins send audit annotations to a.
func WithAnnotator(ctx context.Context, a Annotator) context.Context {
	return context.WithValue(ctx, annotatorKey{}, a)
}

// Annotate adds an annotation to the request's audit event, if there is one.
func Annotate(ctx context.Context, key, value string) { annotate(ctx, key, value, false) }

// AnnotateBody adds an annotation where the audit event shows bodies too.
func AnnotateBody(ctx context.Context, key, value string) { annotate(ctx, key, value, true) }

func annotate(ctx context.Context, key, value string, body bool) {
	if a, ok := ctx.Value(annotatorKey{}).(Annotator); ok && a != nil {
		a(key, value, body)
	}
}
