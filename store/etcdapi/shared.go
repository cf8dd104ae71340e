package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/skiff-project/skiff/store"
)

// shared is a watch response in its encoded form, but for the watch's ID:
// every watch of the stream that has the same events sends the same bytes.
// Protobuf lets the ID come last.
type shared struct {
	of     store.Batch
	view   eventView
	events []*mvccpb.Event // those the watch wants
	data   mem.SliceBuffer
}

// is reports whether these are the events of a batch in a view.
func (s *shared) is(b store.Batch, view eventView) bool {
	return s.of.Revision == b.Revision && s.view == view && len(s.of.Events) == len(b.Events) && &s.of.Events[0] == &b.Events[0]
}

// share encodes what a view shows of a batch that is not empty.
func share(b store.Batch, view eventView, header *pb.ResponseHeader) (shared, error) {
	s := shared{of: b, view: view}
	for _, ev := range b.Events {
		if ev.Type == store.EventPut && view.noPut || ev.Type == store.EventDelete && view.noDelete {
			continue
		}
		out := &mvccpb.Event{Kv: toPB(ev.KV)}
		if ev.Type == store.EventDelete {
			out.Type = mvccpb.Event_DELETE
		}
		if view.prev {
			out.PrevKv = toPB(ev.Prev)
		}
		s.events = append(s.events, out)
	}
	if s.events == nil {
		return s, nil
	}
	var err error
	s.data, err = proto.Marshal(&pb.WatchResponse{Header: header, Events: s.events})
	return s, err
}

// encodeID returns the watch ID as the last field of a response.
func encodeID(id int64) mem.Buffer {
	const watchID = 2
	return mem.SliceBuffer(protowire.AppendVarint(protowire.AppendTag(nil, watchID, protowire.VarintType), uint64(id)))
}

// encoded is a message that needs no encoding any more.
type encoded struct{ data mem.BufferSlice }

// codec is protobuf's, and passes on what is encoded.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(*encoded); ok {
		return e.data, nil
	}
	return c.CodecV2.Marshal(v)
}
