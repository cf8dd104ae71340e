package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/store"
)

// Delete deletes an object or starts its deletion. deleted tells whether it
// is gone; the item is its last state.
func (r *Registry) Delete(ctx context.Context, w Write, opts *metav1.DeleteOptions) (it Item, deleted bool, err error) {
	key, err := r.key(w.Namespace, w.Name)
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
			return Item{}, false, apierrors.NewNotFound(r.gr, w.Name)
		}
		it, deleted, ok, err := r.deleteOnce(ctx, w, kv, opts)
		if ok || err != nil {
			return it, deleted, err
		}
	}
	return Item{}, false, apierrors.NewConflict(r.gr, w.Name, errors.New(OptimisticLockMessage))
}

func (r *Registry) deleteOnce(ctx context.Context, w Write, kv *store.KV, opts *metav1.DeleteOptions) (it Item, deleted, ok bool, err error) {
	kv, err = r.Open(kv)
	if err != nil {
		return Item{}, false, false, err
	}
	old, err := r.decode(kv)
	if err != nil {
		return Item{}, false, false, err
	}
	if err := r.preconditions(opts.Preconditions, old); err != nil {
		return Item{}, false, false, err
	}
	if err := w.check(ctx, nil, old); err != nil {
		return Item{}, false, false, err
	}
	obj := old.DeepCopyObject().(api.Object)
	plan := r.planDelete(obj, opts)
	switch plan {
	case deletePending:
		return Item{KV: kv, ResourceVersion: kv.ModRevision, obj: old}, false, true, nil
	case deleteNow:
		it, ok, err := r.remove(ctx, kv, obj, w.DryRun)
		return it, true, ok, err
	}
	value, err := r.encode(obj)
	if err != nil {
		return Item{}, false, false, err
	}
	if w.DryRun {
		return Item{ResourceVersion: kv.ModRevision, obj: obj}, false, true, nil
	}
	if string(value) == string(kv.Value) {
		return Item{KV: kv, ResourceVersion: kv.ModRevision, obj: obj}, false, true, nil
	}
	it, ok, err = r.put(ctx, kv.Key, value, kv.ModRevision)
	if ok {
		it.obj = nil // decoded from what was stored
	}
	return it, false, ok, err
}

func (r *Registry) preconditions(p *metav1.Preconditions, obj api.Object) error {
	if p == nil {
		return nil
	}
	gr := schema.GroupResource{Group: r.gr.Group, Resource: r.Resource.Kind}
	if p.UID != nil && *p.UID != obj.GetUID() {
		return apierrors.NewConflict(gr, obj.GetName(), fmt.Errorf(
			"the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, obj.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != obj.GetResourceVersion() {
		return apierrors.NewConflict(gr, obj.GetName(), fmt.Errorf(
			"the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, obj.GetResourceVersion()))
	}
	return nil
}

type deletePlan uint8

const (
	deleteNow     deletePlan = iota // remove the object
	deleteMark                      // store the object, changed
	deletePending                   // nothing to do: deletion is under way
)

// planDelete decides what a DELETE does to obj and makes the change to it:
// deletion timestamp, grace period, garbage collection finalizers.
func (r *Registry) planDelete(obj api.Object, opts *metav1.DeleteOptions) deletePlan {
	graceful, pending := r.beforeDelete(obj, opts)
	if pending {
		return deletePending
	}
	r.setCollectionFinalizers(obj, opts)
	held := len(obj.GetFinalizers()) > 0 || r.MayRemove != nil && !r.MayRemove(obj)
	switch {
	case !held && (!graceful || *obj.GetDeletionGracePeriodSeconds() == 0):
		return deleteNow
	case graceful:
		return deleteMark
	}
	now := r.Clock.Now().Truncate(time.Second)
	if obj.GetDeletionTimestamp() == nil && obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	if t := obj.GetDeletionTimestamp(); t == nil || t.After(now) {
		stamp := metav1.NewTime(now)
		obj.SetDeletionTimestamp(&stamp)
	}
	zero := int64(0)
	obj.SetDeletionGracePeriodSeconds(&zero)
	if r.Marked != nil {
		r.Marked(obj)
	}
	return deleteMark
}

// beforeDelete applies a grace period. graceful: obj now carries a deletion
// timestamp and period; pending: an earlier deletion already does, and this
// one does not shorten it.
func (r *Registry) beforeDelete(obj api.Object, opts *metav1.DeleteOptions) (graceful, pending bool) {
	asked := opts.GracePeriodSeconds
	if asked != nil && *asked < 0 {
		one := int64(1)
		asked = &one
	}
	if r.Resource.Strategy.GracePeriod == nil {
		return false, false
	}
	now := metav1.NewTime(r.Clock.Now().Truncate(time.Second))
	if obj.GetDeletionTimestamp() == nil {
		o := *opts
		o.GracePeriodSeconds = asked
		period := r.Resource.Strategy.GracePeriod(obj, &o)
		stamp := metav1.NewTime(now.Add(time.Duration(period) * time.Second))
		obj.SetDeletionTimestamp(&stamp)
		obj.SetDeletionGracePeriodSeconds(&period)
		if obj.GetGeneration() > 0 {
			obj.SetGeneration(obj.GetGeneration() + 1)
		}
		return true, false
	}
	current := obj.GetDeletionGracePeriodSeconds()
	if current == nil || *current == 0 {
		return false, false
	}
	if asked == nil || *asked >= *current {
		return false, true
	}
	period := *asked
	stamp := metav1.NewTime(obj.GetDeletionTimestamp().Add(time.Duration(period-*current) * time.Second))
	if stamp.Before(&now) {
		stamp = now
		if period != 0 {
			period = 1 // a graceful deletion stays one: the kubelet, not we, removes the pod
		}
	}
	obj.SetDeletionTimestamp(&stamp)
	obj.SetDeletionGracePeriodSeconds(&period)
	return true, false
}

// setCollectionFinalizers sets or clears the two finalizers the garbage
// collector works by, as the options, the object or the strategy say.
func (r *Registry) setCollectionFinalizers(obj api.Object, opts *metav1.DeleteOptions) {
	orphan, foreground := false, false
	switch {
	case opts.OrphanDependents != nil: //nolint:staticcheck // still part of the API
		orphan = *opts.OrphanDependents //nolint:staticcheck // still part of the API
	case opts.PropagationPolicy != nil:
		orphan = *opts.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *opts.PropagationPolicy == metav1.DeletePropagationForeground
	case hasFinalizer(obj, metav1.FinalizerOrphanDependents):
		orphan = true
	case hasFinalizer(obj, metav1.FinalizerDeleteDependents):
		foreground = true
	default:
		orphan = r.Resource.Strategy.OrphanByDefault
	}
	had := obj.GetFinalizers()
	want := slices.DeleteFunc(slices.Clone(had), func(f string) bool {
		return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
	})
	// What ends by itself (events) and definitions have no dependents to care for.
	if r.Resource.Strategy.TTLSeconds > 0 || r.Resource.Group == "apiextensions.k8s.io" {
		orphan, foreground = false, false
	}
	if orphan {
		want = append(want, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		want = append(want, metav1.FinalizerDeleteDependents)
	}
	if len(want) == len(had) && !slices.ContainsFunc(want, func(f string) bool { return !slices.Contains(had, f) }) {
		return
	}
	obj.SetFinalizers(want)
}
