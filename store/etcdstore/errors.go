package etcdstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skiff-project/skiff/store"
)

// sentinels lists the store's name of each of etcd's errors.
var sentinels = []struct{ etcd, err error }{
	{rpctypes.ErrGRPCCompacted, store.ErrCompacted},
	{rpctypes.ErrGRPCFutureRev, store.ErrFutureRevision},
	{rpctypes.ErrGRPCNoSpace, store.ErrNoSpace},
	{rpctypes.ErrGRPCLeaseNotFound, store.ErrLeaseNotFound},
	{rpctypes.ErrGRPCLeaseExist, store.ErrLeaseExists},
	{rpctypes.ErrGRPCLeaseTTLTooLarge, store.ErrLeaseTTL},
	{rpctypes.ErrGRPCTooManyOps, store.ErrTooManyOps},
	{rpctypes.ErrGRPCDuplicateKey, store.ErrDuplicateKey},
	{rpctypes.ErrGRPCRequestTooLarge, store.ErrTooLarge},
	{rpctypes.ErrGRPCEmptyKey, store.ErrEmptyKey},
	{rpctypes.ErrGRPCKeyNotFound, store.ErrKeyNotFound},
}

// refusals are the codes of errors that mean the request was not carried out.
var refusals = []codes.Code{
	codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
	codes.ResourceExhausted, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented,
}

// failure says in the store's terms what went wrong; write says that a request
// that changes something was sent.
func (s *Store) failure(ctx context.Context, err error, write bool) error {
	if err == nil {
		return nil
	}
	for _, e := range sentinels {
		if rpctypes.ErrorDesc(e.etcd) == rpctypes.ErrorDesc(err) {
			return e.err
		}
	}
	code := status.Code(err)
	if code == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max") {
		return store.ErrTooLarge // one of the two ends did not let it pass
	}
	reason := err
	switch {
	case s.ctx.Err() != nil:
		reason = store.ErrClosed
	case ctx.Err() != nil:
		reason = context.Cause(ctx)
	}
	if write && !slices.Contains(refusals, code) {
		return fmt.Errorf("%w (etcd %v): %w", store.ErrOutcomeUnknown, s.opt.Endpoints, reason)
	}
	if reason != err {
		return reason
	}
	return fmt.Errorf("etcd %v: %w", s.opt.Endpoints, err)
}

// transient reports whether a read may work when it is tried again.
func transient(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Aborted:
		return true
	}
	return false
}

// once keeps the client, which would send it again, from doing so with a write
// that was cancelled on the way.
func once(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	if code := status.Code(err); method == pb.KV_Txn_FullMethodName && ctx.Err() == nil && (code == codes.Canceled || code == codes.DeadlineExceeded) {
		return status.Error(codes.Unknown, err.Error())
	}
	return err
}
