// Package api describes every served resource: one value per resource in one
// explicit list (see All), with its names, versions, defaults, validation,
// strategy, selectable fields and table columns. The descriptions are pure:
// the API server's generic pipeline does everything that touches the store,
// the clock or the network.
//
// There is one Go type per noun, k8s.io/api's versioned type; no internal
// twin. Each API group has its own folder (api/core, api/apps, …); adding a
// resource touches one file there and one line in the list.
package api

import (
	"cmp"
	"context"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Object is any API object with metadata.
type Object interface {
	runtime.Object
	metav1.Object
}

// Resource is everything the API server knows of one resource.
type Resource struct {
	Group      string // "" for core
	Name       string // plural, lower case: "pods"
	Singular   string // "pod"
	Kind       string // "Pod"
	ListKind   string // empty: Kind with "List" after it
	ShortNames []string
	Categories []string // "all" and the like
	Namespaced bool
	// Versions are the served versions, the preferred one first.
	Versions []Version
	// StorageVersion is the version objects are encoded in on disk; empty:
	// the first of Versions. The strategy functions below get and return
	// objects of this version's Go type.
	StorageVersion string
	// StorageGroup is the group of the stored type where it differs from
	// Group (events.k8s.io shares the storage of core events); CoreGroup
	// stands for the core group, whose name is empty. Empty: Group. See StoredKind.
	StorageGroup string
	// StoragePrefix is the path below /registry/, upstream's: "minions",
	// "services/specs". Never a trailing slash; empty: Name. See Prefix.
	StoragePrefix string
	// Verbs served on the main resource; nil means all eight: create, delete,
	// deletecollection, get, list, patch, update, watch. A resource with no
	// storage (reviews) has just "create" and a Create function.
	Verbs []string
	// Codec stores objects in a form of its own, custom resources as JSON. Nil:
	// protobuf, as upstream. DecodeJSON reads what another API server stored as JSON, where
	// that may be another version.
	Codec      Codec
	DecodeJSON func(value []byte) (Object, error)
	// HashKind is the stored kind where StoredKind is not it (each version of a custom resource is a
	// Resource). Revision changes whenever the resource's schema does; empty: never.
	HashKind schema.GroupVersionKind
	Revision string
	// Create, when set, answers a POST without storing anything (token and
	// access reviews). The API server supplies it by name; see
	// apiserver.Config. Here it only marks the resource as virtual.
	Virtual bool

	Strategy     Strategy
	Subresources []Subresource
	// Columns are the table columns after Name (which is always first) and
	// Cells computes them. Nil: Name and Created At (Age is a Column like any other).
	Columns []metav1.TableColumnDefinition
	// WholeTable says that Columns is the whole table: no Name column goes
	// first (events).
	WholeTable bool
	// Cells returns the cells of one object, one per column of the table
	// (Name first, unless WholeTable). now is for ages.
	Cells func(obj Object, now metav1.Time) []any
	// RowOrder, when set, is the order of a table's rows, if not that of the names.
	RowOrder func(a, b Object) int
}

// CoreGroup names the core group in StorageGroup.
const CoreGroup = "core"

// StoredKind is the kind objects of the resource are stored as: the group is
// "" for the core group.
func (r *Resource) StoredKind() schema.GroupVersionKind {
	k := schema.GroupVersionKind{Group: r.Group, Version: r.StorageVersion, Kind: r.Kind}
	if k.Version == "" && len(r.Versions) > 0 {
		k.Version = r.Versions[0].Name
	}
	switch r.StorageGroup {
	case "":
	case CoreGroup:
		k.Group = ""
	default:
		k.Group = r.StorageGroup
	}
	return k
}

// Prefix is the path below /registry/ that objects of the resource live in.
func (r *Resource) Prefix() string { return cmp.Or(r.StoragePrefix, r.Name) }

// Codec turns stored bytes into objects and back. Encode leaves the object
// alone and keeps its resourceVersion out of the bytes.
type Codec interface {
	Decode(value []byte) (Object, error)
	Encode(obj Object) ([]byte, error)
}

// BatchCodec is a Codec that decodes many values at less cost than one by one.
type BatchCodec interface {
	Codec
	DecodeAll(values [][]byte) ([]Object, error)
}

// Version is one served version of a resource.
type Version struct {
	Name    string // "v1"
	New     func() Object
	NewList func() runtime.Object
	// FromStorage and ToStorage convert between the stored version's type and
	// this one; nil where they are the same type. They may share memory with
	// their argument.
	FromStorage func(Object) (Object, error)
	ToStorage   func(Object) (Object, error)
	// Default fills unset fields of this version as upstream does; idempotent.
	Default func(Object)
	// Coerce, when set, fits a decoded object to the version's schema; with
	// report it names the fields it dropped. Custom resources only.
	Coerce func(obj Object, report bool) (unknown []string, err error)
	// Model, when set, is the OpenAPI schema instead of the Go type's; open
	// says that nothing may be added to it. The caller owns the schema.
	Model func(v2 bool) (s *spec.Schema, open bool, err error)
	// Deprecated, when set, is the warning text sent with every response.
	Deprecated string
}

// Strategy holds the behaviour of one resource. Any function may be nil.
// Objects passed in are the caller's to change only where said so.
type Strategy struct {
	// PrepareForCreate clears fields the client may not set (status) and sets
	// server-owned ones (generation 1). It changes obj.
	PrepareForCreate func(ctx context.Context, obj Object)
	// PrepareForUpdate copies back what an update may not change (status) and
	// bumps the generation when the spec changed. It changes obj, not old.
	PrepareForUpdate func(ctx context.Context, obj, old Object)
	// Validate checks an object to be created. Metadata is checked by the
	// pipeline with NameValid; do not repeat it here.
	Validate func(ctx context.Context, obj Object) field.ErrorList
	// ValidateUpdate checks a change, immutability included. The pipeline has
	// checked metadata.
	ValidateUpdate func(ctx context.Context, obj, old Object) field.ErrorList
	// NameValid checks metadata.name and, with prefix set, generateName;
	// nil means a DNS-1123 subdomain.
	NameValid func(name string, prefix bool) []string
	// Warnings returns texts for Warning headers on create and update (old nil on create).
	Warnings func(ctx context.Context, obj, old Object) []string
	// Selectable returns the fields usable in a field selector besides
	// metadata.name and metadata.namespace, with their values for obj. It is
	// called with an empty object too, to learn which fields there are.
	Selectable func(obj Object) fields.Set
	// FieldPaths are those of them, at most 64, that are plain strings of the
	// stored protobuf message, by the numbers of the fields that lead there:
	// they are found without decoding the object, which is done for the others.
	FieldPaths map[string][]uint64
	// Index is the one of FieldPaths that the store finds objects by, "" for none.
	Index string
	// Reset are fields ("spec") besides status that a write cannot change, so
	// that no manager comes to own them by it. See View.Reset.
	Reset []string
	// NoField is the format of the refusal to select by another field, where
	// upstream has its own for the kind.
	NoField string
	// GracePeriod decides a deletion's grace period in seconds: nil or 0
	// result means delete now. Pods use it; others leave it nil.
	GracePeriod func(obj Object, opts *metav1.DeleteOptions) int64
	// AllowCreateOnUpdate lets PUT create a missing object (leases, …).
	AllowCreateOnUpdate bool
	// DenyUnconditionalUpdate refuses a PUT without resourceVersion.
	DenyUnconditionalUpdate bool
	// OrphanByDefault: dependents are orphaned when a DELETE names no policy.
	OrphanByDefault bool
	// TTLSeconds gives stored objects a lease (events: 3600). Zero: none.
	TTLSeconds int64
	// HasStatusReset (see Subresources) needs nothing here: the status
	// subresource carries its own strategy.
}

// Subresource is one subresource of a Resource.
type Subresource struct {
	Name  string   // "status", "scale", "log", "exec", "binding", …
	Verbs []string // in discovery; nil means get, patch, update
	// Kind, Group and Version of the body when they differ from the parent's
	// (Scale autoscaling/v1, Eviction policy/v1, TokenRequest authentication.k8s.io/v1, …).
	Kind, Group, Version string
	// View, when set, makes this a view on the parent object (status,
	// ephemeralcontainers, resize, approval, finalize): the same body, with its own rules.
	View *View
	// Scale, when set, serves autoscaling/v1 Scale.
	Scale *Scale
	// Neither: the API server serves it by name (log, exec, attach,
	// portforward, proxy, binding, eviction, token).
}

// View is the update strategy of a subresource that shows the whole object.
type View struct {
	PrepareForUpdate func(ctx context.Context, obj, old Object)
	ValidateUpdate   func(ctx context.Context, obj, old Object) field.ErrorList
	// Reset are fields ("metadata.labels") that a write cannot change and so
	// does not come to own; a status write never owns the spec.
	Reset []string
}

// AnswersDeleted tells whether DELETE answers with the object rather than a Status.
func (r *Resource) AnswersDeleted() bool {
	switch r.Group {
	case "":
		return slices.Contains([]string{"pods", "services", "serviceaccounts", "podtemplates", "resourcequotas", "persistentvolumes",
			"persistentvolumeclaims"}, r.Name)
	case "storage.k8s.io":
		return slices.Contains([]string{"storageclasses", "csinodes", "csidrivers", "volumeattachments", "volumeattributesclasses"}, r.Name)
	case "resource.k8s.io":
		return slices.Contains([]string{"deviceclasses", "resourceclaims", "resourceclaimtemplates", "resourceslices"}, r.Name)
	}
	return false
}

// List is the kind of the resource's lists.
func (r *Resource) List() string {
	if r.ListKind != "" {
		return r.ListKind
	}
	return r.Kind + "List"
}
