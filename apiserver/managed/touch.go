package managed

import (
	"bytes"
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

// Most updates change values their manager owns already and nobody else does:
// a lease is renewed, a heartbeat told. Nothing moves then but the time of the
// manager's entry. Such an update is recognised here, at a twentieth of the
// library's price; whatever else happens is left to the library.

// touch notes an update that changes no ownership. It reports false, having
// changed nothing, when the library must do it.
func (f *Fields) touch(typ *Type, sub string, old, obj api.Object, manager string) bool {
	if typ.Kind != typ.Stored || sub != "" && sub != "status" {
		return false
	}
	entries := old.GetManagedFields()
	if given := obj.GetManagedFields(); sub == "" && given != nil && !slices.EqualFunc(given, entries, sameEntry) {
		return false // a client manages managed fields
	}
	version := typ.Kind.GroupVersion().String()
	own := -1
	for i := range entries {
		e := &entries[i]
		if e.APIVersion != version || e.FieldsType != "FieldsV1" || e.FieldsV1 == nil {
			return false
		}
		if e.Manager == manager && e.Operation == metav1.ManagedFieldsOperationUpdate && e.Subresource == sub {
			own = i
		}
	}
	p := f.plans.get(typ, f.converter)
	if own < 0 || p.shape != structure {
		return false
	}
	c := changes{sub: sub}
	c.structure(p, reflect.ValueOf(old).Elem(), reflect.ValueOf(obj).Elem(), 0)
	if c.other || len(c.paths) == 0 {
		return false
	}
	for _, path := range c.paths {
		for i := range entries {
			if owns(entries[i].FieldsV1.Raw, path) != (i == own) {
				return false
			}
		}
	}
	entries = slices.Clone(entries)
	entries[own].Time = &metav1.Time{Time: time.Now().UTC()}
	slices.SortFunc(entries, compareEntries)
	obj.SetManagedFields(entries)
	return true
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

// maxTouched bounds the changed fields that are looked for one by one.
const maxTouched = 32

// changes finds the values that differ between two objects of one form.
type changes struct {
	sub   string
	at    []string   // the path to here, in the form of the set
	paths [][]string // of what differs
	other bool       // something came, went or moved: more than values changed
}

// value compares what is in one place of both objects.
func (c *changes) value(name string, p *plan, old, now reflect.Value) {
	if c.other {
		return
	}
	for old.Kind() == reflect.Pointer || now.Kind() == reflect.Pointer {
		if old.IsNil() || now.IsNil() {
			c.other = old.IsNil() != now.IsNil()
			return
		}
		old, now = old.Elem(), now.Elem()
	}
	if p.shape != leaf {
		c.at = append(c.at, name)
		c.descend(p, old, now)
		c.at = c.at[:len(c.at)-1]
		return
	}
	if nilable(old.Kind()) && old.IsNil() != now.IsNil() {
		c.other = true
		return
	}
	if same, ok := equal(p, old, now); !ok || name == "" && !same {
		c.other = true
	} else if !same {
		c.paths = append(c.paths, append(slices.Clone(c.at), name))
		c.other = len(c.paths) > maxTouched
	}
}

func (c *changes) descend(p *plan, old, now reflect.Value) {
	switch p.shape {
	case structure:
		c.structure(p, old, now, len(c.at))
	case unsupported, setList:
		c.other = c.other || !reflect.DeepEqual(old.Interface(), now.Interface())
	case mapping:
		if old.Len() != now.Len() || old.IsNil() != now.IsNil() {
			c.other = true
			return
		}
		for it := old.MapRange(); it.Next(); {
			v := now.MapIndex(it.Key())
			if !v.IsValid() {
				c.other = true
				return
			}
			c.value(quote("f:"+it.Key().String()), p.elem, it.Value(), v)
		}
	case keyedList:
		c.list(p, old, now)
	}
}

// structure compares field by field; depth is 0 for a whole object, which has
// a half that this kind of request does not write.
func (c *changes) structure(p *plan, old, now reflect.Value, depth int) {
	for i := range p.fields {
		f := &p.fields[i]
		if depth == 0 && (f.unowned && c.sub == "" || c.sub == "status" && f.JsonName == "spec") {
			continue
		}
		a, b := f.GetFrom(old), f.GetFrom(now)
		if f.CanOmit(a) != f.CanOmit(b) {
			c.other = true
			return
		}
		if !f.CanOmit(a) {
			c.value(f.name, f.plan, a, b)
		}
	}
}

// list compares item by item; that they are the same items is part of it.
func (c *changes) list(p *plan, old, now reflect.Value) {
	if old.Len() != now.Len() || old.IsNil() != now.IsNil() {
		c.other = true
		return
	}
	for i := range old.Len() {
		before, n := old.Index(i), len(c.paths)
		pe, ok := p.element(before)
		is, okNow := p.element(now.Index(i))
		if !ok || !okNow || !pe.Equals(is) {
			c.other = true
			return
		}
		c.value(itemMark, p.elem, before, now.Index(i))
		if len(c.paths) == n {
			continue
		}
		name, twice := p.itemName(old, i)
		if name == "" || twice {
			c.other = true
			return
		}
		for _, path := range c.paths[n:] {
			path[len(c.at)] = name
		}
	}
}

// itemMark stands in a path for an item whose name is needed only if it differs.
const itemMark = "?"

// itemName is the name of a list's item i in a set, and whether another item has it too.
func (p *plan) itemName(list reflect.Value, i int) (name string, twice bool) {
	pe, _ := p.element(list.Index(i))
	for j := range list.Len() {
		if other, ok := p.element(list.Index(j)); j != i && (!ok || other.Equals(pe)) {
			return "", true
		}
	}
	return elementName(pe), false
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
		return reflect.DeepEqual(a.Interface(), b.Interface()), true
	}
	if m, marshals := a.Interface().(json.Marshaler); marshals {
		was, err := m.MarshalJSON()
		is, errIs := b.Interface().(json.Marshaler).MarshalJSON()
		if same = bytes.Equal(was, is); same || bytes.HasPrefix(was, []byte{'"'}) {
			return same, err == nil && errIs == nil
		} // else it may be the same in another order
	}
	was, errWas := p.custom.ToUnstructured(a)
	is, errIs := p.custom.ToUnstructured(b)
	return reflect.DeepEqual(was, is), errWas == nil && errIs == nil
}

// owns reports whether a set in its JSON form has path as a member.
func owns(set []byte, path []string) bool {
	for i, name := range path {
		var ok bool
		if set, ok = member(set, name); !ok {
			return false
		}
		if i == len(path)-1 {
			_, self := member(set, `"."`)
			return self || len(set) == 2
		}
	}
	return false
}

// member returns the object under a quoted name in a JSON object of objects.
func member(object []byte, name string) ([]byte, bool) {
	depth, start := 0, 0
	for i := 0; i < len(object); i++ {
		switch object[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 1 && start > 0 {
				return object[start : i+1], true
			}
		case '"':
			end := i + 1
			for end < len(object) && object[end] != '"' {
				if object[end] == '\\' {
					end++
				}
				end++
			}
			if end+2 >= len(object) {
				return nil, false
			}
			if depth == 1 && string(object[i:end+1]) == name && object[end+1] == ':' {
				start = end + 2
			}
			i = end
		}
	}
	return nil, false
}
