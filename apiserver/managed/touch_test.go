package managed

import (
	"encoding/json"
	"maps"
	"math/rand"
	"slices"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

// edit changes about one in n of the texts and numbers in v, JSON, and with
// other also leaves out and doubles things.
func edit(r *rand.Rand, v any, n int, other bool) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			e := v[k]
			if other && r.Intn(8*n) == 0 {
				delete(v, k)
			} else {
				v[k] = edit(r, e, n, other)
			}
		}
	case []any:
		for i := range v {
			v[i] = edit(r, v[i], n, other)
		}
		if other && len(v) > 0 && r.Intn(4*n) == 0 {
			return append(v, v[r.Intn(len(v))])
		}
	case string:
		if _, err := time.Parse(time.RFC3339, v); err == nil && r.Intn(n) == 0 {
			return "2001-02-03T04:05:06Z"
		} else if r.Intn(n) == 0 {
			return v + "x"
		}
	case float64:
		if r.Intn(n) == 0 {
			return float64(int64(v) % 1000)
		}
	case bool:
		return v != (r.Intn(n) == 0)
	}
	return v
}

func edited(t *testing.T, typ *Type, o api.Object, r *rand.Rand, n int, other bool) api.Object {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	if raw, err = json.Marshal(edit(r, v, n, other)); err != nil {
		t.Fatal(err)
	}
	out := typ.Version.New()
	if json.Unmarshal(raw, out) != nil {
		return nil
	}
	out.GetObjectKind().SetGroupVersionKind(typ.Stored)
	return out
}

// TestTouchEqualsTheLibrary: what is recognised as changing no ownership leaves
// the same entries as the library, for random changes of objects of every type.
func TestTouchEqualsTheLibrary(t *testing.T) {
	f := New()
	past := metav1.NewTime(time.Unix(1_000_000_000, 0))
	done, tried := 0, 0
	for _, typ := range types() {
		for seed := int64(1); seed <= 24; seed++ {
			r := rand.New(rand.NewSource(seed))
			sub := []string{"", "status"}[seed%2]
			old := plain(t, typ, random(t, typ, seed, []float64{0.3, 0.8}[seed%2], true))
			for i, manager := range []string{"a", "b"}[:1+seed%2] {
				next := edited(t, typ, old, r, 4, true)
				if next == nil || i == 0 {
					next = old.DeepCopyObject().(api.Object)
				}
				next.SetManagedFields(old.GetManagedFields())
				var before api.Object
				if i > 0 {
					before = old.DeepCopyObject().(api.Object)
				}
				old = f.update(typ, []string{sub, ""}[i], before, next, manager)
				list := old.GetManagedFields()
				for i := range list {
					list[i].Time = &past
				}
			}
			now := edited(t, typ, old, r, 1+int(seed)*3, seed%5 == 0)
			if now == nil {
				continue
			}
			if now.SetManagedFields(old.GetManagedFields()); seed%3 == 0 {
				now.SetManagedFields(nil)
			}
			ours, theirs := now.DeepCopyObject().(api.Object), now.DeepCopyObject().(api.Object)
			tried++
			if !f.touch(typ, sub, old.DeepCopyObject().(api.Object), ours, "a") {
				continue
			}
			done++
			theirs = f.update(typ, sub, old.DeepCopyObject().(api.Object), theirs, "a")
			for i, e := range ours.GetManagedFields() {
				if their := theirs.GetManagedFields(); i >= len(their) || e.Time.Equal(&past) != their[i].Time.Equal(&past) {
					t.Errorf("%s, seed %d: the times are %v and %v", typ.Kind, seed, ours.GetManagedFields(), their)
				}
			}
			if got, want := entries(t, ours), entries(t, theirs); got != want {
				t.Fatalf("%s, seed %d:\n%s\nlibrary:\n%s\nold: %+v\nnew: %+v", typ.Kind, seed, got, want, old, now)
			}
		}
	}
	if done < tried/20 {
		t.Errorf("only %d of %d were recognised", done, tried)
	}
	t.Logf("%d of %d were recognised", done, tried)
}

// TestHeartbeatsAreTouches: the updates there are most of take the short way.
func TestHeartbeatsAreTouches(t *testing.T) {
	f := New()
	typeOf := func(kind string) *Type {
		for _, typ := range types() {
			if typ.Kind.Kind == kind {
				return typ
			}
		}
		t.Fatal(kind)
		return nil
	}
	name := "node-1"
	for _, tc := range []struct {
		kind string
		sub  string
		obj  api.Object
		edit func(api.Object)
	}{
		{"Lease", "", &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, RenewTime: &metav1.MicroTime{Time: time.Unix(1, 0)}}}, func(o api.Object) {
			o.(*coordinationv1.Lease).Spec.RenewTime = &metav1.MicroTime{Time: time.Unix(2, 0)}
		}},
		{"Node", "status", &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: "Ready", Status: "True"}, {Type: "DiskPressure", Status: "False", LastHeartbeatTime: metav1.Unix(1, 0)}}}}, func(o api.Object) {
			o.(*corev1.Node).Status.Conditions[1].LastHeartbeatTime = metav1.Unix(2, 0)
		}},
		{"Pod", "", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"turn": "1"}}}, func(o api.Object) { o.SetLabels(map[string]string{"turn": "2"}) }},
	} {
		typ := typeOf(tc.kind)
		tc.obj.GetObjectKind().SetGroupVersionKind(typ.Stored)
		old := f.update(typ, tc.sub, nil, tc.obj, "kubelet")
		now := old.DeepCopyObject().(api.Object)
		tc.edit(now)
		if !f.touch(typ, tc.sub, old, now, "kubelet") {
			t.Errorf("%s takes the long way", typ.Kind)
		}
		if f.touch(typ, tc.sub, old, now, "another") {
			t.Errorf("%s: another's update changed no ownership", typ.Kind)
		}
	}
}

func BenchmarkRenewal(b *testing.B) {
	f := New()
	for _, typ := range types() {
		if typ.Kind.Kind != "Lease" {
			continue
		}
		name := "node-1"
		lease := func(turn int64) *coordinationv1.Lease {
			l := &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, RenewTime: &metav1.MicroTime{Time: time.Unix(turn, 0)}}}
			l.GetObjectKind().SetGroupVersionKind(typ.Stored)
			return l
		}
		old := f.update(typ, "", nil, lease(1), "kubelet")
		for what, do := range map[string]func(now api.Object){
			"touch":   func(now api.Object) { f.touch(typ, "", old, now, "kubelet") },
			"library": func(now api.Object) { f.update(typ, "", old, now, "kubelet") },
		} {
			b.Run(what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					now := lease(2)
					now.ManagedFields = old.GetManagedFields()
					do(now)
				}
			})
		}
	}
}
