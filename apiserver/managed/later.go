package managed

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/skiff-project/skiff/api"
)

// An update gives its manager what it added or changed, and takes that and what
// it removed from everybody else. What that is follows from the two Go objects,
// and the sets are edited in the form they are stored in (see edit.go), at a
// twentieth of the library's price. Whatever is unusual (duplicates, other
// versions, sets that are not as the library writes them) is left to it.

// maxUpdaters is the number of entries from updates at which the library
// begins to join the oldest.
const maxUpdaters = 10

// later notes what an update of old to obj changes in who owns what. It
// reports false, having changed nothing, when the library must do it.
func (f *Fields) later(typ *Type, sub string, old, obj api.Object, manager string) bool {
	if !usualReset(typ.Resource, sub, old, obj) {
		return false
	}
	entries := old.GetManagedFields()
	if typ.Kind != typ.Stored || manager == "" {
		return false
	}
	if given := obj.GetManagedFields(); sub == "" && given != nil && !slices.EqualFunc(given, entries, sameEntry) {
		return false // a client manages managed fields
	}
	own, ok := survey(entries, metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: typ.Kind.GroupVersion().String(), Subresource: sub,
	})
	p := f.plans.get(typ)
	if !ok || p.shape != structure {
		return false
	}
	d := differ{sub: sub, root: p}
	edits, _ := d.structure(p, reflect.ValueOf(old).Elem(), reflect.ValueOf(obj).Elem())
	if d.failed {
		return false
	}
	after := make([]metav1.ManagedFieldsEntry, 0, len(entries)+1)
	if own < 0 && d.gained {
		own = len(entries)
		now := metav1.ManagedFieldsEntry{
			Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: typ.Kind.GroupVersion().String(), Subresource: sub,
			FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte("{}")},
		}
		entries = append(slices.Clip(entries), now)
	}
	updaters := 0
	for i, e := range entries {
		raw, ok := edited(e.FieldsV1.Raw, p, edits, i == own)
		if !ok {
			return false
		}
		if len(raw) == len("{}") {
			continue
		}
		if !bytes.Equal(raw, e.FieldsV1.Raw) {
			e.FieldsV1 = &metav1.FieldsV1{Raw: raw}
		}
		if i == own && d.gained {
			e.Time = &metav1.Time{Time: time.Now().UTC()}
		}
		if e.Operation == metav1.ManagedFieldsOperationUpdate {
			updaters++
		}
		after = append(after, e)
	}
	if updaters > maxUpdaters {
		return false
	}
	if len(after) == 0 {
		after = nil
	}
	slices.SortFunc(after, compareEntries)
	obj.SetManagedFields(after)
	return true
}

// survey finds the entry of one updater, or -1, and reports whether the
// entries are such that their sets tell everything.
func survey(entries []metav1.ManagedFieldsEntry, updater metav1.ManagedFieldsEntry) (own int, ok bool) {
	same := func(a, b *metav1.ManagedFieldsEntry) bool {
		return a.Manager == b.Manager && a.Operation == b.Operation && a.Subresource == b.Subresource
	}
	own = -1
	for i := range entries {
		e := &entries[i]
		if e.APIVersion != updater.APIVersion || e.FieldsType != "FieldsV1" || e.FieldsV1 == nil ||
			e.Operation != metav1.ManagedFieldsOperationUpdate && e.Operation != metav1.ManagedFieldsOperationApply {
			return 0, false
		}
		for j := range i {
			if same(&entries[j], e) {
				return 0, false
			}
		}
		if same(e, &updater) {
			own = i
		}
	}
	return own, len(entries) > 0 // nothing is tracked of an object nobody owns anything of
}

func sameEntry(a, b metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.APIVersion == b.APIVersion && a.Subresource == b.Subresource &&
		a.FieldsType == b.FieldsType && a.Time.Equal(b.Time) && a.FieldsV1 != nil && b.FieldsV1 != nil && bytes.Equal(a.FieldsV1.Raw, b.FieldsV1.Raw)
}

// compareEntries is the order entries stand in.
func compareEntries(a, b metav1.ManagedFieldsEntry) int {
	seconds := func(t *metav1.Time) int64 {
		if t == nil {
			return 0
		}
		return t.Unix()
	}
	return cmp.Or(cmp.Compare(a.Operation, b.Operation), cmp.Compare(seconds(a.Time), seconds(b.Time)), cmp.Compare(a.Manager, b.Manager),
		cmp.Compare(a.APIVersion, b.APIVersion), cmp.Compare(a.Subresource, b.Subresource))
}

// differ finds what differs between two objects of one form. A reflect.Value
// that is not valid stands for what is absent.
type differ struct {
	sub    string
	root   *plan
	gained bool // something was added or changed
	failed bool // the library must do it
}

// settle follows pointers, and tells what is null.
func settle(v reflect.Value) (_ reflect.Value, null bool) {
	for v.IsValid() && nilable(v.Kind()) {
		if v.IsNil() {
			return v, true
		}
		if v.Kind() != reflect.Pointer {
			break
		}
		v = v.Elem()
	}
	return v, false
}

// value compares what is in one place of both objects. The edit's name is the caller's to set.
func (d *differ) value(p *plan, old, now reflect.Value) (e edit, differs bool) {
	old, oldNull := settle(old)
	now, nowNull := settle(now)
	if p.shape == unsupported || old.Kind() == reflect.Interface || now.Kind() == reflect.Interface {
		d.failed = true
		return e, false
	}
	whole := p.shape == leaf
	if !whole {
		inOld, inNow := old, now
		if oldNull {
			inOld = reflect.Value{}
		}
		if nowNull {
			inNow = reflect.Value{}
		}
		if inOld.IsValid() || inNow.IsValid() {
			e.inner, whole = d.inner(p, inOld, inNow)
		} else {
			whole = true
		}
	}
	switch {
	case d.failed:
		return e, false
	case !old.IsValid():
		e.op = put
	case !now.IsValid():
		e.op = drop
	case !whole: // it is nobody's, only what is in it
	case oldNull != nowNull:
		e.op = put
	case p.shape == leaf && !oldNull:
		same, ok := equal(p, old, now)
		if d.failed = d.failed || !ok; !same {
			e.op = put
		}
	}
	d.gained = d.gained || e.op == put
	return e, e.op != keep || len(e.inner) > 0
}

// inner compares what is in two values, of which one may be absent, and
// reports whether there is nothing in either.
func (d *differ) inner(p *plan, old, now reflect.Value) (edits []edit, empty bool) {
	switch p.shape {
	case structure:
		return d.structure(p, old, now)
	case mapping:
		return d.mapping(p, old, now), length(old)+length(now) == 0
	default:
		return d.list(p, old, now), length(old)+length(now) == 0
	}
}

func length(v reflect.Value) int {
	if !v.IsValid() {
		return 0
	}
	return v.Len()
}

// structure compares field by field. Half of a whole object is looked at only
// for what the library would refuse: this kind of request does not write it.
func (d *differ) structure(p *plan, old, now reflect.Value) (edits []edit, empty bool) {
	empty = true
	part := func(f *planField, of reflect.Value) (v reflect.Value) {
		if of.IsValid() {
			if v = f.of(of); f.omitted(v) {
				return reflect.Value{}
			}
			empty = false
		}
		return v
	}
	for i := range p.fields {
		f := &p.fields[i]
		a, b := part(f, old), part(f, now)
		if !a.IsValid() && !b.IsValid() {
			continue
		}
		gained := d.gained
		e, differs := d.value(f.plan, a, b)
		if d.failed {
			return nil, false
		}
		if p == d.root {
			if f.unowned && d.sub == "" || f.JsonName == "spec" && d.sub == "status" {
				d.gained, differs = gained, false
			}
			d.failed = d.failed || f.JsonName == "metadata" && differs && e.op != keep // which nobody owns
		}
		if e.name = f.name; differs {
			edits = append(edits, e)
		}
	}
	return edits, empty
}

func (d *differ) mapping(p *plan, old, now reflect.Value) (edits []edit) {
	if sameTexts(old, now) {
		return nil
	}
	add := func(key, a, b reflect.Value) {
		e, differs := d.value(p.elem, a, b)
		if !differs {
			return
		}
		e.name = quote("f:" + key.String())
		d.failed = d.failed || e.name == "" || strings.Contains(key.String(), `"`)
		edits = append(edits, e)
	}
	if old.IsValid() {
		for it := old.MapRange(); it.Next() && !d.failed; {
			var b reflect.Value
			if now.IsValid() {
				b = now.MapIndex(it.Key())
			}
			add(it.Key(), it.Value(), b)
		}
	}
	if now.IsValid() {
		for it := now.MapRange(); it.Next() && !d.failed; {
			if !old.IsValid() || !old.MapIndex(it.Key()).IsValid() {
				add(it.Key(), reflect.Value{}, it.Value())
			}
		}
	}
	slices.SortFunc(edits, d.order)
	return edits
}

// sameTexts is the short way for labels and the like.
func sameTexts(old, now reflect.Value) bool {
	if !old.IsValid() || !now.IsValid() || old.Len() != now.Len() {
		return false
	}
	a, ok := old.Interface().(map[string]string)
	b, too := now.Interface().(map[string]string)
	return ok && too && maps.Equal(a, b)
}

func (d *differ) order(a, b edit) int {
	c, ok := compareNames(a.name, b.name)
	d.failed = d.failed || !ok
	return c
}

// list compares the items of the same name, wherever they stand.
func (d *differ) list(p *plan, old, now reflect.Value) (edits []edit) {
	if old.IsValid() && now.IsValid() && old.Len() == now.Len() && d.paired(p, old, now) {
		for i := range old.Len() {
			if d.failed || p.shape == setList {
				return nil
			}
			e, differs := d.value(p.elem, old.Index(i), now.Index(i))
			if !differs {
				continue
			}
			e.name = p.itemName(now.Index(i))
			for j := 0; j < now.Len() && !d.failed; j++ {
				d.failed = e.name == "" || j != i && p.itemName(now.Index(j)) == e.name
			}
			edits = append(edits, e)
		}
		slices.SortFunc(edits, d.order)
		return edits
	}
	before, after := d.items(p, old), d.items(p, now)
	for name, i := range before {
		var b reflect.Value
		if j, ok := after[name]; ok {
			b = now.Index(j)
		}
		edits = d.item(edits, p, name, old.Index(i), b)
	}
	for name, j := range after {
		if _, ok := before[name]; !ok {
			edits = d.item(edits, p, name, reflect.Value{}, now.Index(j))
		}
	}
	slices.SortFunc(edits, d.order)
	return edits
}

func (d *differ) item(edits []edit, p *plan, name string, old, now reflect.Value) []edit {
	if d.failed {
		return nil
	}
	e, differs := d.value(p.elem, old, now)
	if e.name = name; differs {
		edits = append(edits, e)
	}
	return edits
}

// items finds a list's items by their names.
func (d *differ) items(p *plan, list reflect.Value) map[string]int {
	byName := map[string]int{}
	for i := range length(list) {
		name := p.itemName(list.Index(i))
		if _, twice := byName[name]; twice || name == "" {
			d.failed = true
			return nil
		}
		byName[name] = i
	}
	return byName
}

// paired reports whether two lists of one length have the same items in the same order.
func (d *differ) paired(p *plan, old, now reflect.Value) bool {
	for i := range old.Len() {
		a, aNull := settle(old.Index(i))
		b, bNull := settle(now.Index(i))
		if aNull || bNull {
			d.failed = true
			return false
		}
		if p.shape == setList {
			if !a.Equal(b) {
				return false
			}
			continue
		}
		named := false
		for i := range p.keys {
			k := &p.keys[i]
			of, in := k.field.of(a), k.field.of(b)
			omitted := k.field.omitted(of)
			if omitted != k.field.omitted(in) {
				return false
			}
			named = named || !omitted || k.def != ""
			if omitted {
				continue
			}
			of, ofNull := settle(of)
			in, inNull := settle(in)
			if ofNull || inNull || !scalar(of.Kind()) {
				d.failed = true
				return false
			}
			if !of.Equal(in) {
				return false
			}
		}
		if !named {
			d.failed = true
			return false
		}
	}
	return true
}

// equal compares two leaves by what they are in JSON.
func equal(p *plan, a, b reflect.Value) (same, ok bool) {
	if a.Kind() == reflect.String {
		return a.String() == b.String(), true
	}
	if a.Comparable() && b.Comparable() && a.Equal(b) {
		return true, true
	}
	if p.custom == nil {
		if scalar(a.Kind()) || reflect.DeepEqual(a.Interface(), b.Interface()) {
			return !scalar(a.Kind()), true
		}
		was, err := value.NewValueReflect(addressed(a).Interface())
		is, errIs := value.NewValueReflect(addressed(b).Interface())
		if err != nil || errIs != nil {
			return false, false
		}
		return value.Equals(was, is), true
	}
	if m, marshals := a.Interface().(json.Marshaler); marshals {
		was, err := m.MarshalJSON()
		is, errIs := b.Interface().(json.Marshaler).MarshalJSON()
		if same = bytes.Equal(was, is); same || bytes.HasPrefix(was, []byte{'"'}) {
			return same, err == nil && errIs == nil
		} // else it may be the same in another order
	}
	was, err := p.custom.ToUnstructured(addressed(a).Elem())
	is, errIs := p.custom.ToUnstructured(addressed(b).Elem())
	if err != nil || errIs != nil {
		return false, false
	}
	return value.Equals(value.NewValueInterface(was), value.NewValueInterface(is)), true
}

// addressed is a pointer to v, or to a copy of it.
func addressed(v reflect.Value) reflect.Value {
	if v.CanAddr() {
		return v.Addr()
	}
	c := reflect.New(v.Type())
	c.Elem().Set(v)
	return c
}
