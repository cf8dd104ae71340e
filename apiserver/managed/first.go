package managed

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/skiff-project/skiff/api"
)

// The first write of an object needs no merge: its manager owns all that is
// not as in an empty object. That set is written straight from the Go object
// here, as the library would write it, at a tenth of the price. Whatever is
// unusual (duplicates, odd characters, types with no fixed schema) is left to
// the library.

// firstPlans are the plans of Go types, made on first need.
type firstPlans struct {
	mu    sync.Mutex
	byTyp map[*Type]*plan
}

// shape is how the fields of a value are owned.
type shape uint8

const (
	unsupported shape = iota
	leaf              // as a whole
	structure         // field by field
	mapping           // key by key
	keyedList         // item by item, known by key fields
	setList           // item by item, known by value
)

// plan says how values of one Go type, under one schema type, are owned.
type plan struct {
	shape  shape
	custom *value.TypeReflectCacheEntry // set for types that marshal themselves
	fields []planField                  // of a structure
	elem   *plan                        // of a mapping or list
	keys   []planKey                    // of a keyedList
}

type planField struct {
	name string // quoted, as in the set: "f:spec"
	*value.FieldCacheEntry
	index []int // where it is, if no pointer is on the way
	omit  omission
	plan  *plan
	zero  state // what the field is in an empty structure
	// unowned fields are looked at, as one that cannot be tracked makes the
	// library refuse the object, but belong to nobody.
	unowned bool
}

// omission is when JSON leaves a field out.
type omission uint8

const (
	byType  omission = iota // the library knows
	never                   // left out
	ifEmpty                 // by its kind
)

// of is the field of a structure.
func (f *planField) of(v reflect.Value) reflect.Value {
	if f.index == nil {
		return f.GetFrom(v)
	}
	for _, i := range f.index {
		v = v.Field(i)
	}
	return v
}

// omitted tells whether JSON leaves the field out if it is v.
func (f *planField) omitted(v reflect.Value) bool {
	switch f.omit {
	case never:
		return false
	case byType:
		return f.CanOmit(v)
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return v.IsNil()
	case reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	}
	return v.IsZero()
}

// fieldPlan is what is known of a field of the structure type t.
func fieldPlan(t reflect.Type, e *value.FieldCacheEntry) planField {
	f := planField{name: quote("f:" + e.JsonName), FieldCacheEntry: e, plan: &plan{}, index: indexOf(t, e.JsonName)}
	in := e.GetFrom(reflect.New(t).Elem()).Type()
	if f.index != nil && t.FieldByIndex(f.index).Type != in {
		f.index = nil
	}
	_, ownZero := reflect.Zero(in).Interface().(interface{ IsZero() bool })
	without := e.CanOmit(reflect.Zero(in))
	switch in.Kind() {
	case reflect.Struct, reflect.Array, reflect.Float32, reflect.Float64:
	case reflect.Map:
		f.omit = omissionOf(ownZero, without, e.CanOmit(reflect.MakeMap(in)))
	case reflect.Slice:
		f.omit = omissionOf(ownZero, without, e.CanOmit(reflect.MakeSlice(in, 0, 0)))
	default:
		f.omit = omissionOf(ownZero, without, without)
	}
	return f
}

func omissionOf(ownZero, null, empty bool) omission {
	switch {
	case ownZero || null != empty:
		return byType
	case null:
		return ifEmpty
	}
	return never
}

// indexOf finds a field by its name in JSON.
func indexOf(t reflect.Type, name string) []int {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return []int{i}
		}
		if tag == "" && f.Anonymous && f.Type.Kind() == reflect.Struct {
			if in := indexOf(f.Type, name); in != nil {
				return append([]int{i}, in...)
			}
		}
	}
	return nil
}

// planKey is a field that a list's items are known by.
type planKey struct {
	name  string // as in the name of an item: \"port\":
	field planField
	def   string // what it is if it is left out, likewise; "": nothing
}

// state is what the empty object has in a value's place.
type state uint8

const (
	absent state = iota
	null
	zero // the type's zero value
)

// stripped are the fields nobody owns.
var stripped = []string{"name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion"}

// first notes manager as the owner of all fields of a new object of type typ.
// It reports false, having changed nothing, when the library must do it.
func (f *Fields) first(typ *Type, obj api.Object, manager string) bool {
	if !usualReset(typ.Resource, "", nil, obj) {
		return false
	}
	if typ.Kind != typ.Stored || obj.GetManagedFields() != nil || manager == "" {
		return false
	}
	p := f.plans.get(typ)
	if p.shape != structure {
		return false
	}
	w := &setWriter{buf: make([]byte, 1, 1024)}
	w.buf[0] = '{'
	w.structure(p, reflect.ValueOf(obj).Elem(), zero)
	if w.failed || len(w.buf) == 1 {
		return false
	}
	now := metav1.NewTime(time.Now().UTC())
	obj.SetManagedFields([]metav1.ManagedFieldsEntry{{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: typ.Kind.GroupVersion().String(),
		Time: &now, FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: append(w.buf, '}')},
	}})
	return true
}

func (f *firstPlans) get(typ *Type) *plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.byTyp[typ]
	if p == nil {
		p = rootPlan(typ)
		f.byTyp[typ] = p
	}
	return p
}

// rootPlan is the plan of a whole object, without what is reset or stripped.
func rootPlan(typ *Type) *plan {
	obj := typ.Version.New()
	obj.GetObjectKind().SetGroupVersionKind(typ.Kind)
	types, err := typ.Types()
	if err != nil {
		return &plan{}
	}
	tv, err := types.ObjectToTyped(obj, typed.AllowDuplicates)
	if err != nil {
		return &plan{}
	}
	b := planner{schema: tv.Schema(), known: map[planID]*plan{}}
	whole := b.plan(reflect.TypeOf(obj).Elem(), tv.TypeRef())
	if whole.shape != structure {
		return whole
	}
	root := &plan{shape: structure}
	reset := resetFields(typ, "") != nil
	for _, field := range whole.fields {
		switch {
		case field.JsonName == "apiVersion", field.JsonName == "kind":
			continue
		case field.JsonName == "status" && reset:
			field.unowned = true
		case field.JsonName == "metadata":
			meta := *field.plan
			meta.fields = slices.DeleteFunc(slices.Clone(meta.fields), func(m planField) bool { return slices.Contains(stripped, m.JsonName) })
			field.plan = &meta
		}
		root.fields = append(root.fields, field)
	}
	return root
}

type planID struct {
	typ reflect.Type
	ref string
}

// planner makes plans; a type in itself gets one plan.
type planner struct {
	schema *schema.Schema
	known  map[planID]*plan
}

func refID(r schema.TypeRef) string {
	rel := ""
	if r.ElementRelationship != nil {
		rel = string(*r.ElementRelationship)
	}
	if r.NamedType != nil {
		return *r.NamedType + " " + rel
	}
	return fmt.Sprintf("%p %p %p %s", r.Inlined.Scalar, r.Inlined.List, r.Inlined.Map, rel)
}

func (b *planner) plan(t reflect.Type, ref schema.TypeRef) *plan {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	id := planID{t, refID(ref)}
	if p := b.known[id]; p != nil {
		return p
	}
	p := &plan{}
	b.known[id] = p
	atom, ok := b.schema.Resolve(ref)
	if !ok {
		return p
	}
	entry := value.TypeReflectEntryOf(t)
	custom := entry.CanConvertToUnstructured()
	if custom {
		p.custom = entry
	}
	switch {
	case atom.Scalar != nil && atom.List == nil && atom.Map == nil,
		(atom.List == nil || atom.List.ElementRelationship == schema.Atomic) && (atom.Map == nil || atom.Map.ElementRelationship == schema.Atomic):
		p.shape = leaf
	case custom || atom.Scalar != nil || atom.List != nil && atom.Map != nil:
	case atom.Map != nil:
		b.mapping(p, t, entry, atom.Map)
	case t.Kind() == reflect.Slice:
		b.list(p, t, atom.List)
	}
	return p
}

func (b *planner) mapping(p *plan, t reflect.Type, entry *value.TypeReflectCacheEntry, m *schema.Map) {
	switch {
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String && len(m.Fields) == 0:
		p.shape, p.elem = mapping, b.plan(t.Elem(), m.ElementType)
	case t.Kind() == reflect.Struct:
		p.shape = structure
		for _, e := range entry.OrderedFields() {
			field := fieldPlan(t, e)
			of := e.GetFrom(reflect.New(t).Elem())
			if sf, ok := m.FindField(e.JsonName); ok {
				field.plan = b.plan(of.Type(), sf.Type)
			}
			switch {
			case e.CanOmit(of):
			case nilable(of.Kind()):
				field.zero = null
			default:
				field.zero = zero
			}
			p.fields = append(p.fields, field)
		}
	}
}

func (b *planner) list(p *plan, t reflect.Type, l *schema.List) {
	p.elem = b.plan(t.Elem(), l.ElementType)
	if len(l.Keys) == 0 {
		if p.elem.shape == leaf && p.elem.custom == nil && scalar(t.Elem().Kind()) {
			p.shape = setList
		}
		return
	}
	atom, ok := b.schema.Resolve(l.ElementType)
	elem := t.Elem()
	for elem.Kind() == reflect.Pointer {
		elem = elem.Elem()
	}
	if !ok || atom.Map == nil || elem.Kind() != reflect.Struct {
		return
	}
	fields := value.TypeReflectEntryOf(elem).Fields()
	for _, name := range slices.Sorted(slices.Values(l.Keys)) {
		sf, _ := atom.Map.FindField(name)
		if fields[name] == nil {
			return
		}
		key := planKey{name: `\"` + name + `\":`, field: fieldPlan(elem, fields[name])}
		if sf.Default != nil {
			def, ok := appendScalar(nil, reflect.ValueOf(sf.Default))
			if !ok {
				return
			}
			key.def = string(def)
		}
		p.keys = append(p.keys, key)
	}
	p.shape = keyedList
}

func nilable(k reflect.Kind) bool {
	return k == reflect.Pointer || k == reflect.Map || k == reflect.Slice || k == reflect.Interface
}

func scalar(k reflect.Kind) bool {
	switch k {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return true
	}
	return false
}

// quote writes a path element as a JSON string, or answers "" for one with
// characters that are better left to the library.
func quote(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '\\' {
			return ""
		}
	}
	if strings.Contains(s, `"`) {
		s = strings.ReplaceAll(s, `"`, `\"`)
	}
	return `"` + s + `"`
}

// setWriter writes a field set in its JSON form.
type setWriter struct {
	buf    []byte
	failed bool // the library must do it
}

func (w *setWriter) open(name string) {
	if name == "" {
		w.failed = true
	}
	if w.buf[len(w.buf)-1] != '{' {
		w.buf = append(w.buf, ',')
	}
	w.buf = append(append(w.buf, name...), ':', '{')
}

func (w *setWriter) member(name string) {
	w.open(name)
	w.buf = append(w.buf, '}')
}

// value writes what is owned of one value.
func (w *setWriter) value(name string, p *plan, v reflect.Value, was state) {
	if w.failed {
		return
	}
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	switch {
	case p.shape == unsupported || v.Kind() == reflect.Interface:
		w.failed = true
	case nilable(v.Kind()) && v.IsNil():
		if was == absent {
			w.member(name)
		}
	case p.shape == leaf:
		if was == absent || w.differs(p, v, was) {
			w.member(name)
		}
	case p.shape != structure && v.Len() == 0:
		w.member(name)
	default:
		w.descend(name, p, v, was)
	}
}

// descend writes a value that is owned in parts; itself, too, if it was absent.
func (w *setWriter) descend(name string, p *plan, v reflect.Value, was state) {
	start := len(w.buf)
	w.open(name)
	inner := len(w.buf)
	if was == absent {
		w.member(`"."`)
	}
	self := len(w.buf)
	empty := false
	switch p.shape {
	case structure:
		empty = !w.structure(p, v, was)
	case mapping:
		w.mapping(p, v)
	default:
		w.list(p, v)
	}
	switch {
	case empty && was != zero:
		w.buf = append(w.buf[:inner], '}') // an empty structure is a leaf
	case len(w.buf) == self && was != absent:
		w.buf = w.buf[:start]
	default:
		w.buf = append(w.buf, '}')
	}
}

// structure writes the fields and reports whether there are any.
func (w *setWriter) structure(p *plan, v reflect.Value, was state) (any bool) {
	for i := range p.fields {
		f := &p.fields[i]
		of := f.of(v)
		if f.omitted(of) {
			continue
		}
		any = true
		in := absent
		if was == zero {
			in = f.zero
		}
		start := len(w.buf)
		if w.value(f.name, f.plan, of, in); f.unowned {
			w.buf = w.buf[:start]
		}
	}
	return any
}

func (w *setWriter) mapping(p *plan, v reflect.Value) {
	if texts, ok := v.Interface().(map[string]string); ok && p.elem.shape == leaf {
		for _, k := range slices.Sorted(maps.Keys(texts)) {
			w.member(quote("f:" + k))
		}
		return
	}
	keys := make([]string, 0, v.Len())
	for _, k := range v.MapKeys() {
		keys = append(keys, k.String())
	}
	slices.Sort(keys)
	keyType := v.Type().Key()
	for _, k := range keys {
		w.value(quote("f:"+k), p.elem, v.MapIndex(reflect.ValueOf(k).Convert(keyType)), absent)
	}
}

type listItem struct {
	name string
	v    reflect.Value
}

func (w *setWriter) list(p *plan, v reflect.Value) {
	items := make([]listItem, v.Len())
	for i := range items {
		items[i] = listItem{p.itemName(v.Index(i)), v.Index(i)}
		w.failed = w.failed || items[i].name == ""
	}
	slices.SortFunc(items, func(a, b listItem) int {
		c, ok := compareNames(a.name, b.name)
		w.failed = w.failed || !ok
		return c
	})
	for i := range items {
		if w.failed = w.failed || i > 0 && items[i-1].name == items[i].name; w.failed {
			return
		}
		w.value(items[i].name, p.elem, items[i].v, absent)
	}
}

// itemName is what a list item is known by, quoted as in a set, or "" if that
// is better left to the library.
func (p *plan) itemName(v reflect.Value) string {
	v, null := settle(v)
	if null {
		return ""
	}
	var buf [96]byte
	if p.shape == setList {
		name, ok := appendScalar(append(buf[:0], `"v:`...), v)
		if !ok {
			return ""
		}
		return string(append(name, '"'))
	}
	name, any, ok := append(buf[:0], `"k:{`...), false, true
	for i := range p.keys {
		k := &p.keys[i]
		of := k.field.of(v)
		omitted := k.field.omitted(of)
		if omitted && k.def == "" {
			continue
		}
		if any {
			name = append(name, ',')
		}
		any = true
		name = append(name, k.name...)
		if omitted {
			name = append(name, k.def...)
		} else if name, ok = appendScalar(name, of); !ok {
			return ""
		}
	}
	if !any {
		return ""
	}
	return string(append(name, `}"`...))
}

// appendScalar appends a value as it is in the name of an item, without
// characters that need an escape.
func appendScalar(dst []byte, v reflect.Value) ([]byte, bool) {
	v, _ = settle(v)
	switch v.Kind() {
	case reflect.String:
		s := v.String()
		for i := range len(s) {
			if c := s[i]; c < ' ' || c > '~' || c == '\\' || c == '"' || c == '<' || c == '>' || c == '&' {
				return dst, false
			}
		}
		return append(append(append(dst, `\"`...), s...), `\"`...), true
	case reflect.Bool:
		return strconv.AppendBool(dst, v.Bool()), true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(dst, v.Int(), 10), true
	}
	return dst, false
}

// differs compares a leaf with what the empty object has: null or a zero value.
func (w *setWriter) differs(p *plan, v reflect.Value, was state) bool {
	if was == zero && v.IsZero() {
		return false
	}
	if p.custom == nil && (was == null || scalar(v.Kind())) {
		return true
	}
	if p.custom == nil {
		return w.differsAsJSON(v)
	}
	now, err := p.custom.ToUnstructured(v)
	if err != nil {
		w.failed = true
		return false
	}
	if was == null {
		return now != nil
	}
	before, err := p.custom.ToUnstructured(reflect.New(v.Type()).Elem())
	w.failed = w.failed || err != nil
	return !reflect.DeepEqual(now, before)
}

// differsAsJSON compares a structure that is owned as a whole with its zero value.
func (w *setWriter) differsAsJSON(v reflect.Value) bool {
	if !v.CanAddr() {
		w.failed = true
		return false
	}
	now, err := value.NewValueReflect(v.Addr().Interface())
	before, errBefore := value.NewValueReflect(reflect.New(v.Type()).Interface())
	if err != nil || errBefore != nil {
		w.failed = true
		return false
	}
	return !value.Equals(now, before)
}
