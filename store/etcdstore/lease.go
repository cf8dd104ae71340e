package etcdstore

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/skiff-project/skiff/store"
)

// leases are etcd's.
type leases struct{ s *Store }

// Leases implements store.Store.
func (s *Store) Leases() store.Leases { return leases{s} }

// Grant implements store.Leases. etcd grants no less than about two seconds.
func (l leases) Grant(ctx context.Context, id store.LeaseID, ttl int64) (store.Lease, error) {
	resp, err := l.s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(id), TTL: ttl})
	if err == nil && resp.Error != "" {
		err = errors.New(resp.Error)
	}
	if err != nil {
		return store.Lease{}, l.s.failure(ctx, err, true)
	}
	return store.Lease{ID: store.LeaseID(resp.ID), TTL: resp.TTL, Remaining: resp.TTL}, nil
}

// Revoke implements store.Leases.
func (l leases) Revoke(ctx context.Context, id store.LeaseID) error {
	resp, err := l.s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: int64(id)})
	if err != nil {
		return l.s.failure(ctx, err, true)
	}
	_, err = l.s.reach(ctx, resp.Header.Revision)
	return err
}

// KeepAlive implements store.Leases.
func (l leases) KeepAlive(ctx context.Context, id store.LeaseID) (store.Lease, error) {
	resp, err := retry(ctx, l.s, func(ctx context.Context) (*pb.LeaseKeepAliveResponse, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // frees the stream
		stream, err := l.s.lease.LeaseKeepAlive(ctx)
		if err != nil {
			return nil, err
		}
		// EOF: the reason comes with the answer.
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil && err != io.EOF {
			return nil, err
		}
		return stream.Recv()
	})
	if err == nil && resp.TTL <= 0 {
		err = store.ErrLeaseNotFound
	}
	if err != nil {
		return store.Lease{}, err
	}
	return store.Lease{ID: id, TTL: resp.TTL, Remaining: resp.TTL}, nil
}

// TimeToLive implements store.Leases.
func (l leases) TimeToLive(ctx context.Context, id store.LeaseID) (store.Lease, error) {
	resp, err := retry(ctx, l.s, func(ctx context.Context) (*pb.LeaseTimeToLiveResponse, error) {
		return l.s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: int64(id), Keys: true})
	})
	if err == nil && resp.TTL <= 0 {
		err = store.ErrLeaseNotFound
	}
	if err != nil {
		return store.Lease{}, err
	}
	lease := store.Lease{ID: id, TTL: resp.GrantedTTL, Remaining: resp.TTL}
	for _, key := range resp.Keys {
		lease.Keys = append(lease.Keys, l.s.inner(key))
	}
	return lease, nil
}

// List implements store.Leases.
func (l leases) List(ctx context.Context) ([]store.LeaseID, error) {
	resp, err := retry(ctx, l.s, func(ctx context.Context) (*pb.LeaseLeasesResponse, error) {
		return l.s.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	})
	if err != nil {
		return nil, err
	}
	ids := make([]store.LeaseID, len(resp.Leases))
	for i, lease := range resp.Leases {
		ids[i] = store.LeaseID(lease.ID)
	}
	return ids, nil
}
