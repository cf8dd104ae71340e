// Package env computes what a container sees of its pod and its namespace through variables: the
// environment, $(NAME) expansion, and the downward API's field and resource values. It is pure
// but for the lookups handed in.
package env

import "strings"

// Expand replaces $(NAME) in s by lookup(NAME). "$$" is an escaped "$"; a reference to an unknown
// name stays as it is.
func Expand(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
			b.WriteByte(s[i+1])
			i++
		}
	}
	return b.String()
}

// ExpandAll expands every element; nil stays nil.
func ExpandAll(list []string, vars map[string]string) []string {
	if len(list) == 0 {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Expand(s, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
	}
	return out
}
