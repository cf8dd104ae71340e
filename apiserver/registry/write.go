package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/store"
)

// OptimisticLockMessage is the text of a conflict between writers.
const OptimisticLockMessage = "the object has been modified; please apply your changes to the latest version and try again"

// Write describes one write request.
type Write struct {
	Namespace, Name string
	DryRun          bool
	// Check is validating admission, called on the final object; old is nil
	// on create. On delete obj is nil and Check is the whole of admission.
	// May be nil. Neither object may be changed.
	Check func(ctx context.Context, obj, old api.Object) error
	// Warn is handed texts for the client. May be nil.
	Warn func(text string)
}

func (w Write) check(ctx context.Context, obj, old api.Object) error {
	if w.Check == nil {
		return nil
	}
	return w.Check(ctx, obj, old)
}

const (
	generateAttempts = 8   // names tried for one generateName
	updateAttempts   = 100 // lost races before an update gives up
)

// Create stores a new object, which it changes and keeps. With a
// generateName and no name it makes one.
func (r *Registry) Create(ctx context.Context, w Write, obj api.Object) (Item, error) {
	generate := obj.GetName() == "" && obj.GetGenerateName() != ""
	for attempt := 1; ; attempt++ {
		candidate := obj
		if generate {
			if attempt < generateAttempts {
				candidate = obj.DeepCopyObject().(api.Object)
			}
			candidate.SetName(generateName(obj.GetGenerateName()))
		}
		it, err := r.createOnce(ctx, w, candidate)
		if !generate || !apierrors.IsAlreadyExists(err) {
			return it, err
		}
		if attempt == generateAttempts {
			return Item{}, apierrors.NewGenerateNameConflict(r.gr, candidate.GetName(), 1)
		}
	}
}

// generateName appends five random characters, as upstream does.
func generateName(base string) string {
	const suffix, longest = 5, 63
	if len(base) > longest-suffix {
		base = base[:longest-suffix]
	}
	return base + utilrand.String(suffix)
}

func (r *Registry) createOnce(ctx context.Context, w Write, obj api.Object) (Item, error) {
	finish, err := r.beforeCreate(ctx, w, obj)
	if err != nil {
		return Item{}, err
	}
	done := false
	defer func() { finish(done) }()
	if err := w.check(ctx, obj, nil); err != nil {
		return Item{}, err
	}
	key, err := r.key(w.Namespace, obj.GetName())
	if err != nil {
		return Item{}, err
	}
	value, err := r.encode(obj)
	if err != nil {
		return Item{}, err
	}
	if w.DryRun {
		snap, err := r.snapshot(ctx, 0)
		if err == nil && snap.Get(key) != nil {
			err = apierrors.NewAlreadyExists(r.gr, obj.GetName())
		}
		return Item{obj: obj}, err
	}
	it, ok, err := r.put(ctx, key, value, 0)
	if err != nil {
		return Item{}, err
	}
	if !ok {
		return Item{}, apierrors.NewAlreadyExists(r.gr, obj.GetName())
	}
	done = true
	obj.SetResourceVersion(strconv.FormatInt(it.ResourceVersion, 10))
	it.obj = obj
	return it, nil
}

// beforeCreate makes obj what would be stored: system metadata, strategy,
// allocation, validation. finish must be called unless it errs.
func (r *Registry) beforeCreate(ctx context.Context, w Write, obj api.Object) (finish func(bool), err error) {
	finish = func(bool) {}
	wipeSystemMeta(obj)
	obj.SetCreationTimestamp(metav1.NewTime(r.Clock.Now().Truncate(1e9)))
	obj.SetUID(uuid.NewUUID())
	if err := r.matchNamespace(w.Namespace, obj); err != nil {
		return nil, err
	}
	s := &r.Resource.Strategy
	if s.PrepareForCreate != nil {
		s.PrepareForCreate(ctx, obj)
	}
	if r.Begin != nil {
		f, err := r.Begin(ctx, obj, nil, w.DryRun)
		if err != nil {
			return nil, err
		}
		if f != nil {
			finish = f
		}
	}
	if errs := r.validateCreate(ctx, obj); len(errs) > 0 {
		finish(false)
		return nil, r.invalid(obj, errs)
	}
	r.warn(ctx, w, obj, nil)
	return finish, nil
}

func (r *Registry) validateCreate(ctx context.Context, obj api.Object) field.ErrorList {
	var errs field.ErrorList
	s := &r.Resource.Strategy
	meta := field.NewPath("metadata")
	errs = append(errs, validation.ValidateObjectMetaAccessor(check.Doubtful(obj), r.Resource.Namespaced, r.nameValid(), meta)...)
	errs = append(errs, r.finalizersNamed(obj)...)
	if r.Validate != nil {
		errs = append(errs, r.Validate(ctx, obj, nil)...)
	}
	if s.Validate != nil {
		errs = append(errs, s.Validate(ctx, obj)...)
	}
	return errs
}

// invalid is the refusal of an object; of what validation says twice, the
// kinds that upstream compiles in tell once.
func (r *Registry) invalid(obj api.Object, errs field.ErrorList) error {
	if g := r.Resource.Group; r.Resource.Codec == nil && g != "apiextensions.k8s.io" && g != "apiregistration.k8s.io" {
		said := map[string]bool{}
		errs = slices.DeleteFunc(errs, func(e *field.Error) bool {
			defer func() { said[e.Error()] = true }()
			return said[e.Error()]
		})
	}
	return apierrors.NewInvalid(r.groupKind(), obj.GetName(), errs)
}

// finalizersNamed wants finalizers with a domain, or those of Kubernetes. Some
// groups upstream never did.
func (r *Registry) finalizersNamed(obj api.Object) (errs field.ErrorList) {
	switch r.Resource.Group {
	case "apiextensions.k8s.io", "apiregistration.k8s.io", "admissionregistration.k8s.io", "coordination.k8s.io", "policy", "node.k8s.io":
		return nil
	}
	if r.Resource.Codec != nil {
		return nil
	}
	for i, f := range obj.GetFinalizers() {
		if f != "kubernetes" && f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents && !strings.Contains(f, "/") {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "finalizers").Index(i), f, "name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	return errs
}

func (r *Registry) nameValid() validation.ValidateNameFunc {
	if f := r.Resource.Strategy.NameValid; f != nil {
		return f
	}
	return validation.NameIsDNSSubdomain
}

// pathSegment is the weaker check an existing object's name must still pass.
func pathSegment(name string, prefix bool) []string {
	if prefix {
		return content.IsPathSegmentPrefix(name)
	}
	return content.IsPathSegmentName(name)
}

func (r *Registry) groupKind() schema.GroupKind {
	return schema.GroupKind{Group: r.Resource.Group, Kind: r.Resource.Kind}
}

func (r *Registry) warn(ctx context.Context, w Write, obj, old api.Object) {
	if w.Warn == nil || r.Resource.Strategy.Warnings == nil {
		return
	}
	for _, text := range r.Resource.Strategy.Warnings(ctx, obj, old) {
		w.Warn(text)
	}
}

// wipeSystemMeta clears what only the server may set on a new object.
func wipeSystemMeta(obj api.Object) {
	obj.SetUID("")
	obj.SetSelfLink("")
	obj.SetResourceVersion("")
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
}

// matchNamespace sets the object's namespace to the request's, or refuses a different one.
func (r *Registry) matchNamespace(namespace string, obj api.Object) error {
	if !r.Resource.Namespaced {
		if obj.GetNamespace() != "" {
			obj.SetNamespace("") // upstream forgives a namespace on a cluster-wide object
		}
		return nil
	}
	switch obj.GetNamespace() {
	case namespace:
	case "":
		obj.SetNamespace(namespace)
	default:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// put writes value, in the clear, if key is still at revision mod (0: absent).
func (r *Registry) put(ctx context.Context, key string, value []byte, mod int64) (Item, bool, error) {
	lease, err := r.lease.get(ctx, r.Store, r.Clock.Now().Unix())
	if err != nil {
		return Item{}, false, err
	}
	enc := r.encryption.Now()
	sealed, err := enc.Seal(key, value)
	if err != nil {
		return Item{}, false, apierrors.NewInternalError(err)
	}
	txn := store.Txn{
		If:   []store.Compare{{Key: key, Target: store.TargetMod, Int: mod}},
		Then: []store.Op{{Kind: store.OpPut, Key: key, Value: sealed, Lease: lease}},
	}
	op := metrics.Create
	if mod != 0 {
		op = metrics.Update
	}
	began := time.Now()
	res, err := r.Store.Txn(ctx, txn)
	r.Counted.Asked(op, began, err)
	if errors.Is(err, store.ErrLeaseNotFound) {
		r.lease.mu.Lock()
		r.lease.id = 0 // expired or lost; the caller's next attempt takes a new one
		r.lease.mu.Unlock()
	}
	if err != nil {
		return Item{}, false, storeError(err)
	}
	if !res.Succeeded {
		return Item{}, false, nil
	}
	if kv := res.Results[0].KV; kv != nil {
		return Item{KV: stored(kv, value, enc), ResourceVersion: kv.ModRevision, Fresh: true}, true, nil
	}
	return Item{ResourceVersion: res.Revision}, true, nil
}

// Update is a read-modify-write of one object.
type Update struct {
	Write
	// Change returns the new object, given the stored one (nil when there is
	// none), which is the callee's to change unless Patched. It is called again after a lost race.
	Change func(ctx context.Context, old api.Object) (api.Object, error)
	// View, when set, is the subresource whose rules apply.
	View *api.View
	// AllowCreate lets the update create a missing object.
	AllowCreate bool
	// Patched says that Change always starts from old, which it only reads, so
	// that a uid it returns is no precondition but a change of what may not change.
	Patched bool
	// Unconditional says that Change always starts from old, so that the
	// resourceVersion it returns needs no check (internal writers).
	Unconditional bool
}

// Update changes an object. It reports whether it created it.
func (r *Registry) Update(ctx context.Context, u Update) (it Item, created bool, err error) {
	key, err := r.key(u.Namespace, u.Name)
	if err != nil {
		return Item{}, false, err
	}
	for range updateAttempts {
		snap, err := r.snapshot(ctx, 0)
		if err != nil {
			return Item{}, false, err
		}
		kv := snap.Get(key)
		if kv == nil {
			if !u.AllowCreate && !r.Resource.Strategy.AllowCreateOnUpdate {
				return Item{}, false, apierrors.NewNotFound(r.gr, u.Name)
			}
			it, err := r.createByUpdate(ctx, u)
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			return it, err == nil, err
		}
		it, ok, err := r.updateOnce(ctx, u, key, kv)
		if ok || err != nil {
			return it, false, err
		}
		if err := ctx.Err(); err != nil {
			return Item{}, false, storeError(err)
		}
	}
	return Item{}, false, apierrors.NewConflict(r.gr, u.Name, errors.New(OptimisticLockMessage))
}

func (r *Registry) createByUpdate(ctx context.Context, u Update) (Item, error) {
	obj, err := u.Change(ctx, nil)
	if err != nil {
		return Item{}, err
	}
	if obj.GetUID() != "" {
		return Item{}, apierrors.NewConflict(r.gr, u.Name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", obj.GetUID()))
	}
	if obj.GetResourceVersion() != "" && obj.GetResourceVersion() != "0" {
		return Item{}, apierrors.NewNotFound(r.gr, u.Name)
	}
	return r.createOnce(ctx, u.Write, obj)
}

func (r *Registry) updateOnce(ctx context.Context, u Update, key string, kv *store.KV) (Item, bool, error) {
	raw := kv
	kv, err := r.Open(kv)
	if err != nil {
		return Item{}, false, err
	}
	old, err := r.decode(kv)
	if err != nil {
		return Item{}, false, err
	}
	given := old
	if !u.Patched {
		given = old.DeepCopyObject().(api.Object)
	}
	obj, err := u.Change(ctx, given)
	if err != nil {
		return Item{}, false, err
	}
	if err := r.checkVersion(u, key, obj, old); err != nil {
		return Item{}, false, err
	}
	finish, err := r.beforeUpdate(ctx, u, obj, old)
	if err != nil {
		return Item{}, false, err
	}
	done := false
	defer func() { finish(done) }()
	if err := u.check(ctx, obj, old); err != nil {
		return Item{}, false, err
	}
	if r.deletedByUpdate(obj) {
		it, ok, err := r.remove(ctx, kv, obj, u.DryRun)
		done = ok
		return it, ok, err
	}
	value, err := r.encode(obj)
	if err != nil {
		return Item{}, false, err
	}
	if bytes.Equal(value, kv.Value) && r.lease.ttl == 0 && !r.stale(raw) {
		return Item{KV: kv, ResourceVersion: kv.ModRevision, obj: obj}, true, nil // changes nothing: no new version
	}
	if u.DryRun {
		return Item{obj: obj}, true, nil
	}
	it, ok, err := r.put(ctx, key, value, kv.ModRevision)
	if ok {
		done = true
		obj.SetResourceVersion(strconv.FormatInt(it.ResourceVersion, 10))
		it.obj = obj
	}
	return it, ok, err
}

// checkVersion is optimistic concurrency between the client's copy and the
// stored object.
func (r *Registry) checkVersion(u Update, key string, obj, old api.Object) error {
	if obj.GetUID() != "" && obj.GetUID() != old.GetUID() && !u.Patched {
		return apierrors.NewConflict(r.gr, u.Name, fmt.Errorf(
			"StorageError: invalid object, Code: 4, Key: %s, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: %v, UID in object meta: %v",
			key, obj.GetUID(), old.GetUID()))
	}
	rv, err := ParseResourceVersion(obj.GetResourceVersion())
	switch {
	case err != nil:
		return apierrors.NewInvalid(r.groupKind(), u.Name, field.ErrorList{field.Invalid(field.NewPath("metadata", "resourceVersion"), obj.GetResourceVersion(), "must be one the server has given")})
	case rv == 0 && (u.Unconditional || !r.Resource.Strategy.DenyUnconditionalUpdate):
	case rv == 0:
		return apierrors.NewInvalid(schema.GroupKind{Group: r.gr.Group, Kind: r.gr.Resource}, u.Name,
			field.ErrorList{field.Invalid(field.NewPath("metadata").Child("resourceVersion"), rv, "must be specified for an update")})
	case obj.GetResourceVersion() != old.GetResourceVersion():
		return apierrors.NewConflict(r.gr, u.Name, errors.New(OptimisticLockMessage))
	}
	obj.SetResourceVersion(old.GetResourceVersion())
	return nil
}

// beforeUpdate makes obj what would be stored.
func (r *Registry) beforeUpdate(ctx context.Context, u Update, obj, old api.Object) (finish func(bool), err error) {
	finish = func(bool) {}
	if err := r.matchNamespace(u.Namespace, obj); err != nil {
		return nil, err
	}
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	obj.SetGeneration(old.GetGeneration())
	r.prepareUpdate(ctx, u, obj, old)
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	if old.GetDeletionTimestamp() != nil {
		obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	}
	if old.GetDeletionGracePeriodSeconds() != nil && obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	}
	if r.Begin != nil && u.View == nil {
		f, err := r.Begin(ctx, obj, old, u.DryRun)
		if err != nil {
			return nil, err
		}
		if f != nil {
			finish = f
		}
	}
	if errs := r.validateUpdate(ctx, u, obj, old); len(errs) > 0 {
		finish(false)
		return nil, r.invalid(obj, errs)
	}
	if u.View == nil {
		r.warn(ctx, u.Write, obj, old)
	}
	keepManagedFieldsTime(obj, old)
	return finish, nil
}

func (r *Registry) prepareUpdate(ctx context.Context, u Update, obj, old api.Object) {
	prepare := r.Resource.Strategy.PrepareForUpdate
	if u.View != nil {
		prepare = u.View.PrepareForUpdate
	}
	if prepare != nil {
		prepare(ctx, obj, old)
	}
}

func (r *Registry) validateUpdate(ctx context.Context, u Update, obj, old api.Object) field.ErrorList {
	meta := field.NewPath("metadata")
	doubtful := check.Doubtful(obj)
	errs := validation.ValidateObjectMetaAccessor(doubtful, r.Resource.Namespaced, pathSegment, meta)
	errs = append(errs, validation.ValidateObjectMetaAccessorUpdate(doubtful, old, meta)...)
	errs = append(errs, r.finalizersNamed(obj)...)
	if r.Validate != nil {
		errs = append(errs, r.Validate(ctx, obj, old)...)
	}
	validate := r.Resource.Strategy.ValidateUpdate
	if u.View != nil {
		validate = u.View.ValidateUpdate
	}
	if validate != nil {
		errs = append(errs, validate(ctx, obj, old)...)
	}
	return errs
}

// keepManagedFieldsTime restores old's managedFields where the only
// difference between the objects is the times in them, so that an update
// that changes nothing is recognised as such.
func keepManagedFieldsTime(obj, old api.Object) {
	a, b := obj.GetManagedFields(), old.GetManagedFields()
	if len(a) != len(b) || len(a) == 0 {
		return
	}
	timesDiffer := false
	for i := range a {
		x, y := a[i], b[i]
		if !x.Time.Equal(y.Time) {
			timesDiffer = true
		}
		x.Time, y.Time = nil, nil
		if !apiequality.Semantic.DeepEqual(x, y) {
			return
		}
	}
	if !timesDiffer {
		return
	}
	// Both must be compared with the same managedFields; obj keeps old's only if nothing else changed.
	obj.SetManagedFields(b)
	rv := obj.GetResourceVersion()
	obj.SetResourceVersion(old.GetResourceVersion())
	same := apiequality.Semantic.DeepEqual(obj, old)
	obj.SetResourceVersion(rv)
	if !same {
		obj.SetManagedFields(a)
	}
}

// deletedByUpdate: an update that takes the last finalizer off an object
// being deleted, with no grace period left, removes it.
func (r *Registry) deletedByUpdate(obj api.Object) bool {
	if obj.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 {
		return false
	}
	if g := obj.GetDeletionGracePeriodSeconds(); g != nil && *g != 0 {
		return false
	}
	return r.MayRemove == nil || r.MayRemove(obj)
}

// remove deletes the version kv. obj is the last state shown to the client.
func (r *Registry) remove(ctx context.Context, kv *store.KV, obj api.Object, dryRun bool) (Item, bool, error) {
	if dryRun {
		return Item{obj: obj}, true, nil
	}
	began := time.Now()
	res, err := r.Store.Txn(ctx, store.Txn{
		If:   []store.Compare{{Key: kv.Key, Target: store.TargetMod, Int: kv.ModRevision}},
		Then: []store.Op{{Kind: store.OpDelete, Key: kv.Key}},
	})
	r.Counted.Asked(metrics.Delete, began, err)
	if err != nil {
		return Item{}, false, storeError(err)
	}
	if !res.Succeeded {
		return Item{}, false, nil
	}
	if r.Deleted != nil {
		r.Deleted(obj)
	}
	obj.SetResourceVersion(strconv.FormatInt(res.Revision, 10))
	return Item{ResourceVersion: res.Revision, obj: obj}, true, nil
}

// hasFinalizer reports whether obj has the finalizer name.
func hasFinalizer(obj api.Object, name string) bool {
	return slices.Contains(obj.GetFinalizers(), name)
}
