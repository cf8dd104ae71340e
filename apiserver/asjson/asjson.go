// Package asjson gives the JSON of stored versions without decoding them.
package asjson

import (
	"bytes"
	"reflect"
	"sync"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/transcode"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// Writer appends the JSON of a version in the clear, stamped with its
// resource version; fresh says that this server wrote it just now. It reports
// false, having appended nothing, where the version must be decoded. Safe for
// concurrent use.
type Writer func(dst []byte, kv *store.KV, resourceVersion int64, fresh bool) (out []byte, ok bool)

// Never is a Writer that always declines.
func Never(dst []byte, _ *store.KV, _ int64, _ bool) ([]byte, bool) { return dst, false }

// FromProtobuf writes objects of newObject's type, without kind and
// apiVersion. Its plan is made when first asked for.
func FromProtobuf(plans *transcode.Plans, newObject func() api.Object) Writer {
	plan := sync.OnceValue(func() *transcode.Plan {
		p, _ := plans.For(reflect.TypeOf(newObject()).Elem()) // without one they are decoded
		return p
	})
	return func(dst []byte, kv *store.KV, resourceVersion int64, _ bool) ([]byte, bool) {
		raw := wire.Raw(kv.Value)
		if raw == nil || plan() == nil {
			return dst, false
		}
		out, err := plan().AppendJSON(dst, raw, resourceVersion)
		if err != nil { // decoding says better what is wrong
			return dst, false
		}
		return out, true
	}
}

// Stored writes custom resources, which are stored as JSON. What reading does
// to an object (defaults, what the schema does not have any more) is tried
// once for each version; if it changes nothing, the stored bytes are it. A
// fresh version is shown as it was made.
func Stored(c api.Codec, apiVersion string) Writer {
	var unchanged wire.Question
	begin := []byte(`{"apiVersion":"` + apiVersion + `",`) // keys are sorted
	return func(dst []byte, kv *store.KV, resourceVersion int64, fresh bool) ([]byte, bool) {
		attrs, ok := kv.Attrs.(*wire.Attrs)
		if !ok || !bytes.HasPrefix(kv.Value, begin) || !fresh && !attrs.Answer(&unchanged, func() bool { return rereads(c, kv.Value) }) {
			return dst, false
		}
		return wire.StampJSON(dst, kv.Value, resourceVersion)
	}
}

func rereads(c api.Codec, value []byte) bool {
	obj, err := c.Decode(value)
	if err != nil {
		return false
	}
	data, err := codec.AppendJSON(nil, obj)
	return err == nil && bytes.Equal(bytes.TrimSpace(data), bytes.TrimSpace(value))
}
