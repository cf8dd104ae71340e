package etcdapi

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/skiff-project/skiff/store"
)

type leaseServer struct {
	pb.UnimplementedLeaseServer
	s *Server
}

func (l *leaseServer) leases() store.Leases { return l.s.cfg.Store.Leases() }

// minLeaseTTL is what shorter leases are granted, in seconds: etcd's elections
// must fit in it.
const minLeaseTTL = 2

// LeaseGrant implements pb.LeaseServer.
func (l *leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	lease, err := l.leases().Grant(ctx, store.LeaseID(r.ID), max(r.TTL, minLeaseTTL))
	l.s.noteSpace(err)
	if err != nil {
		return nil, toGRPC(err)
	}
	return &pb.LeaseGrantResponse{Header: l.s.now(), ID: int64(lease.ID), TTL: lease.TTL}, nil
}

// LeaseRevoke implements pb.LeaseServer.
func (l *leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := l.leases().Revoke(ctx, store.LeaseID(r.ID)); err != nil {
		return nil, toGRPC(err)
	}
	return &pb.LeaseRevokeResponse{Header: l.s.now()}, nil
}

// LeaseKeepAlive implements pb.LeaseServer. An unknown lease is answered with
// a TTL of 0, not with an error: the stream serves other leases too.
func (l *leaseServer) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		lease, err := l.leases().KeepAlive(stream.Context(), store.LeaseID(req.ID))
		if err != nil && !errors.Is(err, store.ErrLeaseNotFound) {
			return toGRPC(err)
		}
		if err := stream.Send(&pb.LeaseKeepAliveResponse{Header: l.s.now(), ID: req.ID, TTL: lease.TTL}); err != nil {
			return err
		}
	}
}

// LeaseTimeToLive implements pb.LeaseServer. An unknown lease has a TTL of -1.
func (l *leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	lease, err := l.leases().TimeToLive(ctx, store.LeaseID(r.ID))
	if errors.Is(err, store.ErrLeaseNotFound) {
		return &pb.LeaseTimeToLiveResponse{Header: l.s.now(), ID: r.ID, TTL: -1}, nil
	}
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: l.s.now(), ID: r.ID, TTL: lease.Remaining, GrantedTTL: lease.TTL}
	if r.Keys {
		for _, key := range lease.Keys {
			resp.Keys = append(resp.Keys, []byte(key))
		}
	}
	return resp, nil
}

// LeaseLeases implements pb.LeaseServer.
func (l *leaseServer) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	ids, err := l.leases().List(ctx)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.LeaseLeasesResponse{Header: l.s.now()}
	for _, id := range ids {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: int64(id)})
	}
	return resp, nil
}
