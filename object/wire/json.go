package wire

import (
	"bytes"
	"strconv"
)

// StampJSON appends an object's compact JSON with resource version rv in its
// metadata, before the uid, as sorted keys have it. It reports false, having
// appended nothing, for an object without a uid.
func StampJSON(dst, object []byte, rv int64) ([]byte, bool) {
	depth, inMetadata := 0, false
	for i := 0; i < len(object); i++ {
		switch object[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 1 && inMetadata {
				return dst, false
			}
		case '"':
			end := stringEnd(object, i)
			if end+1 >= len(object) {
				return dst, false
			}
			if key := object[i+1 : end]; object[end+1] == ':' {
				switch {
				case depth == 1:
					inMetadata = string(key) == "metadata"
				case depth == 2 && inMetadata && string(key) == "uid":
					dst = append(dst, object[:i]...)
					dst = append(strconv.AppendInt(append(dst, `"resourceVersion":"`...), rv, 10), `",`...)
					return append(dst, bytes.TrimRight(object[i:], "\n")...), true
				}
			}
			i = end
		}
	}
	return dst, false
}

// stringEnd is where the JSON string that begins at i ends: the closing quote,
// or the end of the data.
func stringEnd(data []byte, i int) int {
	for i++; i < len(data) && data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i
}
