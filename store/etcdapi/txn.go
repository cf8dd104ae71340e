package etcdapi

import (
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/skiff-project/skiff/store"
)

// maxTxnDepth bounds how deep transactions nest.
const maxTxnDepth = 16

// Txn implements pb.KVServer.
func (k *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	t := translator{ctx: ctx, s: k.s}
	txn, err := t.txn(r, 0)
	if err != nil {
		return nil, toGRPC(err)
	}
	res, err := k.s.cfg.Store.Txn(ctx, txn)
	k.s.noteSpace(err)
	if err != nil {
		return nil, toGRPC(err)
	}
	return t.response(r, res), nil
}

// translator turns a transaction of the wire into one of the store and the
// result back.
type translator struct {
	ctx context.Context
	s   *Server
	// old holds what ranges at an older revision see. That revision cannot
	// change any more, so reading it before the transaction is the same.
	old map[*pb.RangeRequest]store.Snapshot
}

func (t *translator) txn(r *pb.TxnRequest, depth int) (store.Txn, error) {
	if depth > maxTxnDepth {
		return store.Txn{}, rpctypes.ErrGRPCTooManyOps
	}
	var txn store.Txn
	var err error
	if len(r.Compare) > 0 {
		txn.If = make([]store.Compare, len(r.Compare))
		for i, c := range r.Compare {
			if txn.If[i], err = compare(c); err != nil {
				return store.Txn{}, err
			}
		}
	}
	if txn.Then, err = t.ops(r.Success, depth); err != nil {
		return store.Txn{}, err
	}
	txn.Else, err = t.ops(r.Failure, depth)
	return txn, err
}

var targets = map[pb.Compare_CompareTarget]store.Target{
	pb.Compare_VERSION: store.TargetVersion,
	pb.Compare_CREATE:  store.TargetCreate,
	pb.Compare_MOD:     store.TargetMod,
	pb.Compare_VALUE:   store.TargetValue,
	pb.Compare_LEASE:   store.TargetLease,
}

var relations = map[pb.Compare_CompareResult]store.Relation{
	pb.Compare_EQUAL:     store.Equal,
	pb.Compare_GREATER:   store.Greater,
	pb.Compare_LESS:      store.Less,
	pb.Compare_NOT_EQUAL: store.NotEqual,
}

func compare(c *pb.Compare) (store.Compare, error) {
	if len(c.Key) == 0 {
		return store.Compare{}, rpctypes.ErrGRPCEmptyKey
	}
	out := store.Compare{Key: string(c.Key), End: string(c.RangeEnd)}
	var known bool
	if out.Relation, known = relations[c.Result]; !known {
		return always(out, true), nil // as etcd
	}
	if out.Target, known = targets[c.Target]; !known {
		return always(out, c.Result == pb.Compare_EQUAL), nil
	}
	switch c.Target {
	case pb.Compare_VERSION:
		out.Int = c.GetVersion()
	case pb.Compare_CREATE:
		out.Int = c.GetCreateRevision()
	case pb.Compare_MOD:
		out.Int = c.GetModRevision()
	case pb.Compare_VALUE:
		out.Value = c.GetValue()
	case pb.Compare_LEASE:
		out.Int = c.GetLease()
	}
	return out, nil
}

// always makes a compare that holds, or does not, whatever there is.
func always(c store.Compare, holds bool) store.Compare {
	c.Target, c.Relation = store.TargetVersion, store.Less
	if holds {
		c.Int = math.MaxInt64
	}
	return c
}

func (t *translator) ops(requests []*pb.RequestOp, depth int) ([]store.Op, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	ops := make([]store.Op, len(requests))
	for i, r := range requests {
		var err error
		switch req := r.Request.(type) {
		case *pb.RequestOp_RequestRange:
			ops[i], err = t.rangeOp(req.RequestRange)
		case *pb.RequestOp_RequestPut:
			ops[i], err = putOp(req.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			ops[i], err = deleteOp(req.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			var inner store.Txn
			inner, err = t.txn(req.RequestTxn, depth+1)
			ops[i] = store.Op{Kind: store.OpTxn, Txn: &inner}
		default:
			err = rpctypes.ErrGRPCKeyNotFound // etcd's answer to an empty operation
		}
		if err != nil {
			return nil, err
		}
	}
	return ops, nil
}

func (t *translator) rangeOp(r *pb.RangeRequest) (store.Op, error) {
	if err := checkRange(r); err != nil {
		return store.Op{}, err
	}
	if r.Revision > 0 {
		snap, err := t.s.cfg.Store.Snapshot(t.ctx, r.Revision)
		if err != nil {
			return store.Op{}, err
		}
		if t.old == nil {
			t.old = map[*pb.RangeRequest]store.Snapshot{}
		}
		t.old[r] = snap
	}
	return store.Op{Kind: store.OpRange, Key: string(r.Key), End: string(r.RangeEnd)}, nil
}

// response builds the answer to r. The results of operations carry a header
// with nothing but the revision, as etcd's do.
func (t *translator) response(r *pb.TxnRequest, res store.TxnResult) *pb.TxnResponse {
	resp := &pb.TxnResponse{Header: t.s.header(res.Revision), Succeeded: res.Succeeded}
	requests := r.Failure
	if res.Succeeded {
		requests = r.Success
	}
	resp.Responses = make([]*pb.ResponseOp, len(requests))
	head := &pb.ResponseHeader{Revision: res.Revision}
	for i, req := range requests {
		out := &pb.ResponseOp{}
		switch req := req.Request.(type) {
		case *pb.RequestOp_RequestRange:
			body := t.ranged(req.RequestRange, res.Results[i])
			body.Header = head
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: body}
		case *pb.RequestOp_RequestPut:
			body := putResponse(res.Results[i])
			body.Header = head
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: body}
		case *pb.RequestOp_RequestDeleteRange:
			body := deleteResponse(res.Results[i])
			body.Header = head
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: body}
		case *pb.RequestOp_RequestTxn:
			body := t.response(req.RequestTxn, *res.Results[i].Txn)
			body.Header = &pb.ResponseHeader{}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: body}
		}
		resp.Responses[i] = out
	}
	return resp
}

func (t *translator) ranged(r *pb.RangeRequest, res store.OpResult) *pb.RangeResponse {
	if snap := t.old[r]; snap != nil {
		return rangeSnapshot(snap, r)
	}
	return shape(res.KVs, r, len(res.KVs))
}
