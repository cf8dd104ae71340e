package transcode

import "unicode/utf8"

const hex = "0123456789abcdef"

// plain are the bytes a JSON string shows as they are.
var plain = func() (t [256]bool) {
	for b := byte(0x20); b < utf8.RuneSelf; b++ {
		t[b] = b != '"' && b != '\\' && b != '<' && b != '>' && b != '&'
	}
	return t
}()

// appendString appends s as a JSON string as encoding/json does: what could
// mean something in HTML is escaped, and bytes that are no UTF-8 are replaced.
func appendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		b := s[i]
		if plain[b] {
			i++
			continue
		}
		if b < utf8.RuneSelf {
			dst = append(dst, s[start:i]...)
			switch b {
			case '\\', '"':
				dst = append(dst, '\\', b)
			case '\b':
				dst = append(dst, '\\', 'b')
			case '\f':
				dst = append(dst, '\\', 'f')
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[b>>4], hex[b&0xf])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(append(dst, s[start:i]...), `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			dst = append(append(dst, s[start:i]...), '\\', 'u', '2', '0', '2', hex[r&0xf])
		default:
			i += size
			continue
		}
		i += size
		start = i
	}
	return append(append(dst, s[start:]...), '"')
}

// plainFields reports that s is a set of managed fields as it is mostly
// written, which is JSON that needs no change: objects of objects without
// space between, keys without special characters.
func plainFields(s []byte) bool {
	depth := 0
	for i := 0; i < len(s); {
		if s[i] != '{' {
			return false
		}
		depth++
		i++
		if i < len(s) && s[i] != '}' {
			if i = fieldKey(s, i); i < 0 {
				return false
			}
			continue
		}
		for i < len(s) && s[i] == '}' {
			depth--
			i++
		}
		switch {
		case depth <= 0:
			return depth == 0 && i == len(s)
		case i == len(s) || s[i] != ',':
			return false
		}
		if i = fieldKey(s, i+1); i < 0 {
			return false
		}
	}
	return false
}

// fieldKey reads `"key":` at i and returns what follows it, -1 if that is not there.
func fieldKey(s []byte, i int) int {
	if i >= len(s) || s[i] != '"' {
		return -1
	}
	for i++; i < len(s) && (plain[s[i]] || s[i] == '\\'); i++ {
		if s[i] == '\\' { // keys hold JSON of their own: k:{\"name\":\"x\"}
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return -1
			}
		}
	}
	if i+1 >= len(s) || s[i] != '"' || s[i+1] != ':' {
		return -1
	}
	return i + 2
}
