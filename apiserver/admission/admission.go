// Package admission holds the built-in admission plugins: the checks and
// defaults between authorization and storage that look at other objects.
// Plugins get a request and a Reader and answer with an error or none; all
// I/O is behind the Reader.
package admission

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission/config"
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
	// Forms knows how Object and Old look in other versions; nil: as they are only.
	Forms Shower

	round round
	chain *Chain // that runs, or nil
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

// Warner is handed texts for Warning response headers. The server puts one
// into the context with WithWarner.
type Warner func(text string)

type warnerKey struct{}

// WithWarner returns a context in which plugins send their warnings to w.
func WithWarner(ctx context.Context, w Warner) context.Context {
	return context.WithValue(ctx, warnerKey{}, w)
}

// Warn sends the client a warning.
func Warn(ctx context.Context, text string) {
	if w, ok := ctx.Value(warnerKey{}).(Warner); ok && w != nil {
		w(text)
	}
}

func asStatus(r *Request, err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	return forbidden(r, err)
}

func forbidden(r *Request, err error) error { return Forbidden(r, err) }

// Forbidden is the 403 upstream's admission answers with: it names the object
// asked for, or its generateName with the reason why it has no name yet.
func Forbidden(r *Request, err error) *apierrors.StatusError {
	return apierrors.NewForbidden(schema.GroupResource{Group: r.APIGroup, Resource: r.Resource}, requestName(r), err)
}

// unexplained is the 500 upstream answers with where a plugin's error is no API status; nil stays nil.
func unexplained(err error) error {
	if err == nil {
		return nil
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonUnknown, Message: err.Error(),
	}}
}

func requestName(r *Request) string {
	name := r.Name
	if r.Verb == "deletecollection" {
		name = "" // the request names no object
	}
	if r.Object != nil {
		if n := r.Object.GetName(); n != "" {
			name = n
		} else if name == "" {
			name = r.Object.GetGenerateName()
		}
	}
	return cmp.Or(name, "Unknown")
}

// Config is what plugins need besides the request.
type Config struct {
	Reader Reader // required
	// Authorizer, the server's whole chain, answers the extra permissions some
	// plugins ask for. Nil: those plugins are left out (CertificateApproval,
	// CertificateSigning, ClusterTrustBundleAttest, the audiences of NodeRestriction).
	Authorizer auth.Authorizer
	Clock      clock.WithTicker // default the real one
	// Enable names those of Optional that shall run.
	Enable []string
	// Plugins is what plugins are told.
	Plugins config.Plugins
	// Last run after all others but ResourceQuota, which counts what they leave:
	// policies and webhooks.
	Last []Plugin
}

// Optional are the plugins that run only if they are asked for.
func Optional() []string {
	return []string{"AlwaysPullImages", "DenyServiceExternalIPs", "EventRateLimit", "PodNodeSelector"}
}

// New returns the plugins that are on by default and those enabled, in upstream's order.
func New(cfg Config) []Plugin {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	read := reader{cfg.Reader}
	plugins := []Plugin{
		namespaceLifecycle{read: read},
		limitRanger{read: read},
		serviceAccount{read: read, clock: cfg.Clock},
		nodeRestriction{read: read, authorizer: cfg.Authorizer},
		taintNodesByCondition{},
		alwaysPullImages{},
		newPodSecurity(read, cfg.Plugins.PodSecurity),
		podNodeSelector{read: read, selectors: cfg.Plugins.NodeSelectors},
		priority{read: read},
		defaultTolerationSeconds{seconds: cfg.Plugins.Tolerations},
		newEventRateLimit(cfg.Plugins.EventLimits, cfg.Clock),
		defaultStorageClass{read: read},
		storageObjectInUseProtection{},
		persistentVolumeClaimResize{read: read},
		runtimeClass{read: read},
	}
	if cfg.Authorizer != nil {
		plugins = append(plugins, certificateApproval{authorizer: cfg.Authorizer}, certificateSigning{authorizer: cfg.Authorizer},
			podCertificateSigning{authorizer: cfg.Authorizer}, clusterTrustBundleAttest{authorizer: cfg.Authorizer})
	}
	plugins = append(plugins, certificateSubjectRestriction{}, defaultIngressClass{read: read}, denyServiceExternalIPs{}, podTopologyLabels{read: read},
		nodeDeclaredFeatureValidator{read: read}, podResizeValidator{read: read})
	plugins = append(plugins, cfg.Last...)
	plugins = append(plugins, &resourceQuota{read: read, clock: cfg.Clock, limited: cfg.Plugins.LimitedResources})
	return slices.DeleteFunc(plugins, func(p Plugin) bool {
		return slices.Contains(Optional(), p.Name()) && !slices.Contains(cfg.Enable, p.Name())
	})
}

// name is the object's name: from the URL, else from the object itself.
func (r *Request) name() string {
	if r.Name == "" && r.Object != nil {
		return r.Object.GetName()
	}
	return r.Name
}

// noAdmit and noValidate fill in the half of Plugin a plugin has no use for.
type noAdmit struct{}

func (noAdmit) onlyValidates()                        {}
func (noAdmit) Admit(context.Context, *Request) error { return nil }

type noValidate struct{}

func (noValidate) onlyAdmits()                              {}
func (noValidate) Validate(context.Context, *Request) error { return nil }

// reader reads objects of one type.
type reader struct{ Reader }

// get reads one object as T; an object of another type counts as missing.
func get[T any](r reader, group, resource, namespace, name string) (T, error) {
	var zero T
	obj, err := r.Get(group, resource, namespace, name)
	if err != nil {
		return zero, err
	}
	if t, ok := obj.(T); ok {
		return t, nil
	}
	return zero, apierrors.NewNotFound(schema.GroupResource{Group: group, Resource: resource}, name)
}

// list reads the objects of a resource that are of type T.
func list[T any](r reader, group, resource, namespace string) ([]T, error) {
	objs, err := r.List(group, resource, namespace)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(objs))
	for _, o := range objs {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out, nil
}
