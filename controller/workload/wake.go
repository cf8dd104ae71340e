package workload

import (
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/controller/engine"
)

// object is a pointer to an API type; a change has a nil one where there was or is none.
type object[T any] interface {
	*T
	metav1.Object
}

// WakeOwners asks for the owners of the given kind an object had before and has after a change. When
// the object is gone, e, which may be nil, need not wait for it.
func WakeOwners[T any, P object[T]](q engine.Queue, kind string, old, new P, e *Expectations) {
	for _, o := range []P{old, new} {
		if o == nil {
			continue
		}
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil && ref.Kind == kind {
			key := o.GetNamespace() + "/" + ref.Name
			if new == nil && e != nil {
				e.Gone(key, o.GetUID())
			}
			q.Add(key)
		}
	}
}

// Orphaned reports whether a change left an object without an owner, or an orphan with other labels.
func Orphaned[T any, P object[T]](old, new P) bool {
	return new != nil && metav1.GetControllerOfNoCopy(new) == nil &&
		(old == nil || metav1.GetControllerOfNoCopy(old) != nil || !maps.Equal(old.GetLabels(), new.GetLabels()))
}

// WakeSelecting asks for the owners whose selector matches an orphan, and so may adopt it.
func WakeSelecting[O metav1.Object](q engine.Queue, orphan metav1.Object, owners []O, selector func(O) *metav1.LabelSelector) {
	for _, o := range owners {
		sel, err := metav1.LabelSelectorAsSelector(selector(o))
		if err == nil && !sel.Empty() && sel.Matches(labels.Set(orphan.GetLabels())) {
			q.Add(o.GetNamespace() + "/" + o.GetName())
		}
	}
}
