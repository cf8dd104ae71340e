package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/skiff-project/skiff/store"
)

// check decides whether a request may be served. What it does not know is for
// administrators only.
func (a *access) check(ctx context.Context, req any) error {
	if !a.on.Load() {
		return nil
	}
	switch req.(type) {
	case *pb.AuthenticateRequest, *pb.WatchRequest:
		return nil // open, as in etcd; each watch is looked at as it is made
	}
	user, err := a.caller(ctx)
	if err != nil {
		return err
	}
	switch r := req.(type) {
	case *pb.AuthStatusRequest:
		return nil
	case *pb.TxnRequest:
		if len(r.Compare)+len(r.Success)+len(r.Failure) == 0 {
			return nil // it asks for no key
		}
	}
	needs, known, err := a.needs(ctx, user, req)
	if err != nil {
		return err
	}
	if !known {
		return a.admin(user)
	}
	return a.permits(user, needs...)
}

// needs lists the rights a request needs; known is false for one that only
// administrators may make.
func (a *access) needs(ctx context.Context, user string, req any) (needs []need, known bool, err error) {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return []need{{key: string(r.Key), end: string(r.RangeEnd)}}, true, nil
	case *pb.PutRequest:
		needs, err = a.putNeeds(ctx, r)
		return needs, true, err
	case *pb.DeleteRangeRequest:
		return deleteNeeds(r), true, nil
	case *pb.TxnRequest:
		needs, err = a.txnNeeds(ctx, r, 0)
		return needs, true, err
	case *pb.StatusRequest, *pb.MemberListRequest, *pb.LeaseGrantRequest, *pb.LeaseKeepAliveRequest:
		return nil, true, nil // a user is enough
	case *pb.AlarmRequest:
		return nil, r.Action == pb.AlarmRequest_GET, nil
	case *pb.LeaseLeasesRequest:
		needs, err = a.allLeaseNeeds(ctx)
		return needs, true, err
	case *pb.LeaseRevokeRequest:
		needs, err = a.leaseNeeds(ctx, r.ID, true)
		return needs, true, err
	case *pb.LeaseTimeToLiveRequest:
		if r.Keys {
			needs, err = a.leaseNeeds(ctx, r.ID, false)
		}
		return needs, true, err
	case *pb.AuthUserGetRequest:
		return nil, r.Name == user && user != "", nil
	case *pb.AuthRoleGetRequest:
		return nil, a.hasRole(user, r.Role), nil
	case *lockRequest:
		needs, err = a.leaseNeeds(ctx, r.Lease, true)
		return append(needs, claimNeeds(r.Name)...), true, err
	case *campaignRequest:
		needs, err = a.leaseNeeds(ctx, r.Lease, true)
		return append(needs, claimNeeds(r.Name)...), true, err
	case *unlockRequest:
		return []need{{write: true, key: string(r.Key)}}, true, nil
	case *leaderRequest:
		return claimNeeds(r.Name)[:1], true, nil
	case *proclaimRequest:
		return leaderNeeds(r.Leader), r.Leader != nil, nil
	case *resignRequest:
		return leaderNeeds(r.Leader), r.Leader != nil, nil
	}
	return nil, false, nil
}

func claimNeeds(name []byte) []need {
	prefix := string(name) + "/"
	return []need{{key: prefix, end: prefixEnd(prefix)}, {write: true, key: prefix, end: prefixEnd(prefix)}}
}

func leaderNeeds(l *leaderKey) []need {
	if l == nil {
		return nil
	}
	return []need{{key: string(l.Key)}, {write: true, key: string(l.Key)}}
}

// putNeeds: a put that binds its key to a lease decides about the lease's
// other keys too.
func (a *access) putNeeds(ctx context.Context, r *pb.PutRequest) ([]need, error) {
	needs := []need{{write: true, key: string(r.Key)}}
	if r.PrevKv {
		needs = append(needs, need{key: string(r.Key)})
	}
	if r.Lease == 0 {
		return needs, nil
	}
	attached, err := a.leaseNeeds(ctx, r.Lease, true)
	return append(needs, attached...), err
}

func (a *access) leaseNeeds(ctx context.Context, id int64, write bool) ([]need, error) {
	lease, err := a.s.cfg.Store.Leases().TimeToLive(ctx, store.LeaseID(id))
	if errors.Is(err, store.ErrLeaseNotFound) {
		return nil, nil // the request itself will say so
	}
	var needs []need
	for _, key := range lease.Keys {
		needs = append(needs, need{write: write, key: key})
	}
	return needs, toGRPC(err)
}

// allLeaseNeeds: the list of leases is for who may read all their keys.
func (a *access) allLeaseNeeds(ctx context.Context) (needs []need, err error) {
	ids, err := a.s.cfg.Store.Leases().List(ctx)
	if err != nil {
		return nil, toGRPC(err)
	}
	for _, id := range ids {
		more, err := a.leaseNeeds(ctx, int64(id), false)
		if err != nil {
			return nil, err
		}
		needs = append(needs, more...)
	}
	return needs, nil
}

func deleteNeeds(r *pb.DeleteRangeRequest) []need {
	needs := []need{{write: true, key: string(r.Key), end: string(r.RangeEnd)}}
	if r.PrevKv {
		needs = append(needs, need{key: string(r.Key), end: string(r.RangeEnd)})
	}
	return needs
}

// txnNeeds are those of both branches: which is taken would tell about keys.
func (a *access) txnNeeds(ctx context.Context, r *pb.TxnRequest, depth int) (needs []need, err error) {
	if depth > maxTxnDepth {
		return nil, rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		needs = append(needs, need{key: string(c.Key), end: string(c.RangeEnd)})
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			var more []need
			switch o := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				more = []need{{key: string(o.RequestRange.Key), end: string(o.RequestRange.RangeEnd)}}
			case *pb.RequestOp_RequestPut:
				more, err = a.putNeeds(ctx, o.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				more = deleteNeeds(o.RequestDeleteRange)
			case *pb.RequestOp_RequestTxn:
				more, err = a.txnNeeds(ctx, o.RequestTxn, depth+1)
			}
			if err != nil {
				return nil, err
			}
			needs = append(needs, more...)
		}
	}
	return needs, nil
}

// permitWatch decides whether a watch may be made.
func (a *access) permitWatch(ctx context.Context, key, end string) error {
	if !a.on.Load() {
		return nil
	}
	user, err := a.caller(ctx)
	if err != nil {
		return err
	}
	return a.permits(user, need{key: key, end: end})
}

// guarded is a stream whose requests are checked as they come.
type guarded struct {
	grpc.ServerStream
	a     *access
	count *methodCount
}

// SendMsg counts the message.
func (g *guarded) SendMsg(m any) error {
	err := g.ServerStream.SendMsg(m)
	if err == nil {
		g.count.sent.Add(1)
	}
	return err
}

func (g *guarded) RecvMsg(m any) error {
	if err := g.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	g.count.received.Add(1)
	if err := g.a.s.alarms.refuses(m); err != nil {
		return err
	}
	return g.a.check(g.Context(), m)
}

// tlsInfo hands gRPC the TLS state of connections whose TLS the listener has
// ended already.
type tlsInfo struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (tlsInfo) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if r, ok := conn.(*replayed); ok {
		if secure, ok := r.Conn.(*tls.Conn); ok {
			return conn, credentials.TLSInfo{State: secure.ConnectionState(),
				CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
		}
	}
	return conn, nil, nil
}

// ClientHandshake implements credentials.TransportCredentials; servers have none.
func (tlsInfo) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a client's")
}

// Info implements credentials.TransportCredentials.
func (tlsInfo) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{} }

// Clone implements credentials.TransportCredentials.
func (t tlsInfo) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials.
func (tlsInfo) OverrideServerName(string) error { return nil }
