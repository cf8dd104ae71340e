// Package listing encodes lists from stored versions, in pieces.
package listing

import (
	"bytes"
	"encoding/json"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/partial"
	"github.com/skiff-project/skiff/apiserver/reply"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/transcode"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// Protobuf is a list made of stored bytes, which are not decoded.
type Protobuf struct {
	APIVersion, Kind string
	Meta             wire.ListMeta
	Raw              func(stored []byte) []byte // an item's message
}

// Append writes the list to body. What it returns is left to be sent.
func (l Protobuf) Append(body *reply.Body, items []*store.KV) (buf []byte, err error) {
	size := 0
	for _, kv := range items {
		size += wire.ItemSize(l.Raw(kv.Value), kv.ModRevision)
	}
	buf = wire.AppendListStart(body.Buffer(size+256), l.APIVersion, l.Kind, l.Meta, size)
	for _, kv := range items {
		if buf, err = body.Spill(wire.AppendItem(buf, l.Raw(kv.Value), kv.ModRevision)); err != nil {
			return nil, err
		}
	}
	return wire.AppendListEnd(buf), nil
}

// Table is a table in JSON with each object's metadata in its row.
type Table struct {
	Head    *metav1.Table // no rows
	Version string        // of meta.k8s.io
	Each    func(items []*store.KV, f func(api.Object) error) error
	Cells   func(api.Object) []any
	Plans   *transcode.Plans
}

// Append writes the table to body. What it returns is left to be sent.
func (t Table) Append(body *reply.Body, items []*store.KV) ([]byte, error) {
	plan, err := t.Plans.For(reflect.TypeFor[metav1.PartialObjectMetadata]())
	if err != nil {
		return nil, err
	}
	buf, err := codec.AppendJSON(body.Buffer(0), t.Head)
	if err != nil {
		return nil, err
	}
	end := []byte("]}\n")
	buf = bytes.TrimSuffix(buf, end)
	begin, n := `{"cells":`, 0
	err = t.Each(items, func(obj api.Object) error {
		cells, err := json.Marshal(t.Cells(obj))
		if err != nil {
			return err
		}
		buf = append(append(append(buf, begin...), cells...), `,"object":`...)
		if buf, err = t.appendMetadata(buf, plan, items[n], obj); err != nil {
			return err
		}
		begin, n = `,{"cells":`, n+1
		buf, err = body.Spill(append(buf, '}'))
		return err
	})
	return append(buf, end...), err
}

func (t Table) appendMetadata(buf []byte, plan *transcode.Plan, kv *store.KV, obj api.Object) ([]byte, error) {
	if raw := wire.Raw(kv.Value); raw != nil {
		kind := len(buf)
		buf = append(buf, `{"kind":"PartialObjectMetadata","apiVersion":"`+partial.APIVersion(t.Version)+`"`...)
		at := len(buf)
		if out, err := plan.AppendJSON(buf, wire.MetadataOnly(raw), kv.ModRevision); err == nil {
			out[at] = ',' // for its brace
			return out, nil
		}
		buf = buf[:kind]
	}
	data, err := json.Marshal(partial.Of(t.Version, obj))
	return append(buf, data...), err
}
