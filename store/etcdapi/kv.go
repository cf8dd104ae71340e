package etcdapi

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skiff-project/skiff/store"
)

type kvServer struct {
	pb.UnimplementedKVServer
	s *Server
}

// streamChunk is about how many bytes of values one RangeStream message has.
const streamChunk = 1 << 20

// Range implements pb.KVServer.
func (k *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	snap, err := k.s.cfg.Store.Snapshot(ctx, max(r.Revision, 0))
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := rangeSnapshot(snap, r)
	rev := snap.Revision()
	if r.Revision > 0 {
		rev = max(rev, k.s.cfg.Store.Status().Revision)
	}
	resp.Header = k.s.header(rev)
	return resp, nil
}

// RangeStream implements pb.KVServer: the keys of a Range in chunks, the rest
// of the response with the last one.
func (k *kvServer) RangeStream(r *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	switch {
	case checkRange(r) != nil:
		return checkRange(r)
	case sorted(r):
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	case filtered(r):
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	resp, err := k.Range(stream.Context(), r)
	if err != nil {
		return err
	}
	kvs := resp.Kvs
	for {
		n, size := 0, 0
		for n < len(kvs) && size < streamChunk {
			size += len(kvs[n].Value)
			n++
		}
		if n == len(kvs) {
			resp.Kvs = kvs
			return stream.Send(&pb.RangeStreamResponse{RangeResponse: resp})
		}
		chunk := &pb.RangeResponse{Kvs: kvs[:n]}
		if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: chunk}); err != nil {
			return err
		}
		kvs = kvs[n:]
	}
}

func checkRange(r *pb.RangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

// wholeRange reports whether a request must see every key of its range before
// it can be cut to its limit.
func wholeRange(r *pb.RangeRequest) bool { return sorted(r) || filtered(r) }

func filtered(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// sorted reports whether an order other than the store's is asked for. A
// target without an order only sorts what the limit has left, as in etcd.
func sorted(r *pb.RangeRequest) bool {
	return r.SortOrder != pb.RangeRequest_NONE && (r.SortTarget != pb.RangeRequest_KEY || r.SortOrder != pb.RangeRequest_ASCEND)
}

func rangeSnapshot(snap store.Snapshot, r *pb.RangeRequest) *pb.RangeResponse {
	key, end := string(r.Key), string(r.RangeEnd)
	if r.CountOnly {
		return &pb.RangeResponse{Count: int64(snap.Count(key, end))}
	}
	var kvs []*store.KV
	cut := r.Limit > 0 && !wholeRange(r)
	for kv := range snap.Range(key, end) {
		kvs = append(kvs, kv)
		if cut && int64(len(kvs)) > r.Limit {
			return shape(kvs, r, snap.Count(key, end))
		}
	}
	return shape(kvs, r, len(kvs))
}

// shape applies a request's options to the keys found; count is how many keys
// the range holds.
func shape(kvs []*store.KV, r *pb.RangeRequest, count int) *pb.RangeResponse {
	resp := &pb.RangeResponse{Count: int64(count)}
	if r.CountOnly {
		return resp
	}
	if filtered(r) {
		kvs = slices.DeleteFunc(slices.Clone(kvs), func(kv *store.KV) bool {
			return outside(kv.ModRevision, r.MinModRevision, r.MaxModRevision) ||
				outside(kv.CreateRevision, r.MinCreateRevision, r.MaxCreateRevision)
		})
	}
	if r.Limit > 0 && !wholeRange(r) && int64(len(kvs)) > r.Limit+1 {
		kvs = kvs[:r.Limit+1]
	}
	if sorted(r) || r.SortTarget != pb.RangeRequest_KEY {
		kvs = slices.Clone(kvs)
		sortKVs(kvs, r)
	}
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs = kvs[:r.Limit]
		resp.More = true
	}
	resp.Kvs = make([]*mvccpb.KeyValue, len(kvs))
	for i, kv := range kvs {
		resp.Kvs[i] = toPB(kv)
		if r.KeysOnly {
			resp.Kvs[i].Value = nil
		}
	}
	return resp
}

func outside(rev, low, high int64) bool {
	return (low != 0 && rev < low) || (high != 0 && rev > high)
}

func sortKVs(kvs []*store.KV, r *pb.RangeRequest) {
	order := map[pb.RangeRequest_SortTarget]func(a, b *store.KV) int{
		pb.RangeRequest_KEY:     func(a, b *store.KV) int { return cmp.Compare(a.Key, b.Key) },
		pb.RangeRequest_VERSION: func(a, b *store.KV) int { return cmp.Compare(a.Version, b.Version) },
		pb.RangeRequest_CREATE:  func(a, b *store.KV) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) },
		pb.RangeRequest_MOD:     func(a, b *store.KV) int { return cmp.Compare(a.ModRevision, b.ModRevision) },
		pb.RangeRequest_VALUE:   func(a, b *store.KV) int { return bytes.Compare(a.Value, b.Value) },
	}[r.SortTarget]
	if r.SortOrder == pb.RangeRequest_DESCEND {
		slices.SortStableFunc(kvs, func(a, b *store.KV) int { return order(b, a) })
		return
	}
	slices.SortStableFunc(kvs, order)
}

func toPB(kv *store.KV) *mvccpb.KeyValue {
	if kv == nil {
		return nil
	}
	return &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Lease: int64(kv.Lease),
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version,
	}
}

func allPB(kvs []*store.KV) []*mvccpb.KeyValue {
	out := make([]*mvccpb.KeyValue, len(kvs))
	for i, kv := range kvs {
		out[i] = toPB(kv)
	}
	return out
}

// Put implements pb.KVServer.
func (k *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	op, err := putOp(r)
	if err != nil {
		return nil, err
	}
	res, err := k.s.cfg.Store.Txn(ctx, store.Txn{Then: []store.Op{op}})
	k.s.noteSpace(err)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := putResponse(res.Results[0])
	resp.Header = k.s.header(res.Revision)
	return resp, nil
}

func putOp(r *pb.PutRequest) (store.Op, error) {
	switch {
	case len(r.Key) == 0:
		return store.Op{}, rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return store.Op{}, rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return store.Op{}, rpctypes.ErrGRPCLeaseProvided
	}
	return store.Op{
		Kind: store.OpPut, Key: string(r.Key), Value: r.Value, Lease: store.LeaseID(r.Lease),
		IgnoreValue: r.IgnoreValue, IgnoreLease: r.IgnoreLease, PrevKV: r.PrevKv,
	}, nil
}

func putResponse(res store.OpResult) *pb.PutResponse {
	resp := &pb.PutResponse{}
	if len(res.Prev) > 0 {
		resp.PrevKv = toPB(res.Prev[0])
	}
	return resp
}

// DeleteRange implements pb.KVServer.
func (k *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	op, err := deleteOp(r)
	if err != nil {
		return nil, err
	}
	res, err := k.s.cfg.Store.Txn(ctx, store.Txn{Then: []store.Op{op}})
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := deleteResponse(res.Results[0])
	resp.Header = k.s.header(res.Revision)
	return resp, nil
}

func deleteOp(r *pb.DeleteRangeRequest) (store.Op, error) {
	if len(r.Key) == 0 {
		return store.Op{}, rpctypes.ErrGRPCEmptyKey
	}
	return store.Op{Kind: store.OpDelete, Key: string(r.Key), End: string(r.RangeEnd), PrevKV: r.PrevKv}, nil
}

func deleteResponse(res store.OpResult) *pb.DeleteRangeResponse {
	return &pb.DeleteRangeResponse{Deleted: res.Deleted, PrevKvs: allPB(res.Prev)}
}

// Compact implements pb.KVServer.
func (k *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if r.Revision == 0 && k.s.cfg.Store.Status().CompactRevision == 0 {
		return &pb.CompactionResponse{Header: k.s.now()}, nil // as etcd: there is nothing to forget
	}
	if err := k.s.cfg.Store.Compact(ctx, r.Revision); err != nil {
		return nil, toGRPC(err)
	}
	return &pb.CompactionResponse{Header: k.s.now()}, nil
}
