package api

import (
	"bytes"
	"context"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The functions below lift functions of one concrete type to the untyped
// signatures of Resource, so that the groups are written without casts. Handing
// a lifted function an object of another type is a bug and panics.

// Versioned is one served version whose type is the stored one: T the object, L its list.
func Versioned[T, L any, PT interface {
	*T
	Object
}, PL interface {
	*L
	runtime.Object
}](name string, def func(PT)) Version {
	v := Version{
		Name:    name,
		New:     func() Object { return PT(new(T)) },
		NewList: func() runtime.Object { return PL(new(L)) },
	}
	if def != nil {
		v.Default = func(o Object) { def(o.(PT)) }
	}
	return v
}

// Review is one served version of a virtual resource, which has no list.
func Review[T any, PT interface {
	*T
	Object
}](name string, def func(PT)) Version {
	v := Version{Name: name, New: func() Object { return PT(new(T)) }}
	if def != nil {
		v.Default = func(o Object) { def(o.(PT)) }
	}
	return v
}

// On lifts a create preparation.
func On[P Object](f func(P)) func(context.Context, Object) {
	return func(_ context.Context, o Object) { f(o.(P)) }
}

// OnUpdate lifts an update preparation (obj, old).
func OnUpdate[P Object](f func(obj, old P)) func(context.Context, Object, Object) {
	return func(_ context.Context, o, old Object) { f(o.(P), old.(P)) }
}

// Check lifts a create validation.
func Check[P Object](f func(P) field.ErrorList) func(context.Context, Object) field.ErrorList {
	return func(_ context.Context, o Object) field.ErrorList { return f(o.(P)) }
}

// CheckUpdate lifts an update validation (obj, old).
func CheckUpdate[P Object](f func(obj, old P) field.ErrorList) func(context.Context, Object, Object) field.ErrorList {
	return func(_ context.Context, o, old Object) field.ErrorList { return f(o.(P), old.(P)) }
}

// Warn lifts a warnings function; old is the zero value on create.
func Warn[P Object](f func(obj, old P) []string) func(context.Context, Object, Object) []string {
	return func(_ context.Context, o, old Object) []string {
		var before P
		if old != nil {
			before = old.(P)
		}
		return f(o.(P), before)
	}
}

// Select lifts a selectable fields function.
func Select[P Object](f func(P) fields.Set) func(Object) fields.Set {
	return func(o Object) fields.Set { return f(o.(P)) }
}

// Row lifts a cells function.
func Row[P Object](f func(P, metav1.Time) []any) func(Object, metav1.Time) []any {
	return func(o Object, now metav1.Time) []any { return f(o.(P), now) }
}

// StatusView is the usual status subresource: keep copies back everything that
// is not status (spec, and what upstream's status strategy resets besides).
func StatusView[P Object](keep func(obj, old P), check func(obj, old P) field.ErrorList) Subresource {
	return Subresource{Name: "status", View: NewView(keep, check)}
}

// StatusOnly is a StatusView that keeps the metadata, too.
func StatusOnly[P Object](keep func(obj, old P), check func(obj, old P) field.ErrorList) Subresource {
	s := StatusView(func(obj, old P) {
		keep(obj, old)
		KeepMetadata(obj, old)
	}, check)
	s.View.Reset = []string{"metadata"}
	return s
}

// NewView lifts the two rules of a view; check may be nil.
func NewView[P Object](keep func(obj, old P), check func(obj, old P) field.ErrorList) *View {
	v := &View{PrepareForUpdate: OnUpdate(keep)}
	if check != nil {
		v.ValidateUpdate = CheckUpdate(check)
	}
	return v
}

// BumpGeneration sets obj's generation: one more than old's where changed, otherwise old's.
func BumpGeneration(obj, old Object, changed bool) {
	g := old.GetGeneration()
	if changed {
		g++
	}
	obj.SetGeneration(g)
}

// Changed tells whether two values differ semantically: nil and empty are
// alike, quantities and times compare by value.
func Changed[T any](a, b T) bool {
	// Mostly nothing has, which the bytes show sooner.
	if m, ok := any(&a).(message); ok && sameBytes(m, any(&b).(message)) {
		return false
	}
	return !apiequality.Semantic.DeepEqual(a, b)
}

// message is what the types with a protobuf form have.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

func sameBytes(a, b message) bool {
	n := a.Size()
	if n != b.Size() {
		return false
	}
	buf := make([]byte, 2*n)
	_, errA := a.MarshalToSizedBuffer(buf[:n])
	_, errB := b.MarshalToSizedBuffer(buf[n:])
	return errA == nil && errB == nil && bytes.Equal(buf[:n], buf[n:])
}

// KeepMetadata copies old's client-owned metadata over obj's, as status
// updates do that may not touch metadata.
func KeepMetadata(obj, old Object) {
	obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetGeneration(old.GetGeneration())
	obj.SetSelfLink(old.GetSelfLink())
	obj.SetLabels(old.GetLabels())
	obj.SetAnnotations(old.GetAnnotations())
	obj.SetFinalizers(old.GetFinalizers())
	obj.SetOwnerReferences(old.GetOwnerReferences())
}

// SetIfNil points *p at v unless it points at something: a default.
func SetIfNil[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// SetIfEmpty sets *p to v unless it has a value: a default.
func SetIfEmpty[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
