package managed

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/skiff-project/skiff/api"
)

// mutation changes JSON at random: about one in every of what it meets.
type mutation struct {
	*rand.Rand
	every int
}

func (m mutation) now(n int) bool { return m.Intn(n*m.every) == 0 }

// change returns v with texts and numbers changed and, with more, things taken
// out, emptied, doubled, moved, and brought over from donor, another object of the kind.
func (m mutation) change(v, donor any, more bool) any {
	switch v := v.(type) {
	case map[string]any:
		other, _ := donor.(map[string]any)
		for _, k := range slices.Sorted(maps.Keys(v)) {
			switch {
			case more && m.now(10):
				delete(v, k)
			case more && m.now(20) && other[k] != nil:
				v[k] = other[k]
			case more && m.now(60):
				v[k] = nil
			case more && m.now(60):
				v[k] = map[string]any{}
			case more && m.now(60):
				v[k] = []any{}
			default:
				v[k] = m.change(v[k], other[k], more)
			}
		}
		for _, k := range slices.Sorted(maps.Keys(other)) {
			if _, has := v[k]; !has && more && m.now(10) {
				v[k] = other[k]
			}
		}
	case []any:
		other, _ := donor.([]any)
		for i := range v {
			v[i] = m.change(v[i], donor, more)
		}
		switch {
		case more && len(v) > 0 && m.now(15):
			v = slices.Delete(v, 0, 1)
		case more && len(v) > 0 && m.now(50):
			v = append(v, v[m.Intn(len(v))])
		case more && m.now(10):
			m.Shuffle(len(v), func(i, j int) { v[i], v[j] = v[j], v[i] })
		}
		if more && len(other) > 0 && m.now(8) {
			v = slices.Insert(v, m.Intn(len(v)+1), other[m.Intn(len(other))])
		}
		return v
	case string:
		if _, err := time.Parse(time.RFC3339, v); err == nil && m.now(1) {
			return "2001-02-03T04:05:06Z"
		} else if m.now(1) {
			return v + []string{"x", "-1", "<", "\"", "\\", "é"}[max(m.Intn(60)-54, 0)]
		}
	case float64:
		if m.now(1) {
			return float64(int64(v) % 1000)
		}
	case bool:
		return v != m.now(1)
	}
	return v
}

func content(t testing.TB, o any) (v any) {
	t.Helper()
	raw, err := json.Marshal(o)
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// changed is an object with what m changes in it, nil if it is none any more.
func changed(t testing.TB, typ *Type, o, donor api.Object, m mutation, more bool) api.Object {
	t.Helper()
	o = copied(o)
	o.SetManagedFields(nil) // which may be damaged
	raw, err := json.Marshal(m.change(content(t, o), content(t, donor), more))
	if err != nil {
		t.Fatal(err)
	}
	out := typ.Version.New()
	if json.Unmarshal(raw, out) != nil {
		return nil
	}
	out.GetObjectKind().SetGroupVersionKind(typ.Stored)
	return out
}

func copied(o api.Object) api.Object { return o.DeepCopyObject().(api.Object) }

// history takes an object of the type through a few writes by several
// managers, and for each holds what later makes of it against the library. It
// counts the writes and those that were not left to the library.
func history(t testing.TB, f *Fields, typ *Type, seed int64) (done, tried int) {
	t.Helper()
	r := rand.New(rand.NewSource(seed))
	odd := r.Intn(8) == 0
	make := func() api.Object {
		o := plain(t, typ, random(t, typ, r.Int63(), []float64{0.3, 0.8}[r.Intn(2)], true))
		if !odd {
			o = usual(t, typ, o)
		}
		return o
	}
	past := metav1.NewTime(time.Unix(1_000_000_000, 0))
	age := func(o api.Object) {
		list := slices.Clone(o.GetManagedFields())
		for i := range list {
			list[i].Time = &past
		}
		o.SetManagedFields(list)
	}
	old := f.update(typ, []string{"", "status"}[r.Intn(2)], nil, make(), "a")
	old.SetUID("u")
	for range 6 {
		age(old)
		donor := make()
		if r.Intn(4) == 0 {
			if next := applied(t, f, typ, r, old, donor); next != nil {
				old = next
				continue
			}
		}
		if list := old.GetManagedFields(); len(list) > 0 && r.Intn(8) == 0 {
			damage(r, list[r.Intn(len(list))].FieldsV1)
		}
		sub := []string{"", "", "status", "status", "other"}[r.Intn(5)]
		now := changed(t, typ, old, donor, mutation{r, 1 + r.Intn(40)*r.Intn(2)}, r.Intn(3) > 0)
		if now == nil {
			continue
		}
		if now.SetManagedFields(old.GetManagedFields()); r.Intn(3) == 0 {
			now.SetManagedFields(nil)
		}
		manager := []string{"a", "b", "c"}[r.Intn(3)]
		if r.Intn(6) == 0 {
			manager = fmt.Sprint("m", r.Intn(20))
		}
		tried++
		ours := copied(now)
		short := f.later(typ, sub, copied(old), ours, manager)
		theirs := f.update(typ, sub, copied(old), copied(now), manager)
		if short {
			done++
			for i, e := range ours.GetManagedFields() {
				if their := theirs.GetManagedFields(); i < len(their) && e.Time.Equal(&past) != their[i].Time.Equal(&past) {
					t.Fatalf("%s, seed %d: the times are %v and %v", typ.Kind, seed, ours.GetManagedFields(), their)
				}
			}
			if got, want := entries(t, copied(ours)), entries(t, copied(theirs)); got != want {
				t.Fatalf("%s, seed %d, %q by %q:\n%s\nlibrary:\n%s\nold: %s\nnew: %s", typ.Kind, seed, sub, manager, got, want, text(t, old), text(t, now))
			}
			if a, b := ours.GetManagedFields(), theirs.GetManagedFields(); (a == nil) != (b == nil) {
				t.Fatalf("%s, seed %d: %v and %v", typ.Kind, seed, a, b)
			}
		}
		old = theirs
		old.SetUID("u")
	}
	return done, tried
}

func text(t testing.TB, o any) string {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		return fmt.Sprintf("%+v", o)
	}
	return string(raw)
}

// applied has an applier write a part of donor, by the library.
func applied(t testing.TB, f *Fields, typ *Type, r *rand.Rand, old, donor api.Object) api.Object {
	t.Helper()
	config, ok := mutation{r, 1}.change(content(t, donor), nil, true).(map[string]any)
	if !ok {
		return nil
	}
	u := &unstructured.Unstructured{Object: config}
	u.SetGroupVersionKind(typ.Kind)
	unstructured.RemoveNestedField(config, "metadata", "managedFields")
	out, err := f.Apply(typ, "", copied(old), u, Apply{Manager: []string{"a", "applier"}[r.Intn(2)], Force: true})
	if err != nil {
		return nil
	}
	out.GetObjectKind().SetGroupVersionKind(typ.Stored)
	return out
}

// damage changes one byte of a set, or takes one out or doubles it, if what comes of it is JSON.
func damage(r *rand.Rand, set *metav1.FieldsV1) {
	if set == nil || len(set.Raw) == 0 {
		return
	}
	raw := slices.Clone(set.Raw)
	i := r.Intn(len(raw))
	switch r.Intn(3) {
	case 0:
		raw[i] = "{}\":,.fkv a1\\"[r.Intn(13)]
	case 1:
		raw = slices.Delete(raw, i, i+1)
	default:
		raw = slices.Insert(raw, i, raw[i])
	}
	if json.Valid(raw) { // else the library panics
		set.Raw = raw
	}
}

// usual replaces characters that names seldom have.
func usual(t testing.TB, typ *Type, o api.Object) api.Object {
	t.Helper()
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			if strings.ContainsRune("-_./:+", r) || r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
				return r
			}
			return 'a' + r%26
		}, s)
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Collect(maps.Keys(v)) {
				e := walk(v[k])
				delete(v, k)
				v[clean(k)] = e
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case string:
			return clean(v)
		}
		return v
	}
	raw, err := json.Marshal(walk(content(t, o)))
	if err != nil {
		t.Fatal(err)
	}
	out := typ.Version.New()
	if json.Unmarshal(raw, out) != nil {
		return o
	}
	out.GetObjectKind().SetGroupVersionKind(typ.Stored)
	return out
}

// TestUpdateEqualsTheLibrary: what is not left to the library leaves the same
// entries, byte for byte, for random histories of objects of every type.
func TestUpdateEqualsTheLibrary(t *testing.T) {
	f := New()
	done, tried := 0, 0
	for _, typ := range types() {
		n, of := 0, 0
		for seed := int64(1); seed <= histories; seed++ {
			d, t := history(t, f, typ, seed)
			n, of = n+d, of+t
		}
		t.Logf("%s: %d of %d", typ.Kind, n, of)
		if n == 0 {
			t.Errorf("no update of a %s was recognised", typ.Kind)
		}
		done, tried = done+n, tried+of
	}
	if t.Logf("%d of %d were recognised", done, tried); done < tried/3 {
		t.Errorf("only %d of %d were recognised", done, tried)
	}
}

const histories = 8 // of each type

func FuzzUpdate(f *testing.F) {
	fields, all := New(), types()
	for i := range 4 {
		f.Add(uint(i), int64(i))
	}
	f.Fuzz(func(t *testing.T, typ uint, seed int64) { history(t, fields, all[typ%uint(len(all))], seed) })
}

func typeOf(t testing.TB, kind string) *Type {
	t.Helper()
	for _, typ := range types() {
		if typ.Kind.Kind == kind {
			return typ
		}
	}
	t.Fatal(kind)
	return nil
}

func typicalPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			Containers:  []corev1.Container{{Name: "web", Image: "nginx", Env: []corev1.EnvVar{{Name: "A", Value: "b"}}, Ports: []corev1.ContainerPort{{ContainerPort: 80}}}},
			Tolerations: []corev1.Toleration{{Key: "k"}},
		},
	}
}

// TestUsualUpdatesAreShort: the updates there are most of are not left to the
// library, whoever makes them, and end as with it.
func TestUsualUpdatesAreShort(t *testing.T) {
	f := New()
	name := "node-1"
	for what, tc := range map[string]struct {
		kind, sub string
		obj       api.Object
		edit      func(api.Object)
	}{
		"a lease is renewed": {"Lease", "", &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, RenewTime: &metav1.MicroTime{Time: time.Unix(1, 0)}}}, func(o api.Object) {
			o.(*coordinationv1.Lease).Spec.RenewTime = &metav1.MicroTime{Time: time.Unix(2, 0)}
		}},
		"a node's heartbeat": {"Node", "status", &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: "Ready", Status: "True"}, {Type: "DiskPressure", Status: "False", LastHeartbeatTime: metav1.Unix(1, 0)}}}}, func(o api.Object) {
			o.(*corev1.Node).Status.Conditions[1].LastHeartbeatTime = metav1.Unix(2, 0)
		}},
		"a label is changed": {"Pod", "", typicalPod(), func(o api.Object) { o.SetLabels(map[string]string{"app": "other"}) }},
		"a label is added":   {"Pod", "", typicalPod(), func(o api.Object) { o.SetLabels(map[string]string{"app": "web", "turn": "1"}) }},
		"labels are removed": {"Pod", "", typicalPod(), func(o api.Object) { o.SetLabels(nil) }},
		"a first annotation": {"Pod", "", typicalPod(), func(o api.Object) { o.SetAnnotations(map[string]string{"a/b": "c"}) }},
		"a first status": {"Pod", "status", typicalPod(), func(o api.Object) {
			o.(*corev1.Pod).Status = corev1.PodStatus{
				Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}, StartTime: &metav1.Time{Time: time.Unix(1, 0)},
				Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: "True"}, {Type: corev1.PodInitialized, Status: "True"}},
				ContainerStatuses: []corev1.ContainerStatus{{Name: "web", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
			}
		}},
		"a sidecar": {"Pod", "", typicalPod(), func(o api.Object) {
			spec := &o.(*corev1.Pod).Spec
			spec.Containers = append([]corev1.Container{{Name: "side"}}, spec.Containers...)
		}},
		"a binding": {"Pod", "binding", typicalPod(), func(o api.Object) { o.(*corev1.Pod).Spec.NodeName = name }},
		"nothing":   {"Pod", "", typicalPod(), func(api.Object) {}},
	} {
		typ := typeOf(t, tc.kind)
		tc.obj.GetObjectKind().SetGroupVersionKind(typ.Stored)
		old := f.update(typ, "", nil, tc.obj, "kubelet")
		if tc.sub == "status" && old.GetManagedFields() == nil {
			old = f.update(typ, tc.sub, nil, tc.obj, "kubelet")
		}
		for _, manager := range []string{"kubelet", "another"} {
			now := copied(old)
			tc.edit(now)
			theirs := f.update(typ, tc.sub, copied(old), copied(now), manager)
			if !f.later(typ, tc.sub, old, now, manager) {
				t.Errorf("%s, by %s, takes the long way", what, manager)
			} else if got, want := entries(t, now), entries(t, theirs); got != want {
				t.Errorf("%s, by %s:\n%s\nlibrary:\n%s", what, manager, got, want)
			}
		}
	}
}

// BenchmarkUpdate is a change by a manager that is new to the object.
func BenchmarkUpdate(b *testing.B) {
	f := New()
	seconds := int32(40)
	lease := &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: time.Unix(1, 0)}}}
	for _, bc := range []struct {
		kind string
		obj  api.Object
		edit func(api.Object)
	}{
		{"Lease", lease, func(o api.Object) {
			o.(*coordinationv1.Lease).Spec.RenewTime = &metav1.MicroTime{Time: time.Unix(2, 0)}
		}},
		{"Pod", typicalPod(), func(o api.Object) { o.SetLabels(map[string]string{"app": "web", "turn": "1"}) }},
	} {
		typ := typeOf(b, bc.kind)
		bc.obj.GetObjectKind().SetGroupVersionKind(typ.Stored)
		old := f.update(typ, "", nil, bc.obj, "creator")
		now := copied(old)
		bc.edit(now)
		for what, do := range map[string]func(){
			"short":   func() { f.later(typ, "", old, now, "another") },
			"library": func() { f.update(typ, "", old, now, "another") },
		} {
			b.Run(bc.kind+"/"+what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					now.SetManagedFields(nil)
					do()
				}
			})
		}
	}
}
