// Package wire reads and assembles the protobuf form of API objects without
// decoding them.
//
// An object on disk and on the wire is an envelope: the four bytes "k8s\0",
// then a runtime.Unknown message (apiVersion and kind, raw bytes). The raw
// bytes are the object's own message, whose field 1 is always its
// ObjectMeta. Protobuf merges repeated occurrences of a message field, and
// the last occurrence of a scalar wins. So a resourceVersion is stamped onto
// stored bytes by appending a second, tiny ObjectMeta that has nothing but
// resourceVersion set; a response is assembled by copying.
package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"unsafe"
)

// Magic begins every protobuf-encoded object.
const Magic = "k8s\x00"

// ErrMalformed is returned, wrapped, for bytes that are not what they should be.
var ErrMalformed = errors.New("malformed protobuf object")

// Protobuf tags (field number << 3 | wire type) of the messages read here.
const (
	tagUnknownType  = 1<<3 | 2 // runtime.Unknown.typeMeta
	tagUnknownRaw   = 2<<3 | 2 // runtime.Unknown.raw
	tagTypeVersion  = 1<<3 | 2 // runtime.TypeMeta.apiVersion
	tagTypeKind     = 2<<3 | 2 // runtime.TypeMeta.kind
	tagObjectMeta   = 1<<3 | 2 // field 1 of every object: its metadata
	tagMetaVersion  = 6<<3 | 2 // ObjectMeta.resourceVersion
	tagMetaLabels   = 11<<3 | 2
	tagListMeta     = 1<<3 | 2 // field 1 of every list
	tagListItems    = 2<<3 | 2 // field 2 of every list
	tagListVersion  = 2<<3 | 2 // ListMeta.resourceVersion
	tagListContinue = 3<<3 | 2 // ListMeta.continue
	tagListRemain   = 4 << 3   // ListMeta.remainingItemCount
	tagEventType    = 1<<3 | 2 // WatchEvent.type
	tagEventObject  = 2<<3 | 2 // WatchEvent.object
	tagExtensionRaw = 1<<3 | 2 // RawExtension.raw
)

// Envelope is an opened object. Its byte slice aliases the input.
type Envelope struct {
	APIVersion, Kind string
	Raw              []byte
}

// IsProtobuf reports whether data begins like an enveloped protobuf object.
func IsProtobuf(data []byte) bool { return len(data) >= 4 && string(data[:4]) == Magic }

// Open splits an enveloped object. It copies nothing but the two names.
func Open(data []byte) (Envelope, error) {
	var e Envelope
	if !IsProtobuf(data) {
		return e, fmt.Errorf("%w: no k8s envelope", ErrMalformed)
	}
	err := fields(data[4:], func(tag uint64, val []byte) error {
		switch tag {
		case tagUnknownType:
			return fields(val, func(tag uint64, val []byte) error {
				switch tag {
				case tagTypeVersion:
					e.APIVersion = string(val)
				case tagTypeKind:
					e.Kind = string(val)
				}
				return nil
			})
		case tagUnknownRaw:
			e.Raw = val
		}
		return nil
	})
	return e, err
}

// Raw returns the object message inside an envelope, or nil for anything that
// is not a well-formed envelope. It allocates nothing.
func Raw(data []byte) []byte {
	if !IsProtobuf(data) {
		return nil
	}
	for data = data[4:]; len(data) > 0; {
		tag, val, rest, ok := next(data)
		if !ok {
			return nil
		}
		if tag == tagUnknownRaw {
			return val
		}
		data = rest
	}
	return nil
}

// Message is what generated Kubernetes types offer for protobuf.
type Message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// Seal encodes an object into a fresh envelope, byte for byte as upstream's
// serializer does.
func Seal(apiVersion, kind string, m Message) ([]byte, error) {
	raw := m.Size()
	out := make([]byte, 0, envelopeSize(apiVersion, kind, raw))
	out = appendEnvelope(out, apiVersion, kind, raw)
	start := len(out)
	out = out[:start+raw]
	n, err := m.MarshalToSizedBuffer(out[start:])
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", apiVersion, kind, err)
	}
	if n != raw {
		return nil, fmt.Errorf("encode %s %s: size changed from %d to %d while encoding", apiVersion, kind, raw, n)
	}
	return appendEnvelopeEnd(out), nil
}

// AppendObject appends raw, stamped with resource version rv (none when 0),
// as an enveloped object.
func AppendObject(dst []byte, apiVersion, kind string, raw []byte, rv int64) []byte {
	n := len(raw) + stampSize(rv)
	dst = grow(dst, envelopeSize(apiVersion, kind, n))
	dst = appendEnvelope(dst, apiVersion, kind, n)
	dst = append(dst, raw...)
	dst = appendStamp(dst, rv)
	return appendEnvelopeEnd(dst)
}

// ListMeta is the metadata of a list; Remaining is absent when nil.
type ListMeta struct {
	ResourceVersion string
	Continue        string
	Remaining       *int64
}

// AppendListStart appends the beginning of an enveloped list whose items take
// size bytes, the sum of their ItemSize. They follow in order by AppendItem,
// then AppendListEnd.
func AppendListStart(dst []byte, apiVersion, kind string, meta ListMeta, size int) []byte {
	m := appendListMeta(nil, meta)
	dst = appendEnvelope(dst, apiVersion, kind, 1+uvarintSize(len(m))+len(m)+size)
	return appendBytes(dst, tagListMeta, m)
}

// ItemSize is how many bytes AppendItem appends.
func ItemSize(raw []byte, rv int64) int {
	n := len(raw) + stampSize(rv)
	return 1 + uvarintSize(n) + n
}

// AppendItem appends raw, stamped with resource version rv, as an item of a list.
func AppendItem(dst, raw []byte, rv int64) []byte {
	dst = append(dst, tagListItems)
	dst = appendUvarint(dst, uint64(len(raw)+stampSize(rv)))
	dst = append(dst, raw...)
	return appendStamp(dst, rv)
}

// AppendListEnd appends the end of a list.
func AppendListEnd(dst []byte) []byte { return appendEnvelopeEnd(dst) }

func appendListMeta(dst []byte, meta ListMeta) []byte {
	dst = appendString(dst, 1<<3|2, "")
	dst = appendString(dst, tagListVersion, meta.ResourceVersion)
	dst = appendString(dst, tagListContinue, meta.Continue)
	if meta.Remaining != nil {
		dst = append(dst, tagListRemain)
		dst = appendUvarint(dst, uint64(*meta.Remaining))
	}
	return dst
}

// AppendWatchFrame appends a length-delimited WatchEvent whose object is the
// given enveloped object.
func AppendWatchFrame(dst []byte, eventType string, object []byte) []byte {
	ext := 1 + uvarintSize(len(object)) + len(object)
	n := 1 + uvarintSize(len(eventType)) + len(eventType) + 1 + uvarintSize(ext) + ext
	dst = grow(dst, 4+n)
	dst = append(dst, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	dst = appendString(dst, tagEventType, eventType)
	dst = append(dst, tagEventObject)
	dst = appendUvarint(dst, uint64(ext))
	return appendBytes(dst, tagExtensionRaw, object)
}

// MetadataOnly returns the message of a PartialObjectMetadata holding the
// metadata of the object message raw. The result may alias raw.
func MetadataOnly(raw []byte) []byte {
	var out []byte
	found := 0
	for data := raw; len(data) > 0; {
		tag, _, rest, ok := next(data)
		if !ok {
			break
		}
		if tag == tagObjectMeta {
			whole := data[:len(data)-len(rest)]
			if found++; found == 1 {
				out = whole
			} else {
				out = append(bytes.Clone(out), whole...)
			}
		}
		data = rest
	}
	return out
}

// Pair is a key with its value.
type Pair struct{ Key, Value string }

// Labels returns the labels of the object message raw, in stored (sorted)
// order. The strings alias raw, which must never change.
func Labels(raw []byte) ([]Pair, error) {
	var out []Pair
	err := fields(raw, func(tag uint64, meta []byte) error {
		if tag != tagObjectMeta {
			return nil
		}
		return fields(meta, func(tag uint64, entry []byte) error {
			if tag != tagMetaLabels {
				return nil
			}
			var p Pair
			if err := fields(entry, func(tag uint64, val []byte) error {
				switch tag {
				case 1<<3 | 2:
					p.Key = alias(val)
				case 2<<3 | 2:
					p.Value = alias(val)
				}
				return nil
			}); err != nil {
				return err
			}
			out = append(out, p)
			return nil
		})
	})
	return out, err
}

// Texts finds strings in the object message raw. Each of paths, at most 64,
// has the numbers of the fields that lead to one; found is called with its
// index for each that is there, and again when it occurs again: the last is
// meant. The strings alias raw, which must never change.
func Texts(raw []byte, paths [][]uint64, found func(path int, text string)) {
	texts(raw, paths, 0, 1<<len(paths)-1, found)
}

// texts looks for those paths whose bits are set, of which depth numbers led here.
func texts(raw []byte, paths [][]uint64, depth int, set uint64, found func(int, string)) {
	for len(raw) > 0 {
		tag, val, rest, ok := next(raw)
		if !ok {
			return
		}
		raw = rest
		deeper := uint64(0)
		for left := set; left != 0; left &= left - 1 {
			i := bits.TrailingZeros64(left)
			switch p := paths[i]; {
			case p[depth]<<3|2 != tag:
			case len(p) == depth+1:
				found(i, alias(val))
			default:
				deeper |= 1 << i
			}
		}
		if deeper != 0 {
			texts(val, paths, depth+1, deeper, found)
		}
	}
}

func alias(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return unsafe.String(&b[0], len(b))
}

// fields calls f for each field of a message; val is nil but for
// length-delimited fields.
func fields(data []byte, f func(tag uint64, val []byte) error) error {
	for len(data) > 0 {
		tag, val, rest, ok := next(data)
		if !ok {
			return ErrMalformed
		}
		if err := f(tag, val); err != nil {
			return err
		}
		data = rest
	}
	return nil
}

// next splits the first field off a message.
func next(data []byte) (tag uint64, val, rest []byte, ok bool) {
	tag, n := uvarint(data)
	if n <= 0 {
		return 0, nil, nil, false
	}
	data = data[n:]
	switch tag & 7 {
	case 0:
		_, n := uvarint(data)
		if n <= 0 {
			return 0, nil, nil, false
		}
		return tag, nil, data[n:], true
	case 1:
		if len(data) < 8 {
			return 0, nil, nil, false
		}
		return tag, nil, data[8:], true
	case 2:
		size, n := uvarint(data)
		if n <= 0 || size > uint64(len(data)-n) {
			return 0, nil, nil, false
		}
		return tag, data[n : n+int(size)], data[n+int(size):], true
	case 5:
		if len(data) < 4 {
			return 0, nil, nil, false
		}
		return tag, nil, data[4:], true
	}
	return 0, nil, nil, false
}

func uvarint(data []byte) (uint64, int) {
	if len(data) > 0 && data[0] < 0x80 {
		return uint64(data[0]), 1
	}
	var v uint64
	for i, b := range data {
		if i == 10 || i == 9 && b > 1 {
			return 0, -1
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}

func uvarintSize(n int) int { return (bits.Len64(uint64(n)|1) + 6) / 7 }

func appendUvarint(dst []byte, v uint64) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func appendString(dst []byte, tag byte, s string) []byte {
	dst = append(dst, tag)
	dst = appendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendBytes(dst []byte, tag byte, b []byte) []byte {
	dst = append(dst, tag)
	dst = appendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func decimalSize(v int64) int {
	n := 1
	for v >= 10 {
		v /= 10
		n++
	}
	return n
}

// stampSize is the number of bytes appendStamp appends: an ObjectMeta with
// only resourceVersion, always below 128 bytes.
func stampSize(rv int64) int {
	if rv == 0 {
		return 0
	}
	return 4 + decimalSize(rv)
}

func appendStamp(dst []byte, rv int64) []byte {
	if rv == 0 {
		return dst
	}
	d := decimalSize(rv)
	dst = append(dst, tagObjectMeta, byte(2+d), tagMetaVersion, byte(d))
	return strconv.AppendInt(dst, rv, 10)
}

func typeMetaSize(apiVersion, kind string) int {
	return 2 + uvarintSize(len(apiVersion)) + len(apiVersion) + uvarintSize(len(kind)) + len(kind)
}

func envelopeSize(apiVersion, kind string, raw int) int {
	t := typeMetaSize(apiVersion, kind)
	return len(Magic) + 1 + uvarintSize(t) + t + 1 + uvarintSize(raw) + raw + 4
}

func appendEnvelope(dst []byte, apiVersion, kind string, raw int) []byte {
	dst = append(dst, Magic...)
	dst = append(dst, tagUnknownType)
	dst = appendUvarint(dst, uint64(typeMetaSize(apiVersion, kind)))
	dst = appendString(dst, tagTypeVersion, apiVersion)
	dst = appendString(dst, tagTypeKind, kind)
	dst = append(dst, tagUnknownRaw)
	return appendUvarint(dst, uint64(raw))
}

// appendEnvelopeEnd appends the two empty strings (content encoding and type)
// that upstream always writes.
func appendEnvelopeEnd(dst []byte) []byte { return append(dst, 3<<3|2, 0, 4<<3|2, 0) }

func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	out := make([]byte, len(dst), len(dst)+n)
	copy(out, dst)
	return out
}

// Without returns a copy of a message that lacks the field at path (field
// numbers, each but the last of a message field, wherever it occurs).
func Without(msg []byte, path ...uint64) ([]byte, error) {
	out := make([]byte, 0, len(msg))
	for len(msg) > 0 {
		tag, val, rest, ok := next(msg)
		if !ok {
			return nil, ErrMalformed
		}
		whole := msg[:len(msg)-len(rest)]
		switch msg = rest; {
		case tag>>3 != path[0]:
			out = append(out, whole...)
		case len(path) > 1:
			inner, err := Without(val, path[1:]...)
			if err != nil {
				return nil, err
			}
			out = appendUvarint(out, tag)
			out = appendUvarint(out, uint64(len(inner)))
			out = append(out, inner...)
		}
	}
	return out, nil
}
