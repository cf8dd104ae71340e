package etcdstore

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

// Txn implements store.Store. The result of a put outside Options.Root has
// only a key, a value, a lease and a ModRevision.
func (s *Store) Txn(ctx context.Context, txn store.Txn) (store.TxnResult, error) {
	if err := s.Err(); err != nil {
		return store.TxnResult{}, err
	}
	var member peer.Peer
	resp, err := s.kv.Txn(ctx, s.request(&txn), grpc.Peer(&member))
	if err != nil {
		sent := member.Addr != nil && writes(&txn)
		return store.TxnResult{}, s.failure(ctx, err, sent)
	}
	rev := resp.Header.Revision
	v, err := s.reach(ctx, rev)
	if err != nil {
		return store.TxnResult{}, fmt.Errorf("the transaction was committed at revision %d, but this server has not seen it yet: %w", rev, err)
	}
	return s.result(v, rev, &txn, resp)
}

// writes reports whether some branch of txn can change something.
func writes(txn *store.Txn) bool {
	for _, ops := range [][]store.Op{txn.Then, txn.Else} {
		for i := range ops {
			switch ops[i].Kind {
			case store.OpPut, store.OpDelete:
				return true
			case store.OpTxn:
				if ops[i].Txn != nil && writes(ops[i].Txn) {
					return true
				}
			}
		}
	}
	return false
}

var relations = map[store.Relation]pb.Compare_CompareResult{
	store.Equal: pb.Compare_EQUAL, store.NotEqual: pb.Compare_NOT_EQUAL, store.Greater: pb.Compare_GREATER, store.Less: pb.Compare_LESS,
}

func (s *Store) request(txn *store.Txn) *pb.TxnRequest {
	r := &pb.TxnRequest{Success: s.ops(txn.Then), Failure: s.ops(txn.Else)}
	for i := range txn.If {
		c := &txn.If[i]
		out := &pb.Compare{Key: []byte(s.outer(c.Key)), RangeEnd: []byte(s.outerEnd(c.End)), Result: relations[c.Relation]}
		switch c.Target {
		case store.TargetMod:
			out.Target, out.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: c.Int}
		case store.TargetCreate:
			out.Target, out.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: c.Int}
		case store.TargetVersion:
			out.Target, out.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: c.Int}
		case store.TargetValue:
			out.Target, out.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: c.Value}
		case store.TargetLease:
			out.Target, out.TargetUnion = pb.Compare_LEASE, &pb.Compare_Lease{Lease: c.Int}
		}
		r.Compare = append(r.Compare, out)
	}
	return r
}

func (s *Store) ops(ops []store.Op) []*pb.RequestOp {
	out := make([]*pb.RequestOp, len(ops))
	for i := range ops {
		o := &ops[i]
		key, end := []byte(s.outer(o.Key)), []byte(s.outerEnd(o.End))
		out[i] = &pb.RequestOp{}
		switch o.Kind {
		case store.OpRange:
			out[i].Request = &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, RangeEnd: end}}
		case store.OpPut:
			out[i].Request = &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
				Key: key, Value: o.Value, Lease: int64(o.Lease), IgnoreValue: o.IgnoreValue, IgnoreLease: o.IgnoreLease, PrevKv: o.PrevKV,
			}}
		case store.OpDelete:
			out[i].Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: o.PrevKV}}
		case store.OpTxn:
			if o.Txn == nil {
				o.Txn = &store.Txn{}
			}
			out[i].Request = &pb.RequestOp_RequestTxn{RequestTxn: s.request(o.Txn)}
		}
	}
	return out
}

// result says what etcd did in versions of v, which has reached rev.
func (s *Store) result(v *mvcc.View, rev int64, txn *store.Txn, resp *pb.TxnResponse) (store.TxnResult, error) {
	res := store.TxnResult{Revision: rev, Succeeded: resp.Succeeded, Results: make([]store.OpResult, len(resp.Responses))}
	ops := txn.Else
	if resp.Succeeded {
		ops = txn.Then
	}
	if len(ops) != len(resp.Responses) {
		return res, errors.New("etcd answered a transaction with another number of results than it has operations")
	}
	for i, r := range resp.Responses {
		out := &res.Results[i]
		switch ops[i].Kind {
		case store.OpRange:
			out.KVs = s.versions(v, r.GetResponseRange().GetKvs())
		case store.OpPut:
			put := r.GetResponsePut()
			if put.GetPrevKv() != nil {
				out.Prev = s.versions(v, []*mvccpb.KeyValue{put.PrevKv})
			}
			if out.KV = v.Version(ops[i].Key, rev); out.KV == nil {
				out.KV = &store.KV{Key: ops[i].Key, Value: ops[i].Value, Lease: ops[i].Lease, ModRevision: rev}
			}
		case store.OpDelete:
			out.Deleted = r.GetResponseDeleteRange().GetDeleted()
			out.Prev = s.versions(v, r.GetResponseDeleteRange().GetPrevKvs())
		case store.OpTxn:
			inner, err := s.result(v, rev, ops[i].Txn, r.GetResponseTxn())
			if err != nil {
				return res, err
			}
			out.Txn = &inner
		}
	}
	return res, nil
}

func (s *Store) versions(v *mvcc.View, kvs []*mvccpb.KeyValue) []*store.KV {
	var out []*store.KV
	for _, kv := range kvs {
		out = append(out, s.version(v, kv))
	}
	return out
}
