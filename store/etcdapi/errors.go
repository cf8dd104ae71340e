package etcdapi

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skiff-project/skiff/store"
)

// wire lists what each error of the store is called on the wire.
var wire = []struct{ err, grpc error }{
	{store.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{store.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
	{store.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{store.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{store.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{store.ErrLeaseTTL, rpctypes.ErrGRPCLeaseTTLTooLarge},
	{store.ErrClosed, rpctypes.ErrGRPCStopped},
	{store.ErrTooManyOps, rpctypes.ErrGRPCTooManyOps},
	{store.ErrDuplicateKey, rpctypes.ErrGRPCDuplicateKey},
	{store.ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{store.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey},
	{store.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{context.Canceled, rpctypes.ErrGRPCCanceled},
	{context.DeadlineExceeded, rpctypes.ErrGRPCDeadlineExceeded},
}

// toGRPC gives an error its code and text on the wire. A store that failed is
// Unavailable: clients go elsewhere or wait.
func toGRPC(err error) error {
	if err == nil {
		return nil
	}
	for _, w := range wire {
		if errors.Is(err, w.err) {
			return w.grpc
		}
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, "etcdserver: "+err.Error())
}
