package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// mutant is one change of a valid object.
type mutant struct {
	path  []any // field names and indexes; an index one past the end appends
	value any   // removed{} to remove
}

type removed struct{}

func (m mutant) String() string {
	if m.value == (removed{}) {
		return pathText(m.path) + " removed"
	}
	return pathText(m.path) + "=" + shorten(show(m.value))
}

func shorten(s string) string {
	if len(s) > 60 {
		return s[:50] + fmt.Sprintf("…%d", len(s))
	}
	return s
}

func pathText(path []any) string {
	var b strings.Builder
	for _, p := range path {
		switch p := p.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", p)
		case string:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(p)
		}
	}
	return b.String()
}

// apply returns the object with the change made; parents that are missing are made.
func (m mutant) apply(object any) any { return put(clone(object), m.path, m.value) }

func put(v any, path []any, value any) any {
	if len(path) == 0 {
		return value
	}
	switch step := path[0].(type) {
	case string:
		o, ok := v.(map[string]any)
		if !ok {
			o = map[string]any{}
		}
		if len(path) == 1 && value == (removed{}) {
			delete(o, step)
		} else {
			o[step] = put(o[step], path[1:], value)
		}
		return o
	case int:
		l, _ := v.([]any)
		if len(path) == 1 && value == (removed{}) {
			return slices.Delete(l, min(step, len(l)), min(step+1, len(l)))
		}
		for len(l) <= step {
			l = append(l, nil)
		}
		l[step] = put(l[step], path[1:], value)
		return l
	}
	return v
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, x := range v {
			m[k] = clone(x)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = clone(v[i])
		}
		return l
	}
	return v
}

// schemas are the OpenAPI v3 components of one group version.
type schemas map[string]any

// resolve follows references.
func (s schemas) resolve(v any) map[string]any {
	for range 10 {
		m, _ := v.(map[string]any)
		if all, ok := m["allOf"].([]any); ok && len(all) == 1 {
			m, _ = all[0].(map[string]any)
		}
		ref, ok := m["$ref"].(string)
		if !ok {
			return m
		}
		v = s[strings.TrimPrefix(ref, "#/components/schemas/")]
	}
	return nil
}

// kind finds the schema of a kind.
func (s schemas) kind(group, version, kind string) map[string]any {
	for _, v := range s {
		m, _ := v.(map[string]any)
		gvks, _ := m["x-kubernetes-group-version-kind"].([]any)
		for _, g := range gvks {
			if g, _ := g.(map[string]any); len(gvks) == 1 && g["group"] == group && g["version"] == version && g["kind"] == kind {
				return m
			}
		}
	}
	return nil
}

// mutants derives changes of an object from its schema: each field that it has,
// or could have, removed, emptied, of a wrong type, out of any range, badly
// formed. Absent is how deep it reaches into fields that the object does not
// have; below are the parts to change ("spec", "status", …).
func (s schemas) mutants(schema map[string]any, object map[string]any, absent int, below ...string) []mutant {
	var list []mutant
	props, _ := schema["properties"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(props)) {
		if slices.Contains(below, name) {
			have, ok := object[name]
			s.walk(props[name], []any{name}, have, ok, absent, &list)
		}
	}
	return list
}

func (s schemas) walk(schema any, path []any, have any, present bool, reach int, list *[]mutant) {
	if present {
		*list = append(*list, mutant{path, removed{}})
	} else if reach--; reach < 0 {
		return
	}
	node := s.resolve(schema)
	add := func(values ...any) {
		for _, v := range values {
			*list = append(*list, mutant{path, v})
		}
	}
	switch kind, _ := node["type"].(string); {
	case node["format"] == "int-or-string" || node["oneOf"] != nil:
		add("Bad Value!", "150%", -1, true)
	case kind == "string" && node["format"] == "date-time":
		add("yesterday", "2026-01-02T03:04:05Z", 1)
	case kind == "string" && node["format"] == "byte":
		add("%%%", "YWJj")
	case kind == "string":
		add("", "Bad Value!", strings.Repeat("a", 300), 5)
	case kind == "integer" || kind == "number":
		add(-1, 0, 70000, "5")
	case kind == "boolean":
		add(true, "true")
	case kind == "array":
		add([]any{}, "x")
		items, _ := have.([]any)
		if len(items) > 0 {
			add(append(slices.Clone(items), items[0])) // a duplicate
		}
		var first any
		if len(items) > 0 {
			first = items[0]
		}
		s.walk(node["items"], append(slices.Clone(path), 0), first, len(items) > 0, reach, list)
		for i := 1; i < len(items); i++ {
			s.walk(node["items"], append(slices.Clone(path), i), items[i], true, reach, list)
		}
	case node["additionalProperties"] != nil:
		add(map[string]any{}, "x")
		more, _ := have.(map[string]any)
		key := "a"
		if len(more) > 0 {
			key = slices.Sorted(maps.Keys(more))[0]
		}
		v, ok := more[key]
		s.walk(node["additionalProperties"], append(slices.Clone(path), key), v, ok, reach, list)
		s.walk(node["additionalProperties"], append(slices.Clone(path), "Bad Key!"), nil, false, min(reach, 1), list)
	case node["properties"] != nil:
		add(map[string]any{}, "x")
		fields, _ := have.(map[string]any)
		props := node["properties"].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(props)) {
			v, ok := fields[name]
			s.walk(props[name], append(slices.Clone(path), name), v, ok, reach, list)
		}
	default:
		add("x", 1, map[string]any{"a": 1})
	}
}

// parsePath reads what pathText writes.
func parsePath(text string) []any {
	var path []any
	for part := range strings.SplitSeq(text, ".") {
		name, rest, _ := strings.Cut(part, "[")
		if name != "" {
			path = append(path, name)
		}
		for _, index := range strings.FieldsFunc(rest, func(r rune) bool { return r == '[' || r == ']' }) {
			i, _ := strconv.Atoi(index)
			path = append(path, i)
		}
	}
	return path
}

func marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // values read from JSON
	}
	return data
}
