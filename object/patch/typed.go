package patch

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
)

// maxTyped bounds the patches that Typed takes, so that its result needs no bound of its own.
const maxTyped = 64 << 10

// Typed applies a merge patch or, if strategic is set, a strategic one to obj
// in place: most patches write a few labels or a status, and only those parts
// go through a document. It reports false, with obj half changed, for what it
// leaves to Merge and Strategic on a fresh object: whatever is not plain, and
// all that is wrong, for they have the words for it. obj is a pointer to a Go
// structure of which every part survives a way through JSON.
func Typed(obj runtime.Object, patch []byte, strategic bool) bool {
	v := reflect.ValueOf(obj).Elem()
	if v.Kind() != reflect.Struct || len(patch) > maxTyped {
		return false
	}
	if strict, err := kjson.UnmarshalStrict(patch, &map[string]any{}); err != nil || len(strict) > 0 {
		return false
	}
	p := patcher{strategic}
	return p.structure(v, patch, true)
}

type patcher struct{ strategic bool }

// structure applies a patch to a structure, or changes nothing of it and reports false.
func (p patcher) structure(v reflect.Value, patch []byte, root bool) bool {
	var keys map[string]json.RawMessage
	if json.Unmarshal(patch, &keys) != nil || keys == nil {
		return false
	}
	rest := map[string]json.RawMessage{}
	for name, raw := range keys {
		_, tag, ok := fieldOf(v, name)
		list := strings.HasPrefix(name, "$setElementOrder/") || strings.HasPrefix(name, "$deleteFromPrimitiveList/")
		switch {
		case root && (!ok || name == "kind" || name == "apiVersion"):
			return false
		case !ok && !list: // a directive about all of the structure, or a mistake
			return p.document(v, keys)
		case !ok, p.strategic && tag.Get("patchStrategy") != "":
			rest[name] = raw
		}
	}
	next := reflect.New(v.Type()).Elem()
	next.Set(v)
	for name, raw := range keys {
		if rest[name] != nil {
			continue
		}
		if field, _, _ := fieldOf(next, name); !p.value(field, raw) {
			rest[name] = raw
		}
	}
	if len(rest) > 0 && (root || !p.document(next, rest)) {
		return false
	}
	v.Set(next)
	return true
}

// value applies a patch to a value, or changes nothing and reports false.
func (p patcher) value(v reflect.Value, raw json.RawMessage) bool {
	switch {
	case string(raw) == "null":
		v.SetZero()
		return true
	case raw[0] == '{':
		switch at := reflect.Indirect(v); {
		case !at.IsValid(), reflect.PointerTo(at.Type()).Implements(reflect.TypeFor[json.Unmarshaler]()):
		case v.Kind() == reflect.Struct:
			return p.structure(v, raw, false)
		case at.Kind() == reflect.Struct:
			next := reflect.New(at.Type())
			next.Elem().Set(at)
			if !p.structure(next.Elem(), raw, false) {
				return false
			}
			v.Set(next)
			return true
		case v.Type() == reflect.TypeFor[map[string]string]():
			return texts(v, raw)
		}
		return false
	case raw[0] == '[' && (p.strategic || bytes.Contains(raw, []byte("null"))): // which are taken out at depth
		return false
	}
	next := reflect.New(v.Type())
	if strict, err := kjson.UnmarshalStrict(raw, next.Interface()); err != nil || len(strict) > 0 {
		return false
	}
	v.Set(next.Elem())
	return true
}

// texts applies a patch to labels and the like.
func texts(v reflect.Value, raw json.RawMessage) bool {
	var patch map[string]*string
	if json.Unmarshal(raw, &patch) != nil {
		return false
	}
	old := v.Interface().(map[string]string)
	next := make(map[string]string, len(old)+len(patch))
	for k, s := range old {
		next[k] = s
	}
	for k, s := range patch {
		switch {
		case strings.HasPrefix(k, "$"):
			return false
		case s == nil:
			delete(next, k)
		default:
			next[k] = *s
		}
	}
	v.Set(reflect.ValueOf(next))
	return true
}

// document applies a patch to a structure by way of its document.
func (p patcher) document(v reflect.Value, patch map[string]json.RawMessage) bool {
	raw, err := json.Marshal(patch)
	if err != nil {
		return false
	}
	next := reflect.New(v.Type())
	if p.strategic {
		m := map[string]any{}
		doc, err := runtime.DefaultUnstructuredConverter.ToUnstructured(v.Addr().Interface())
		if err != nil || kjson.UnmarshalCaseSensitivePreserveInts(raw, &m) != nil {
			return false
		}
		merged, err := strategicMerge(doc, m, next.Interface())
		if err != nil || runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, next.Interface(), true) != nil {
			return false
		}
		v.Set(next.Elem())
		return true
	}
	doc, err := json.Marshal(v.Addr().Interface())
	if err != nil {
		return false
	}
	merged, err := jsonpatch.MergePatch(doc, raw)
	if err != nil {
		return false
	}
	if strict, err := kjson.UnmarshalStrict(merged, next.Interface()); err != nil || len(strict) > 0 {
		return false
	}
	v.Set(next.Elem())
	return true
}

// fieldOf finds a structure's field by its name in JSON.
func fieldOf(v reflect.Value, name string) (reflect.Value, reflect.StructTag, bool) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case tag == name && name != "" && tag != "-":
			return v.Field(i), f.Tag, true
		case tag == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			if in, tag, ok := fieldOf(v.Field(i), name); ok {
				return in, tag, true
			}
		}
	}
	return reflect.Value{}, "", false
}
