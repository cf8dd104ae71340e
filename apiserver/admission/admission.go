// Package admission holds the built-in admission plugins: the checks and
// defaults between authorization and storage that look at other objects.
// Plugins get a request and a Reader and answer with an error or none; all
// I/O is behind the Reader.
package admission

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/auth"
)

// Operation is what a request does, as admission sees it.
type Operation string

// The operations, spelled as in webhook configurations.
const (
	Create  Operation = "CREATE"
	Update  Operation = "UPDATE"
	Delete  Operation = "DELETE"
	Connect Operation = "CONNECT"
)

// Request is one write (or connect) on its way to storage.
type Request struct {
	auth.Attributes
	// Kind of Object: the request's kind (for pods/eviction policy/v1
	// Eviction), in the version Object's Go type has.
	Kind schema.GroupVersionKind
	// Object is what would be stored, nil for delete and connect. Plugins may
	// change it in Admit. For a patch or apply it is the merged result. It is
	// the resource's stored Go type, or a subresource's body (Eviction,
	// Binding, TokenRequest, Scale).
	Object api.Object
	// Old is what is stored now, nil for create and connect. Never changed.
	// On delete it is set for a single object and for each object of a
	// deletecollection.
	Old api.Object
	// Options is the request's CreateOptions, UpdateOptions, PatchOptions,
	// DeleteOptions, or the connect options (PodExecOptions, …). May be nil.
	Options runtime.Object
	DryRun  bool
}

// Operation says which of the four operations r is. A PUT or PATCH that
// creates the object (Old nil) is a create.
func (r *Request) Operation() Operation {
	switch {
	case r.Verb == "delete" || r.Verb == "deletecollection":
		return Delete
	case r.Object == nil:
		return Connect
	case r.Old == nil:
		return Create
	default:
		return Update
	}
}

// is reports whether r is about the main resource group/resource, or, with a
// subresource given, about that subresource.
func (r *Request) is(group, resource string, subresource ...string) bool {
	sub := ""
	if len(subresource) > 0 {
		sub = subresource[0]
	}
	return r.ResourceRequest && r.APIGroup == group && r.Resource == resource && r.Subresource == sub
}

// Plugin is one admission check. The server runs every plugin's Admit in
// order, then defaulting and validation of the object, then every plugin's
// Validate in order, and stops at the first error.
type Plugin interface {
	// Name is upstream's plugin name ("NamespaceLifecycle").
	Name() string
	// Admit may change r.Object.
	Admit(ctx context.Context, r *Request) error
	// Validate must not change r.Object.
	Validate(ctx context.Context, r *Request) error
}

// Reader reads stored objects, in each resource's stored version. Results are
// shared: callers must not change them. Get answers an API NotFound error for
// what is missing; List with an empty namespace lists all namespaces.
type Reader interface {
	Get(group, resource, namespace, name string) (api.Object, error)
	List(group, resource, namespace string) ([]api.Object, error)
}

// QuotaUpdater is implemented by a Reader that can also charge quotas; without
// it ResourceQuota only checks. The update must fail with an API Conflict
// error when the stored resourceVersion is another than q's.
type QuotaUpdater interface {
	UpdateQuotaStatus(ctx context.Context, q *corev1.ResourceQuota) error
}

// Warner is handed texts for Warning response headers. The server puts one
// into the context with WithWarner.
type Warner func(text string)

type warnerKey struct{}

// WithWarner returns a context in which plugins send their warnings to w.
func WithWarner(ctx context.Context, w Warner) context.Context {
	return context.WithValue(ctx, warnerKey{}, w)
}

func warn(ctx context.Context, text string) {
	if w, ok := ctx.Value(warnerKey{}).(Warner); ok && w != nil {
		w(text)
	}
}

// Admit runs every plugin's Admit in order and stops at the first error. What
// is no API status error becomes one: 403 naming the object.
func Admit(ctx context.Context, plugins []Plugin, r *Request) error {
	for _, p := range plugins {
		if err := p.Admit(ctx, r); err != nil {
			return asStatus(r, err)
		}
	}
	return nil
}

// Validate runs every plugin's Validate in order, as Admit does.
func Validate(ctx context.Context, plugins []Plugin, r *Request) error {
	for _, p := range plugins {
		if err := p.Validate(ctx, r); err != nil {
			return asStatus(r, err)
		}
	}
	return nil
}

func asStatus(r *Request, err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	return forbidden(r, err)
}

// forbidden is the 403 upstream's admission answers with: it names the object
// asked for, or its generateName with the reason why it has no name yet.
func forbidden(r *Request, err error) error {
	name := r.Name
	if r.Object != nil {
		if n := r.Object.GetName(); n != "" {
			name = n
		} else if name == "" {
			name = r.Object.GetGenerateName()
		}
	}
	if name == "" {
		name = "Unknown"
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: r.APIGroup, Resource: r.Resource}, name, err)
}

// Default returns the plugins that are on by default, in upstream's order.
func Default(reader Reader) []Plugin {
	_ = reader
	return nil
}
