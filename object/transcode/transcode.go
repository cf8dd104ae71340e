package transcode

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ErrMalformed is returned, wrapped, for bytes that are not the type's.
// Decoding them tells more.
var ErrMalformed = errors.New("malformed protobuf object")

// writer holds what a call needs; it is used again.
type writer struct {
	slots   []slot
	entries []entry
	version []byte // resourceVersion of the object, until it is written
	depth   int
}

// maxDepth bounds messages within messages.
const maxDepth = 1000

// slot is what a message has of one field.
type slot struct {
	n     int    // occurrences
	first int    // offset of the first
	num   uint64 // the last one's number
	val   []byte // or bytes
}

type entry struct {
	key []byte
	val slot
}

var writers = sync.Pool{New: func() any { return new(writer) }}

// AppendJSON appends the JSON of an object, without kind and apiVersion, given
// its protobuf message and its resource version (none when 0).
func (p *Plan) AppendJSON(dst, raw []byte, resourceVersion int64) ([]byte, error) {
	w := writers.Get().(*writer)
	defer writers.Put(w)
	w.slots, w.entries, w.version, w.depth = w.slots[:0], w.entries[:0], nil, 0
	if resourceVersion != 0 {
		w.version = strconv.AppendInt(nil, resourceVersion, 10)
	}
	return w.object(dst, p.root, raw)
}

func (w *writer) object(dst []byte, m *message, data []byte) ([]byte, error) {
	dst = append(dst, '{')
	dst, _, err := w.fields(dst, m, data, true)
	return append(dst, '}'), err
}

// fields appends a message's fields; first says that none stands before them.
func (w *writer) fields(dst []byte, m *message, data []byte, first bool) (_ []byte, _ bool, err error) {
	if w.depth++; w.depth > maxDepth {
		return dst, first, fmt.Errorf("%w: nested too deeply", ErrMalformed)
	}
	base := len(w.slots)
	w.slots = slices.Grow(w.slots, len(m.fields))[:base+len(m.fields)]
	clear(w.slots[base:])
	defer func() { w.slots = w.slots[:base]; w.depth-- }()
	if err := m.find(w.slots[base:], data); err != nil {
		return dst, first, err
	}
	slots := w.slots[base:] // messages within may move w.slots, but do not change these
	if m.version >= 0 && w.version != nil {
		slots[m.version] = slot{n: 1, val: w.version}
		w.version = nil
	}
	for i := range m.fields {
		f, s := &m.fields[i], &slots[i]
		if s.n == 0 && f.absent {
			continue
		}
		if f.inline {
			if dst, first, err = w.fields(dst, f.msg, s.val, first); err != nil {
				return dst, first, err
			}
			continue
		}
		if f.omit && f.empty(s) || f.omitZero && instant(s.val).IsZero() {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, f.key...)
		if dst, err = w.field(dst, f, *s, data); err != nil {
			return dst, first, err
		}
	}
	return dst, first, nil
}

// find notes what data has of each field.
func (m *message) find(slots []slot, data []byte) error {
	for off := 0; off < len(data); {
		number, s, next, err := scan(data, off)
		if err != nil {
			return err
		}
		if number < uint64(len(m.byTag)) && m.byTag[number] >= 0 {
			f, have := &m.fields[m.byTag[number]], &slots[m.byTag[number]]
			switch {
			case s.n != int(f.wire()):
				return fmt.Errorf("%w: wrong wire type of %s", ErrMalformed, f.key)
			case have.n == 0:
				have.first = off
			case f.form == formMessage && !f.repeated: // protobuf merges them
				s.val = append(slices.Clone(have.val), s.val...)
			case !f.repeated && (f.form == formItems || f.form > formMicroTime): // decoding knows
				return fmt.Errorf("%w: %s twice", ErrMalformed, f.key)
			}
			have.n++
			have.num, have.val = s.num, s.val
		}
		off = next
	}
	return nil
}

// scan reads the field at off: its number, its value (with the wire type in n) and where the next one is.
func scan(data []byte, off int) (number uint64, s slot, next int, err error) {
	if off+1 < len(data) { // mostly: bytes, of a small number and length
		tag, n := data[off], int(data[off+1])
		if next = off + 2 + n; tag < 0x80 && tag >= 1<<3 && tag&7 == 2 && n < 0x80 && next <= len(data) {
			return uint64(tag >> 3), slot{n: 2, val: data[off+2 : next : next]}, next, nil
		}
	}
	tag, off := varint(data, off)
	if off < 0 || tag>>3 == 0 {
		return 0, s, 0, ErrMalformed
	}
	s.n = int(tag & 7)
	switch s.n {
	case 0:
		s.num, off = varint(data, off)
	case 1:
		off += 8
	case 2:
		var n uint64
		if n, off = varint(data, off); off >= 0 && n <= uint64(len(data)-off) {
			s.val = data[off : off+int(n) : off+int(n)]
			off += int(n)
		} else {
			off = -1
		}
	case 5:
		off += 4
	default:
		off = -1
	}
	if off < 0 || off > len(data) {
		return 0, s, 0, ErrMalformed
	}
	return tag >> 3, s, off, nil
}

// varint reads a number at off and returns what follows it, -1 for none.
func varint(data []byte, off int) (v uint64, next int) {
	for shift := 0; shift < 64 && off < len(data); shift += 7 {
		b := data[off]
		off++
		if v |= uint64(b&0x7f) << shift; b < 0x80 {
			return v, off
		}
	}
	return 0, -1
}

// empty is what omitempty leaves out.
func (f *field) empty(s *slot) bool {
	switch {
	case s.n == 0:
		return f.absent
	case f.pointer || f.repeated:
		return false
	case f.form == formString || f.form == formBytes:
		return len(s.val) == 0
	case f.form == formBool || f.form == formInt:
		return s.num == 0
	case f.form == formInt32:
		return int32(s.num) == 0 //nolint:gosec // as it is decoded
	}
	return false
}

func (w *writer) field(dst []byte, f *field, s slot, data []byte) ([]byte, error) {
	if s.n == 0 && (f.pointer || f.repeated || f.form == formMap || f.form == formBytes) {
		return append(dst, "null"...), nil
	}
	switch {
	case f.repeated:
		return w.list(dst, &f.value, s.n, data, s.first)
	case f.form == formMap:
		return w.mapping(dst, f.elem, s.n, data, s.first)
	}
	return w.value(dst, &f.value, s)
}

// list appends the n occurrences, from first on, of the field that is there.
func (w *writer) list(dst []byte, v *value, n int, data []byte, first int) (_ []byte, err error) {
	dst = append(dst, '[')
	for want, off := uint64(0), first; n > 0; {
		number, s, next, err := scan(data, off)
		if err != nil {
			return dst, err
		}
		if off = next; want == 0 {
			want = number
		} else if number != want {
			continue
		} else {
			dst = append(dst, ',')
		}
		if dst, err = w.value(dst, v, s); err != nil {
			return dst, err
		}
		n--
	}
	return append(dst, ']'), nil
}

// mapping appends the n entries of a map, from first on, in the order of their keys.
func (w *writer) mapping(dst []byte, v *value, n int, data []byte, first int) (_ []byte, err error) {
	base := len(w.entries)
	defer func() { w.entries = w.entries[:base] }()
	for want, off := uint64(0), first; n > 0; {
		number, s, next, err := scan(data, off)
		if err != nil {
			return dst, err
		}
		if off = next; want != 0 && number != want {
			continue
		}
		want = number
		n--
		e, err := v.entry(s.val)
		if err != nil {
			return dst, err
		}
		w.entries = append(w.entries, e)
	}
	list := w.entries[base:]
	byKey := func(a, b entry) int { return bytes.Compare(a.key, b.key) }
	if !slices.IsSortedFunc(list, byKey) {
		slices.SortStableFunc(list, byKey)
	}
	dst = append(dst, '{')
	wrote := false
	for i, e := range list {
		if i+1 < len(list) && bytes.Equal(e.key, list[i+1].key) {
			continue // the last one counts
		}
		if wrote {
			dst = append(dst, ',')
		}
		wrote = true
		dst = append(appendString(dst, e.key), ':')
		if dst, err = w.value(dst, v, e.val); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// entry reads a map's entry: its key is field 1, its value field 2.
func (v *value) entry(data []byte) (e entry, err error) {
	for off := 0; off < len(data); {
		number, s, next, err := scan(data, off)
		if err != nil {
			return e, err
		}
		switch off = next; {
		case number == 1 && s.n == 2:
			e.key = s.val
		case number == 2 && s.n == int(v.wire()):
			e.val = s
		case number <= 2:
			return e, ErrMalformed
		}
	}
	return e, nil
}

// value appends one value; that of an empty slot is the type's zero.
func (w *writer) value(dst []byte, v *value, s slot) ([]byte, error) {
	switch v.form {
	case formMessage:
		return w.object(dst, v.msg, s.val)
	case formString:
		return appendString(dst, s.val), nil
	case formBytes:
		dst = base64.StdEncoding.AppendEncode(append(dst, '"'), s.val)
		return append(dst, '"'), nil
	case formBool:
		return strconv.AppendBool(dst, s.num != 0), nil
	case formInt:
		return strconv.AppendInt(dst, int64(s.num), 10), nil //nolint:gosec // as it is decoded
	case formInt32:
		return strconv.AppendInt(dst, int64(int32(s.num)), 10), nil //nolint:gosec // as it is decoded
	case formItems:
		return w.items(dst, v.elem, s.val)
	case formTime, formMicroTime:
		return appendTime(dst, v.form, s.val)
	}
	return appendKnown(dst, v.form, s.val)
}

// items appends a message that is a list.
func (w *writer) items(dst []byte, elem *value, data []byte) ([]byte, error) {
	n, first := 0, 0
	for off := 0; off < len(data); {
		number, s, next, err := scan(data, off)
		if err != nil || number == 1 && s.n != int(elem.wire()) {
			return dst, ErrMalformed
		}
		if number == 1 {
			if n++; n == 1 {
				first = off
			}
		}
		off = next
	}
	return w.list(dst, elem, n, data, first)
}

// numbers reads fields 1 and 2 of a small message.
func numbers(data []byte) (a, b slot, err error) {
	for off := 0; off < len(data); {
		var number uint64
		var s slot
		if number, s, off, err = scan(data, off); err != nil {
			return a, b, err
		}
		switch number {
		case 1:
			a = s
		case 2:
			b = s
		}
	}
	return a, b, nil
}

// instant is the time a Timestamp tells; that of none is zero.
func instant(data []byte) time.Time {
	if len(data) == 0 {
		return time.Time{}
	}
	seconds, nanos, _ := numbers(data)
	return time.Unix(int64(seconds.num), int64(int32(nanos.num))).UTC() //nolint:gosec // as it is decoded
}

func appendTime(dst []byte, f form, data []byte) ([]byte, error) {
	t := instant(data)
	layout := time.RFC3339
	switch {
	case t.IsZero():
		return append(dst, "null"...), nil
	case f == formMicroTime:
		layout = metav1.RFC3339Micro
	}
	return append(t.AppendFormat(append(dst, '"'), layout), '"'), nil
}

// appendKnown appends what is written by methods of its own.
func appendKnown(dst []byte, f form, data []byte) ([]byte, error) {
	if f == formIntOrString {
		return appendIntOrString(dst, data)
	}
	s, _, err := numbers(data)
	if err != nil || len(data) > 0 && s.n != 2 && (f != formDuration || s.n != 0) {
		return dst, ErrMalformed
	}
	switch f {
	case formDuration:
		return appendString(dst, []byte(time.Duration(s.num).String())), nil //nolint:gosec // as it is decoded
	case formQuantity:
		if len(s.val) == 0 {
			return append(dst, `"0"`...), nil
		}
		return appendString(dst, s.val), nil
	}
	if len(s.val) == 0 {
		return append(dst, "null"...), nil
	}
	if f == formFields && plainFields(s.val) {
		return append(dst, s.val...), nil
	}
	// As encoding/json treats what another wrote.
	buf := bytes.NewBuffer(make([]byte, 0, len(s.val)))
	if err := json.Compact(buf, s.val); err != nil {
		return dst, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	out := bytes.NewBuffer(dst)
	json.HTMLEscape(out, buf.Bytes())
	return out.Bytes(), nil
}

// appendIntOrString: field 1 is the type, 2 the number, 3 the string.
func appendIntOrString(dst, data []byte) ([]byte, error) {
	var kind, num uint64
	var str []byte
	for off := 0; off < len(data); {
		number, s, next, err := scan(data, off)
		if err != nil {
			return dst, err
		}
		switch off = next; number {
		case 1:
			kind = s.num
		case 2:
			num = s.num
		case 3:
			str = s.val
		}
	}
	switch kind {
	case 0:
		return strconv.AppendInt(dst, int64(int32(num)), 10), nil //nolint:gosec // as it is decoded
	case 1:
		return appendString(dst, str), nil
	}
	return dst, fmt.Errorf("%w: impossible IntOrString.Type %d", ErrMalformed, min(kind, math.MaxInt32))
}
