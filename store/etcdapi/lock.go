package etcdapi

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skiff-project/skiff/store"
)

// The messages of etcd's v3lockpb and v3electionpb, which live in its server
// module. gRPC encodes them by their tags.

type lockRequest struct {
	Name  []byte `protobuf:"bytes,1,opt,name=name,proto3" json:"name,omitempty"`
	Lease int64  `protobuf:"varint,2,opt,name=lease,proto3" json:"lease,omitempty"`
}

type lockResponse struct {
	Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3" json:"header,omitempty"`
	Key    []byte             `protobuf:"bytes,2,opt,name=key,proto3" json:"key,omitempty"`
}

type unlockRequest struct {
	Key []byte `protobuf:"bytes,1,opt,name=key,proto3" json:"key,omitempty"`
}

type headerResponse struct {
	Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3" json:"header,omitempty"`
}

type campaignRequest struct {
	Name  []byte `protobuf:"bytes,1,opt,name=name,proto3" json:"name,omitempty"`
	Lease int64  `protobuf:"varint,2,opt,name=lease,proto3" json:"lease,omitempty"`
	Value []byte `protobuf:"bytes,3,opt,name=value,proto3" json:"value,omitempty"`
}

type leaderKey struct {
	Name  []byte `protobuf:"bytes,1,opt,name=name,proto3" json:"name,omitempty"`
	Key   []byte `protobuf:"bytes,2,opt,name=key,proto3" json:"key,omitempty"`
	Rev   int64  `protobuf:"varint,3,opt,name=rev,proto3" json:"rev,omitempty"`
	Lease int64  `protobuf:"varint,4,opt,name=lease,proto3" json:"lease,omitempty"`
}

type campaignResponse struct {
	Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3" json:"header,omitempty"`
	Leader *leaderKey         `protobuf:"bytes,2,opt,name=leader,proto3" json:"leader,omitempty"`
}

type leaderRequest struct {
	Name []byte `protobuf:"bytes,1,opt,name=name,proto3" json:"name,omitempty"`
}

type leaderResponse struct {
	Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3" json:"header,omitempty"`
	Kv     *mvccpb.KeyValue   `protobuf:"bytes,2,opt,name=kv,proto3" json:"kv,omitempty"`
}

type resignRequest struct {
	Leader *leaderKey `protobuf:"bytes,1,opt,name=leader,proto3" json:"leader,omitempty"`
}

type proclaimRequest struct {
	Leader *leaderKey `protobuf:"bytes,1,opt,name=leader,proto3" json:"leader,omitempty"`
	Value  []byte     `protobuf:"bytes,2,opt,name=value,proto3" json:"value,omitempty"`
}

func (m *lockRequest) Reset()      { *m = lockRequest{} }
func (m *lockResponse) Reset()     { *m = lockResponse{} }
func (m *unlockRequest) Reset()    { *m = unlockRequest{} }
func (m *headerResponse) Reset()   { *m = headerResponse{} }
func (m *campaignRequest) Reset()  { *m = campaignRequest{} }
func (m *leaderKey) Reset()        { *m = leaderKey{} }
func (m *campaignResponse) Reset() { *m = campaignResponse{} }
func (m *leaderRequest) Reset()    { *m = leaderRequest{} }
func (m *leaderResponse) Reset()   { *m = leaderResponse{} }
func (m *resignRequest) Reset()    { *m = resignRequest{} }
func (m *proclaimRequest) Reset()  { *m = proclaimRequest{} }

func (m *lockRequest) String() string      { return fmt.Sprintf("%s %x", m.Name, m.Lease) }
func (m *lockResponse) String() string     { return string(m.Key) }
func (m *unlockRequest) String() string    { return string(m.Key) }
func (m *headerResponse) String() string   { return m.Header.String() }
func (m *campaignRequest) String() string  { return fmt.Sprintf("%s %x", m.Name, m.Lease) }
func (m *leaderKey) String() string        { return fmt.Sprintf("%s %d", m.Key, m.Rev) }
func (m *campaignResponse) String() string { return m.Leader.String() }
func (m *leaderRequest) String() string    { return string(m.Name) }
func (m *leaderResponse) String() string   { return m.Kv.String() }
func (m *resignRequest) String() string    { return m.Leader.String() }
func (m *proclaimRequest) String() string  { return m.Leader.String() }

func (*lockRequest) ProtoMessage()      {}
func (*lockResponse) ProtoMessage()     {}
func (*unlockRequest) ProtoMessage()    {}
func (*headerResponse) ProtoMessage()   {}
func (*campaignRequest) ProtoMessage()  {}
func (*leaderKey) ProtoMessage()        {}
func (*campaignResponse) ProtoMessage() {}
func (*leaderRequest) ProtoMessage()    {}
func (*leaderResponse) ProtoMessage()   {}
func (*resignRequest) ProtoMessage()    {}
func (*proclaimRequest) ProtoMessage()  {}

// lockServer serves v3lockpb.Lock and v3electionpb.Election: recipes on keys
// under the name, one for each lease, the oldest of which holds.
type lockServer struct{ s *Server }

// sessionTTL is the life of a lease made for a client that brings none. Seconds.
const sessionTTL = 60

// unary describes a method.
func unary[Req, Resp any](service, name string, do func(*lockServer, context.Context, *Req) (*Resp, error)) grpc.MethodDesc {
	full := "/" + service + "/" + name
	return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, mid grpc.UnaryServerInterceptor) (any, error) {
		in := new(Req)
		if err := dec(in); err != nil {
			return nil, err
		}
		call := func(ctx context.Context, req any) (any, error) { return do(srv.(*lockServer), ctx, req.(*Req)) }
		if mid == nil {
			return call(ctx, in)
		}
		return mid(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: full}, call)
	}}
}

const (
	lockService     = "v3lockpb.Lock"
	electionService = "v3electionpb.Election"
)

func registerLocks(g *grpc.Server, s *Server) {
	srv := &lockServer{s: s}
	g.RegisterService(&grpc.ServiceDesc{ServiceName: lockService, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{
		unary(lockService, "Lock", (*lockServer).lock),
		unary(lockService, "Unlock", (*lockServer).unlock),
	}}, srv)
	g.RegisterService(&grpc.ServiceDesc{ServiceName: electionService, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{
		unary(electionService, "Campaign", (*lockServer).campaign),
		unary(electionService, "Proclaim", (*lockServer).proclaim),
		unary(electionService, "Leader", (*lockServer).leader),
		unary(electionService, "Resign", (*lockServer).resign),
	}, Streams: []grpc.StreamDesc{{StreamName: "Observe", ServerStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
		in := new(leaderRequest)
		if err := stream.RecvMsg(in); err != nil {
			return err
		}
		return srv.(*lockServer).observe(in, stream)
	}}}}, srv)
}

// claim puts the key of a lease under a name and waits until it is the oldest;
// rev is the revision as of which it was there.
func (l *lockServer) claim(ctx context.Context, name, value []byte, lease int64) (own *store.KV, rev int64, err error) {
	db := l.s.cfg.Store
	if lease == 0 {
		granted, err := db.Leases().Grant(ctx, 0, sessionTTL)
		if err != nil {
			return nil, 0, plain(err)
		}
		lease = int64(granted.ID)
	}
	key := fmt.Sprintf("%s/%x", name, lease)
	put := store.Op{Kind: store.OpPut, Key: key, Value: value, Lease: store.LeaseID(lease)}
	res, err := db.Txn(ctx, store.Txn{
		If:   []store.Compare{{Key: key, Target: store.TargetCreate}},
		Then: []store.Op{put},
		Else: []store.Op{{Kind: store.OpRange, Key: key}},
	})
	if err != nil {
		return nil, 0, plain(err)
	}
	own = res.Results[0].KV
	if !res.Succeeded {
		if own = res.Results[0].KVs[0]; value != nil && string(own.Value) != string(value) {
			if _, err := db.Txn(ctx, store.Txn{If: holds(key, own.CreateRevision), Then: []store.Op{put}}); err != nil {
				return nil, 0, plain(err)
			}
		}
	}
	if err := l.wait(ctx, string(name)+"/", own); err != nil {
		// Whoever no longer waits must not get it later.
		db.Txn(context.WithoutCancel(ctx), store.Txn{If: holds(key, own.CreateRevision), Then: []store.Op{{Kind: store.OpDelete, Key: key}}})
		return nil, 0, plain(err)
	}
	return own, res.Revision, nil
}

// plain is an error as etcd's lock and election services return them: those of
// the keys beneath without their code.
func plain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return toGRPC(err)
	}
	return status.Error(codes.Unknown, status.Convert(toGRPC(err)).Message())
}

// holds is true while a key is the one created at a revision.
func holds(key string, created int64) []store.Compare {
	return []store.Compare{{Key: key, Target: store.TargetCreate, Int: created}}
}

var errSessionExpired = errors.New("mutex: session is expired")

// wait returns when no key under prefix is older than own.
func (l *lockServer) wait(ctx context.Context, prefix string, own *store.KV) error {
	for {
		snap, err := l.s.cfg.Store.Snapshot(ctx, 0)
		if err != nil {
			return err
		}
		if kv := snap.Get(own.Key); kv == nil || kv.CreateRevision != own.CreateRevision {
			return errSessionExpired
		}
		var before *store.KV // the one that goes last of those before
		for kv := range snap.Range(prefix, prefixEnd(prefix)) {
			if kv.CreateRevision < own.CreateRevision && (before == nil || kv.CreateRevision > before.CreateRevision) {
				before = kv
			}
		}
		if before == nil {
			return nil
		}
		if err := l.gone(ctx, before.Key, snap.Revision()+1); err != nil {
			return err
		}
	}
}

// gone waits until a key is deleted.
func (l *lockServer) gone(ctx context.Context, key string, from int64) error {
	w, err := l.s.cfg.Store.Watch(ctx, store.WatchRequest{Key: key, StartRevision: from})
	if errors.Is(err, store.ErrCompacted) {
		return nil // look again
	}
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		batch, err := w.Next(ctx)
		if errors.Is(err, store.ErrCompacted) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, ev := range batch.Events {
			if ev.Type == store.EventDelete {
				return nil
			}
		}
	}
}

// prefixEnd is the end of the range of all keys that begin with prefix, which
// ends in a slash.
func prefixEnd(prefix string) string { return prefix[:len(prefix)-1] + "0" }

func (l *lockServer) lock(ctx context.Context, r *lockRequest) (*lockResponse, error) {
	kv, _, err := l.claim(ctx, r.Name, nil, r.Lease)
	if err != nil {
		return nil, err
	}
	return &lockResponse{Header: l.s.now(), Key: []byte(kv.Key)}, nil
}

func (l *lockServer) unlock(ctx context.Context, r *unlockRequest) (*headerResponse, error) {
	res, err := l.s.cfg.Store.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: string(r.Key)}}})
	if err != nil {
		return nil, plain(err)
	}
	return &headerResponse{Header: l.s.header(res.Revision)}, nil
}

func (l *lockServer) campaign(ctx context.Context, r *campaignRequest) (*campaignResponse, error) {
	value := r.Value
	if value == nil {
		value = []byte{}
	}
	kv, rev, err := l.claim(ctx, r.Name, value, r.Lease)
	if err != nil {
		return nil, err
	}
	return &campaignResponse{Header: l.s.header(rev), Leader: &leaderKey{Name: r.Name, Key: []byte(kv.Key), Rev: kv.CreateRevision, Lease: int64(kv.Lease)}}, nil
}

var (
	errNoLeaderKey = errors.New(`"leader" field must be provided`)
	errNotLeader   = errors.New("election: not leader")
	errNoLeader    = errors.New("election: no leader")
)

func (l *lockServer) proclaim(ctx context.Context, r *proclaimRequest) (*headerResponse, error) {
	if r.Leader == nil {
		return nil, errNoLeaderKey
	}
	res, err := l.s.cfg.Store.Txn(ctx, store.Txn{If: holds(string(r.Leader.Key), r.Leader.Rev),
		Then: []store.Op{{Kind: store.OpPut, Key: string(r.Leader.Key), Value: r.Value, Lease: store.LeaseID(r.Leader.Lease)}}})
	if err != nil {
		return nil, plain(err)
	}
	if !res.Succeeded {
		return nil, errNotLeader
	}
	return &headerResponse{Header: l.s.header(res.Revision)}, nil
}

func (l *lockServer) resign(ctx context.Context, r *resignRequest) (*headerResponse, error) {
	if r.Leader == nil {
		return nil, errNoLeaderKey
	}
	res, err := l.s.cfg.Store.Txn(ctx, store.Txn{If: holds(string(r.Leader.Key), r.Leader.Rev),
		Then: []store.Op{{Kind: store.OpDelete, Key: string(r.Leader.Key)}}})
	if err != nil {
		return nil, plain(err)
	}
	return &headerResponse{Header: l.s.header(res.Revision)}, nil
}

// oldest is the leader's key, nil for none.
func oldest(snap store.Snapshot, prefix string) (first *store.KV) {
	for kv := range snap.Range(prefix, prefixEnd(prefix)) {
		if first == nil || kv.CreateRevision < first.CreateRevision {
			first = kv
		}
	}
	return first
}

func (l *lockServer) leader(ctx context.Context, r *leaderRequest) (*leaderResponse, error) {
	snap, err := l.s.cfg.Store.Snapshot(ctx, 0)
	if err != nil {
		return nil, plain(err)
	}
	kv := oldest(snap, string(r.Name)+"/")
	if kv == nil {
		return nil, errNoLeader
	}
	return &leaderResponse{Header: l.s.header(snap.Revision()), Kv: toPB(kv)}, nil
}

// observe sends the leader, and again each time it or its value changes.
func (l *lockServer) observe(r *leaderRequest, stream grpc.ServerStream) error {
	ctx, prefix := stream.Context(), string(r.Name)+"/"
	w, err := l.s.cfg.Store.Watch(ctx, store.WatchRequest{Key: prefix, End: prefixEnd(prefix)})
	if err != nil {
		return plain(err)
	}
	defer w.Close()
	sent := int64(0)
	for {
		snap, err := l.s.cfg.Store.Snapshot(ctx, 0)
		if err != nil {
			return plain(err)
		}
		if kv := oldest(snap, prefix); kv != nil && kv.ModRevision != sent {
			sent = kv.ModRevision
			if err := stream.SendMsg(&leaderResponse{Header: l.s.header(snap.Revision()), Kv: toPB(kv)}); err != nil {
				return err
			}
		}
		if _, err := w.Next(ctx); err != nil {
			return plain(err)
		}
	}
}
