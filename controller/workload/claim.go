package workload

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// ClaimVerdict is what an owner does with one object its selector or reference touches.
type ClaimVerdict int

const (
	Ignore  ClaimVerdict = iota // somebody else's, or nobody's business
	Own                         // already ours and matching
	Adopt                       // matching orphan: put our reference on it
	Release                     // ours but no longer matching: take our reference off
)

// Claim decides about obj for owner. It follows upstream's controller-reference rules: an owner
// being deleted neither adopts nor releases, and an object being deleted is never adopted.
func Claim(owner metav1.Object, sel labels.Selector, obj metav1.Object) ClaimVerdict {
	matches := sel.Matches(labels.Set(obj.GetLabels()))
	ref := metav1.GetControllerOfNoCopy(obj)
	switch {
	case ref != nil && ref.UID != owner.GetUID():
		return Ignore
	case ref != nil && matches:
		return Own
	case ref != nil && owner.GetDeletionTimestamp() != nil:
		return Ignore
	case ref != nil:
		return Release
	case owner.GetDeletionTimestamp() != nil || !matches || obj.GetDeletionTimestamp() != nil:
		return Ignore
	case obj.GetNamespace() != owner.GetNamespace():
		return Ignore
	}
	return Adopt
}

// AdoptPatch returns the strategic-merge patch that makes owner the controller of the object with
// this UID; the UID in it makes the server refuse a namesake.
func AdoptPatch(owner metav1.Object, gvk schema.GroupVersionKind, uid types.UID) []byte {
	ref := metav1.NewControllerRef(owner, gvk)
	return marshal(map[string]any{"metadata": map[string]any{
		"uid": uid, "ownerReferences": []metav1.OwnerReference{*ref}}})
}

// ReleasePatch returns the strategic-merge patch that takes owner's reference off.
func ReleasePatch(owner, uid types.UID) []byte {
	return marshal(map[string]any{"metadata": map[string]any{
		"uid": uid, "ownerReferences": []map[string]any{{"$patch": "delete", "uid": owner}}}})
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of strings always encode
	}
	return b
}

// Recheck guards adoption against a stale cache: fresh reads the owner from the API server, and
// the same object must still be there and not be deleted.
func Recheck(ctx context.Context, owner metav1.Object, fresh func(context.Context) (metav1.Object, error)) error {
	o, err := fresh(ctx)
	if err != nil {
		return err
	}
	if o.GetUID() != owner.GetUID() {
		return fmt.Errorf("original %s/%s is gone: got uid %s, wanted %s",
			owner.GetNamespace(), owner.GetName(), o.GetUID(), owner.GetUID())
	}
	if o.GetDeletionTimestamp() != nil {
		return fmt.Errorf("%s/%s has just been deleted at %s",
			o.GetNamespace(), o.GetName(), o.GetDeletionTimestamp())
	}
	return nil
}

const (
	byOwner = "skiff/controller"
	byNode  = "skiff/node"
)

// IndexByOwner makes inf answer Owned. Calling it again on the same informer changes nothing.
func IndexByOwner(inf cache.SharedIndexInformer) error {
	return addIndex(inf, byOwner, func(obj any) ([]string, error) {
		o, ok := obj.(metav1.Object)
		if !ok {
			return nil, nil
		}
		uid := types.UID("")
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
			uid = ref.UID
		}
		return []string{o.GetNamespace() + "/" + string(uid)}, nil
	})
}

// Owned lists the cached objects whose controller is owner; with orphans, also those of its
// namespace without any controller. They are shared and must not be changed.
func Owned[T any](inf cache.SharedIndexInformer, owner metav1.Object, orphans bool) ([]*T, error) {
	keys := []string{owner.GetNamespace() + "/" + string(owner.GetUID())}
	if orphans {
		keys = append(keys, owner.GetNamespace()+"/")
	}
	var out []*T
	for _, k := range keys {
		objs, err := inf.GetIndexer().ByIndex(byOwner, k)
		if err != nil {
			return nil, err
		}
		for _, o := range objs {
			if t, ok := o.(*T); ok {
				out = append(out, t)
			}
		}
	}
	return out, nil
}

func addIndex(inf cache.SharedIndexInformer, name string, fn cache.IndexFunc) error {
	if _, ok := inf.GetIndexer().GetIndexers()[name]; ok {
		return nil
	}
	return inf.AddIndexers(cache.Indexers{name: fn})
}

// Claimant is an owner looking for its objects.
type Claimant struct {
	Owner     Owner
	Kind      schema.GroupVersionKind
	Selector  labels.Selector
	Fresh     func(context.Context) (metav1.Object, error) // re-reads the owner from the API server
	Adoptable func(metav1.Object) bool                     // when set, only orphans it accepts are adopted
}
