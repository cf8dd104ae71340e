// Package registry stores the objects of one resource: create, get, list,
// update, delete and watch over store.Store, with the resource's strategy,
// optimistic concurrency, graceful deletion and finalizers. It knows no HTTP;
// objects going in and out are of the resource's stored Go type, and reads
// hand out stored versions undecoded.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// Root is the first segment of every key.
const Root = "/registry/"

// Config makes a Registry.
type Config struct {
	Resource *api.Resource // required
	Store    store.Store   // required; its Decorate function must be Decorate, its Index is best Index's
	Clock    clock.PassiveClock
	// TTL is how long objects of a resource that expires last, in whole seconds. Default: the strategy's.
	TTL time.Duration
	// Encryption of what is stored. Nil: none.
	Encryption *encryption.Set
	// Begin, when set, is called before an object is written (old nil on
	// create) and may change obj: the allocation of addresses and ports. It
	// returns a function called once with the outcome.
	Begin func(ctx context.Context, obj, old api.Object, dryRun bool) (func(done bool), error)
	// Validate, when set, finds what a strategy cannot, as it takes a look at other objects or at who may do what.
	// old is nil on create.
	Validate func(ctx context.Context, obj, old api.Object) field.ErrorList
	// Deleted, when set, is called after an object was removed.
	Deleted func(obj api.Object)
	// MayRemove, when set, can hold back the removal of an object whose
	// finalizers are gone (namespaces have a second list of them).
	MayRemove func(obj api.Object) bool
	// Counted, when set, counts what is asked of the store.
	Counted *metrics.Stored
	// Marked, when set, may change an object whose deletion is only begun
	// (namespaces show a phase).
	Marked func(obj api.Object)
}

// Registry is the storage of one resource. Safe for concurrent use.
type Registry struct {
	Config
	gr         schema.GroupResource
	kind       schema.GroupVersionKind // of the stored type
	version    *api.Version            // the stored one
	prefix     string                  // "/registry/pods/"
	selectable map[string]bool
	pathNames  []string   // the fields of FieldPaths, and
	paths      [][]uint64 // where each is
	lease      leases
	encryption *encryption.Resource
}

// New returns the registry of a resource.
func New(c Config) (*Registry, error) {
	r := &Registry{Config: c, gr: schema.GroupResource{Group: c.Resource.Group, Resource: c.Resource.Name}}
	if c.Store == nil || len(c.Resource.Versions) == 0 || c.Resource.Virtual {
		return nil, fmt.Errorf("resource %s cannot be stored: it needs a store and a version", r.gr)
	}
	if r.Clock == nil {
		r.Clock = clock.RealClock{}
	}
	r.kind = c.Resource.StoredKind()
	r.encryption = c.Encryption.For(schema.GroupResource{Group: r.kind.Group, Resource: c.Resource.Name})
	for i := range c.Resource.Versions {
		v := &c.Resource.Versions[i]
		if r.version == nil || v.Name == r.kind.Version {
			r.version = v
		}
	}
	r.prefix = keyPrefix(c.Resource)
	r.Store = storeOf(c.Store, r.prefix)
	if r.lease.ttl = c.Resource.Strategy.TTLSeconds; r.lease.ttl > 0 && c.TTL >= time.Second {
		r.lease.ttl = int64(c.TTL / time.Second)
	}
	for name, path := range c.Resource.Strategy.FieldPaths {
		r.pathNames, r.paths = append(r.pathNames, name), append(r.paths, path)
	}
	r.selectable = map[string]bool{"metadata.name": true}
	if c.Resource.Namespaced || c.Resource.Strategy.Selectable == nil && c.Resource.Codec == nil {
		r.selectable["metadata.namespace"] = true
	}
	if f := c.Resource.Strategy.Selectable; f != nil {
		for k := range f(r.New()) {
			r.selectable[k] = true
		}
	}
	return r, nil
}

// GroupResource names the resource.
func (r *Registry) GroupResource() schema.GroupResource { return r.gr }

// Kind is the kind of the stored objects.
func (r *Registry) Kind() schema.GroupVersionKind { return r.kind }

// Encrypted tells whether the objects are stored under a key, which a plug-in
// may have to be asked for.
func (r *Registry) Encrypted() bool { return r.encryption.Now().On() }

// New returns an empty object of the stored type. For a stored type that
// differs from every served one, the first version's ToStorage makes it.
func (r *Registry) New() api.Object {
	obj := r.version.New()
	if r.version.ToStorage != nil {
		if stored, err := r.version.ToStorage(obj); err == nil {
			return stored
		}
	}
	return obj
}

// Item is one stored version, or, after a dry run, the object that would have
// been stored (KV nil).
type Item struct {
	KV *store.KV
	// ResourceVersion is what the object's metadata shall say; for a deleted
	// object the revision of its deletion.
	ResourceVersion int64
	// Fresh says that KV was written just now: what it holds is what its writer may be shown.
	Fresh bool
	obj   api.Object
}

// Object returns the decoded object with its resourceVersion set. The caller
// may change it only if it made the item itself by a write; what Get and List
// return is decoded afresh each time.
func (r *Registry) Object(it Item) (api.Object, error) {
	if it.obj != nil {
		return it.obj, nil
	}
	obj, err := r.decode(it.KV)
	if err == nil {
		obj.SetResourceVersion(strconv.FormatInt(it.ResourceVersion, 10))
	}
	return obj, err
}

// batchBytes is about how much is decoded at once, where that is cheaper.
const batchBytes = 256 * 1024

// Each decodes versions and hands them on in order, until one fails.
func (r *Registry) Each(kvs []*store.KV, f func(api.Object) error) error {
	batch, batched := r.Resource.Codec.(api.BatchCodec)
	for len(kvs) > 0 {
		n, size := 1, len(kvs[0].Value)
		for batched && n < len(kvs) && size < batchBytes {
			size += len(kvs[n].Value)
			n++
		}
		if n == 1 {
			obj, err := r.decode(kvs[0])
			if err == nil {
				err = f(obj)
			}
			if err != nil {
				return err
			}
			kvs = kvs[1:]
			continue
		}
		values := make([][]byte, n)
		for i := range values {
			values[i] = kvs[i].Value
		}
		objs, err := batch.DecodeAll(values)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		for i, obj := range objs {
			obj.SetResourceVersion(strconv.FormatInt(kvs[i].ModRevision, 10))
			if err := f(obj); err != nil {
				return err
			}
		}
		kvs = kvs[n:]
	}
	return nil
}

// decode decodes a version in the clear.
func (r *Registry) decode(kv *store.KV) (api.Object, error) {
	read := r.fromJSON
	switch {
	case r.Resource.Codec != nil:
		read = r.Resource.Codec.Decode
	case wire.IsProtobuf(kv.Value):
		read = r.fromProtobuf
	case r.Resource.DecodeJSON != nil:
		read = r.Resource.DecodeJSON
	}
	obj, err := read(kv.Value)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("stored object %s is unreadable: %w", kv.Key, err))
	}
	obj.SetResourceVersion(strconv.FormatInt(kv.ModRevision, 10))
	return obj, nil
}

func (r *Registry) fromProtobuf(value []byte) (api.Object, error) {
	obj := r.New()
	m, ok := obj.(interface{ Unmarshal([]byte) error })
	if !ok {
		return nil, fmt.Errorf("type %T has no protobuf form", obj)
	}
	env, err := wire.Open(value)
	if err != nil {
		return nil, err
	}
	return obj, m.Unmarshal(env.Raw)
}

// fromJSON reads what another API server stored: upstream's keeps APIServices as JSON, and
// with --storage-media-type everything.
func (r *Registry) fromJSON(value []byte) (api.Object, error) {
	obj := r.New()
	if err := json.Unmarshal(value, obj); err != nil {
		return nil, fmt.Errorf("neither protobuf nor JSON: %w", err)
	}
	if gvk := obj.GetObjectKind().GroupVersionKind(); gvk != r.kind {
		return nil, fmt.Errorf("it is a %s, not a %s", gvk, r.kind)
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{}) // as objects read from protobuf
	return obj, nil
}

// encode seals obj for storage; its resourceVersion is not part of the bytes.
func (r *Registry) encode(obj api.Object) ([]byte, error) {
	if c := r.Resource.Codec; c != nil {
		value, err := c.Encode(obj)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		return value, nil
	}
	m, ok := obj.(wire.Message)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("type %T has no protobuf form", obj))
	}
	rv := obj.GetResourceVersion()
	obj.SetResourceVersion("")
	obj.SetSelfLink("")
	value, err := wire.Seal(r.kind.GroupVersion().String(), r.kind.Kind, m)
	obj.SetResourceVersion(rv)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return value, nil
}

// key returns the key of an object, or a 400 for a name that cannot be one.
func (r *Registry) key(namespace, name string) (string, error) {
	if name == "" {
		return "", apierrors.NewBadRequest("Name parameter required.")
	}
	if msgs := content.IsPathSegmentName(name); len(msgs) > 0 {
		return "", apierrors.NewBadRequest(fmt.Sprintf("Name parameter invalid: %q: %s", name, strings.Join(msgs, ";")))
	}
	if !r.Resource.Namespaced {
		return r.prefix + name, nil
	}
	if namespace == "" {
		return "", apierrors.NewBadRequest("Namespace parameter required.")
	}
	if msgs := content.IsPathSegmentName(namespace); len(msgs) > 0 {
		return "", apierrors.NewBadRequest(fmt.Sprintf("Namespace parameter invalid: %q: %s", namespace, strings.Join(msgs, ";")))
	}
	return r.prefix + namespace + "/" + name, nil
}

// Split takes a key of this resource apart.
func (r *Registry) Split(key string) (namespace, name string) {
	rest := strings.TrimPrefix(key, r.prefix)
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		return rest[:i], rest[i+1:]
	}
	return "", rest
}

// Get returns the newest version of an object. resourceVersion, when not
// empty, must not be newer than what there is.
func (r *Registry) Get(ctx context.Context, namespace, name, resourceVersion string) (Item, error) {
	key, err := r.key(namespace, name)
	if err != nil {
		return Item{}, err
	}
	rv, err := ParseResourceVersion(resourceVersion)
	if err != nil {
		return Item{}, err
	}
	snap, err := r.notOlder(ctx, rv, resourceVersion)
	if err != nil {
		return Item{}, err
	}
	kv := snap.Get(key)
	if kv == nil {
		return Item{}, apierrors.NewNotFound(r.gr, name)
	}
	if kv, err = r.Open(kv); err != nil {
		return Item{}, err
	}
	return Item{KV: kv, ResourceVersion: kv.ModRevision}, nil
}

// snapshot returns the newest snapshot, which must not be older than atLeast.
func (r *Registry) snapshot(ctx context.Context, atLeast int64) (store.Snapshot, error) {
	snap, err := r.Store.Snapshot(ctx, 0)
	if err != nil {
		return nil, storeError(err)
	}
	if atLeast > snap.Revision() {
		return nil, TooLargeResourceVersion(atLeast, snap.Revision())
	}
	return snap, nil
}

// notOlder returns a snapshot for a reader who asked for a resource version
// that is rv, or, with none, for the newest. One who names a version is content
// with what is in memory if that is no older.
func (r *Registry) notOlder(ctx context.Context, rv int64, asked string) (store.Snapshot, error) {
	if asked != "" {
		if snap, err := r.Store.Snapshot(ctx, store.Local); err == nil && snap.Revision() >= rv {
			return snap, nil
		}
	}
	return r.snapshot(ctx, rv)
}

// ClientFault is an error that is the client's. Upstream answers these with
// code 500 and no reason; they are no fault of the server's.
type ClientFault struct{ Message string }

func (e *ClientFault) Error() string { return e.Message }

// Status implements apierrors.APIStatus.
func (e *ClientFault) Status() metav1.Status {
	return metav1.Status{Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest, Message: e.Message}
}

// ParseResourceVersion parses a resource version from a request; "" is 0. Its
// error is a ClientFault.
func ParseResourceVersion(s string) (int64, error) {
	if s == "" || s == "0" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, &ClientFault{field.Invalid(field.NewPath("resourceVersion"), s, err.Error()).Error()}
	}
	return int64(v), nil
}

// TooLargeResourceVersion is the answer to a resource version from the future.
func TooLargeResourceVersion(asked, current int64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{
		Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version",
	}}
	return err
}

// storeError turns the store's errors into API errors.
func storeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrCompacted):
		return apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
	case errors.Is(err, store.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError("the object is too large to be stored: " + err.Error())
	case errors.Is(err, store.ErrNoSpace):
		return apierrors.NewInternalError(fmt.Errorf("the store is full: %w; delete objects or raise its quota", err))
	case errors.Is(err, store.ErrOutcomeUnknown):
		return apierrors.NewTimeoutError(err.Error()+"; look at the object before writing again", 0)
	case errors.Is(err, store.ErrClosed):
		return apierrors.NewServiceUnavailable("the store is closed; the server is shutting down")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return apierrors.NewTimeoutError("the request did not complete in time: "+err.Error(), 0)
	}
	return apierrors.NewInternalError(err)
}

// leases hands out store leases for objects with a time to live. Objects
// written within a minute share one, so that expiry costs few leases.
type leases struct {
	ttl   int64 // seconds; 0: objects do not expire
	mu    sync.Mutex
	id    store.LeaseID
	until int64 // unix seconds
	used  int
}

const (
	leaseShareSeconds = 60
	leaseShareObjects = 1000
)

func (l *leases) get(ctx context.Context, s store.Store, now int64) (store.LeaseID, error) {
	if l.ttl == 0 {
		return 0, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.id != 0 && now < l.until && l.used < leaseShareObjects {
		l.used++
		return l.id, nil
	}
	lease, err := s.Leases().Grant(ctx, 0, min(l.ttl+leaseShareSeconds, store.MaxLeaseTTL))
	if err != nil {
		return 0, storeError(err)
	}
	l.id, l.until, l.used = lease.ID, now+leaseShareSeconds, 1
	return l.id, nil
}
