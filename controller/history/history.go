// Package history keeps the revisions of templates that DaemonSets and StatefulSets roll out, as
// ControllerRevision objects whose data is the strategic-merge patch that restores a template.
package history

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/workload"
)

// HashLabel tells which revision a Pod or ControllerRevision belongs to.
const HashLabel = appsv1.ControllerRevisionHashLabelKey

// Patch returns the revision data for a template.
func Patch(t *corev1.PodTemplateSpec) ([]byte, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	m["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": m}})
}

// Template restores the template out of a revision's data.
func Template(rev *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var m struct {
		Spec struct{ Template corev1.PodTemplateSpec }
	}
	if err := json.Unmarshal(rev.Data.Raw, &m); err != nil {
		return nil, fmt.Errorf("controller revision %s/%s: %w", rev.Namespace, rev.Name, err)
	}
	return &m.Spec.Template, nil
}

// Hash returns upstream's hash of revision data, collisions mixed in if not nil.
func Hash(data []byte, collisions *int32) string {
	h := fnv.New32()
	_, _ = h.Write(data) // a hash never fails
	if collisions != nil {
		_, _ = h.Write([]byte(strconv.FormatInt(int64(*collisions), 10)))
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// New makes a revision of owner's template, without a name for hash yet.
func New(owner workload.Owner, gvk schema.GroupVersionKind, t *corev1.PodTemplateSpec, number int64) (*appsv1.ControllerRevision, error) {
	data, err := Patch(t)
	if err != nil {
		return nil, err
	}
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{Namespace: owner.GetNamespace(), Labels: maps.Clone(t.Labels),
			Annotations:     maps.Clone(owner.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, gvk)}},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}, nil
}

// Named names rev after its owner and hash.
func Named(rev *appsv1.ControllerRevision, owner, hash string) *appsv1.ControllerRevision {
	rev = rev.DeepCopy()
	rev.Name = owner[:min(len(owner), 223)] + "-" + hash
	if rev.Labels == nil {
		rev.Labels = map[string]string{}
	}
	rev.Labels[HashLabel] = hash
	return rev
}

// Same reports whether two revisions restore the same template.
func Same(a, b *appsv1.ControllerRevision) bool { return bytes.Equal(a.Data.Raw, b.Data.Raw) }

// Sort puts revisions in order, oldest first.
func Sort(revs []*appsv1.ControllerRevision) {
	slices.SortStableFunc(revs, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
}

// Keeper reads and writes the revisions of one kind of owner.
type Keeper struct {
	Client kubernetes.Interface
	Cache  cache.SharedIndexInformer // of ControllerRevisions, with workload.IndexByOwner
	GVK    schema.GroupVersionKind
}

// List returns the revisions of cl.Owner, sorted, adopting matching orphans.
func (k Keeper) List(ctx context.Context, cl workload.Claimant) ([]*appsv1.ControllerRevision, error) {
	all, err := workload.Owned[appsv1.ControllerRevision](k.Cache, cl.Owner, true)
	if err != nil {
		return nil, err
	}
	var own []*appsv1.ControllerRevision
	for _, r := range all {
		switch workload.Claim(cl.Owner, cl.Selector, r) {
		case workload.Own, workload.Release: // a revision is history: it stays ours when labels change
			own = append(own, r)
		case workload.Adopt:
			if !named(r, cl.Owner.GetName()) {
				continue
			}
			if err := workload.Recheck(ctx, cl.Owner, cl.Fresh); err != nil {
				return nil, fmt.Errorf("adopt controller revision %s: %w", r.Name, err)
			}
			got, err := k.Client.AppsV1().ControllerRevisions(r.Namespace).Patch(ctx, r.Name, types.StrategicMergePatchType,
				workload.AdoptPatch(cl.Owner, k.GVK, r.UID), metav1.PatchOptions{})
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("adopt controller revision %s: %w", r.Name, err)
			}
			own = append(own, got)
		}
	}
	Sort(own)
	return own, nil
}

// named reports whether an orphan bears a name its owner would have given.
func named(r *appsv1.ControllerRevision, owner string) bool {
	return r.Name == owner[:min(len(owner), 223)]+"-"+r.Labels[HashLabel]
}

// Create stores rev under the first free name from collisions on; a revision that is there already
// with the same data is as good. It returns the stored one and the collision count used.
func (k Keeper) Create(ctx context.Context, rev *appsv1.ControllerRevision, owner string, hash func(collisions int32) string, collisions int32) (*appsv1.ControllerRevision, int32, error) {
	api := k.Client.AppsV1().ControllerRevisions(rev.Namespace)
	for range 100 {
		r := Named(rev, owner, hash(collisions))
		made, err := api.Create(ctx, r, metav1.CreateOptions{})
		if err == nil {
			return made, collisions, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, collisions, err
		}
		there, err := api.Get(ctx, r.Name, metav1.GetOptions{})
		if err != nil {
			return nil, collisions, err
		}
		if Same(there, r) {
			return there, collisions, nil
		}
		collisions++
	}
	return nil, collisions, fmt.Errorf("no free name for a revision of %s after 100 hash collisions", owner)
}

// Renumber gives rev a number.
func (k Keeper) Renumber(ctx context.Context, rev *appsv1.ControllerRevision, number int64) (*appsv1.ControllerRevision, error) {
	rev = rev.DeepCopy()
	rev.Revision = number
	return k.Client.AppsV1().ControllerRevisions(rev.Namespace).Update(ctx, rev, metav1.UpdateOptions{})
}

// Trim deletes the oldest revisions beyond limit that live does not report in use.
func (k Keeper) Trim(ctx context.Context, revs []*appsv1.ControllerRevision, limit int32, live func(*appsv1.ControllerRevision) bool) error {
	var dead []*appsv1.ControllerRevision
	for _, r := range revs {
		if !live(r) {
			dead = append(dead, r)
		}
	}
	for _, r := range dead[:max(0, len(dead)-int(limit))] {
		err := k.Client.AppsV1().ControllerRevisions(r.Namespace).Delete(ctx, r.Name,
			metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(r.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete controller revision %s/%s: %w", r.Namespace, r.Name, err)
		}
	}
	return nil
}

// Selector is a small helper for owners: their selector, or an error that names them.
func Selector(owner metav1.Object, s *metav1.LabelSelector) (labels.Selector, error) {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil, fmt.Errorf("%s/%s: bad selector: %w", owner.GetNamespace(), owner.GetName(), err)
	}
	return sel, nil
}
