package etcdapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/etcdapi/snapshot"
)

type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	s *Server
}

// Status implements pb.MaintenanceServer.
func (m *maintenanceServer) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	st := m.s.cfg.Store.Status()
	resp := &pb.StatusResponse{
		Header: m.s.header(st.Revision), Version: Version, StorageVersion: snapshot.StorageVersion,
		DbSize: st.SizeBytes, DbSizeInUse: st.InUseBytes, DbSizeQuota: m.s.cfg.QuotaBytes,
		Leader: m.s.cfg.MemberID, RaftIndex: uint64(st.Revision), RaftAppliedIndex: uint64(st.Revision), RaftTerm: 1,
		DowngradeInfo: &pb.DowngradeInfo{},
	}
	for _, a := range m.s.alarms.list() {
		resp.Errors = append(resp.Errors, a.String())
	}
	return resp, nil
}

// alarms are the alarms raised, by hand or by the store. The zero value has none.
type alarms struct {
	count atomic.Int32 // of raised

	mu     sync.Mutex
	raised map[pb.AlarmType]uint64 // the member
}

// list returns the alarms as etcd does.
func (a *alarms) list() []*pb.AlarmMember {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []*pb.AlarmMember
	for _, t := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		if id, ok := a.raised[t]; ok {
			out = append(out, &pb.AlarmMember{MemberID: id, Alarm: t})
		}
	}
	return out
}

// has reports whether an alarm is raised.
func (a *alarms) has(t pb.AlarmType) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.raised[t]
	return ok
}

// noteSpace raises the NOSPACE alarm if err says that a put found no room. As
// in etcd it stays until it is disarmed, also when there is room again.
func (s *Server) noteSpace(err error) {
	if !errors.Is(err, store.ErrNoSpace) || s.alarms.has(pb.AlarmType_NOSPACE) {
		return
	}
	s.cfg.Log.Warn("alarm NOSPACE raised: puts are refused. Delete, compact and defragment, then disarm it (etcdctl alarm disarm)")
	// The side store may have no room either: the alarm is not kept over a restart then.
	if err := s.setAlarm(context.Background(), &pb.AlarmMember{MemberID: s.cfg.MemberID, Alarm: pb.AlarmType_NOSPACE}, true); err != nil {
		s.cfg.Log.Warn("alarm NOSPACE could not be stored", "err", err)
	}
}

// setAlarm raises or ends an alarm, durably if there is a side store.
func (s *Server) setAlarm(ctx context.Context, a *pb.AlarmMember, on bool) error {
	if on {
		s.alarms.set(a.Alarm, a.MemberID, true)
	}
	if s.cfg.Side != nil {
		key, err := proto.Marshal(a)
		if err != nil {
			return err
		}
		e := entry{bucket: "alarm", key: string(key)}
		if on {
			e.value = []byte{}
		}
		if err := s.writeBuckets(ctx, e); err != nil {
			return err
		}
	}
	if !on {
		s.alarms.set(a.Alarm, a.MemberID, false)
	}
	return nil
}

// set raises or ends an alarm.
func (a *alarms) set(t pb.AlarmType, member uint64, on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.count.Store(int32(len(a.raised))) }()
	if a.raised == nil {
		a.raised = map[pb.AlarmType]uint64{}
	}
	if on {
		a.raised[t] = member
		return
	}
	delete(a.raised, t)
}

// refuses returns why a request is not served. Reading is never refused.
func (a *alarms) refuses(req any) error {
	if a.count.Load() == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, corrupt := a.raised[pb.AlarmType_CORRUPT]
	_, full := a.raised[pb.AlarmType_NOSPACE]
	grows := false
	switch r := req.(type) {
	case *pb.PutRequest, *pb.LeaseGrantRequest:
		grows = true
	case *pb.TxnRequest:
		if grows = putsAny(r); !grows && readOnly(r) {
			return nil
		}
	case *pb.DeleteRangeRequest, *pb.CompactionRequest, *pb.LeaseRevokeRequest:
	default:
		return nil
	}
	switch {
	case corrupt:
		return rpctypes.ErrGRPCCorrupt
	case full && grows:
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// readOnly reports whether a transaction can change nothing.
func readOnly(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if op.GetRequestRange() == nil && (op.GetRequestTxn() == nil || !readOnly(op.GetRequestTxn())) {
				return false
			}
		}
	}
	return true
}

func putsAny(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if op.GetRequestPut() != nil || op.GetRequestTxn() != nil && putsAny(op.GetRequestTxn()) {
				return true
			}
		}
	}
	return false
}

// loadAlarms reads the alarms raised before a restart.
func (s *Server) loadAlarms(ctx context.Context) error {
	stored, err := s.bucket(ctx, "alarm")
	for key := range stored {
		var a pb.AlarmMember
		if proto.Unmarshal([]byte(key), &a) == nil {
			s.alarms.set(a.Alarm, a.MemberID, true)
		}
	}
	return err
}

// Alarm implements pb.MaintenanceServer.
func (m *maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	resp := &pb.AlarmResponse{Header: m.s.now()}
	if r.Action == pb.AlarmRequest_GET {
		for _, a := range m.s.alarms.list() {
			if r.Alarm == pb.AlarmType_NONE || r.Alarm == a.Alarm {
				resp.Alarms = append(resp.Alarms, a)
			}
		}
		return resp, nil
	}
	on := r.Action == pb.AlarmRequest_ACTIVATE
	if r.Alarm == pb.AlarmType_NONE {
		return resp, nil
	}
	a := &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
	if !on && !m.s.alarms.has(r.Alarm) {
		return resp, nil
	}
	if err := m.s.setAlarm(ctx, a, on); err != nil {
		return nil, err
	}
	resp.Alarms = append(resp.Alarms, a)
	return resp, nil
}

// Defragment implements pb.MaintenanceServer by writing a checkpoint, if the
// store has them: nothing else would free disk.
func (m *maintenanceServer) Defragment(ctx context.Context, r *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if s, ok := m.s.cfg.Store.(interface{ Checkpoint(context.Context) error }); ok {
		if err := s.Checkpoint(ctx); err != nil {
			return nil, toGRPC(err)
		}
	}
	return &pb.DefragmentResponse{}, nil
}

// MoveLeader implements pb.MaintenanceServer: there is nobody to move it to.
func (m *maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if r.TargetID == m.s.cfg.MemberID {
		return &pb.MoveLeaderResponse{}, nil
	}
	return nil, rpctypes.ErrGRPCBadLeaderTransferee
}

// Downgrade implements pb.MaintenanceServer: what could be done is told, but
// there is one version.
func (m *maintenanceServer) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	resp := &pb.DowngradeResponse{Header: m.s.now(), Version: "3.7"}
	var major, minor, patch int
	switch _, err := fmt.Sscanf(r.Version, "%d.%d.%d", &major, &minor, &patch); {
	case r.Action == pb.DowngradeRequest_CANCEL:
		return resp, nil
	case r.Action != pb.DowngradeRequest_VALIDATE && r.Action != pb.DowngradeRequest_ENABLE:
		return nil, status.Error(codes.Unknown, "etcdserver: unknown method")
	case err != nil:
		return nil, rpctypes.ErrGRPCWrongDowngradeVersionFormat
	case major != 3 || minor != 6:
		return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	case r.Action == pb.DowngradeRequest_ENABLE:
		return nil, status.Error(codes.Unimplemented, "etcdserver: Skiff's files have one version: take a snapshot and restore it with etcd "+r.Version)
	}
	return resp, nil
}

// snapshotChunk is how much of a snapshot one message has, as in etcd.
const snapshotChunk = 32 << 10

// Snapshot implements pb.MaintenanceServer: a file for stock etcd's restore,
// then its checksum.
func (m *maintenanceServer) Snapshot(r *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	contents, err := m.s.contents(stream.Context())
	if err != nil {
		return toGRPC(err)
	}
	name, err := snapshot.Temporary(m.s.cfg.TempDir)
	if err != nil {
		return toGRPC(err)
	}
	defer os.Remove(name)
	if err := snapshot.Write(stream.Context(), name, contents); err != nil {
		return toGRPC(err)
	}
	f, err := os.Open(name)
	if err != nil {
		return toGRPC(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return toGRPC(err)
	}
	h := sha256.New()
	for left := info.Size(); left > 0; {
		buf := make([]byte, min(left, snapshotChunk)) // the stream keeps it
		if _, err := io.ReadFull(f, buf); err != nil {
			return toGRPC(err)
		}
		h.Write(buf)
		left -= int64(len(buf))
		if err := stream.Send(&pb.SnapshotResponse{RemainingBytes: uint64(left), Blob: buf, Version: snapshot.StorageVersion}); err != nil {
			return err
		}
	}
	return stream.Send(&pb.SnapshotResponse{Blob: h.Sum(nil), Version: snapshot.StorageVersion})
}

// Hash implements pb.MaintenanceServer. What etcd hashes here, its whole file,
// there is none of: it is the hash of the keys.
func (m *maintenanceServer) Hash(ctx context.Context, r *pb.HashRequest) (*pb.HashResponse, error) {
	hash, rev, _, err := snapshot.HashKV(ctx, m.s.cfg.Store, 0)
	if err != nil {
		return nil, toGRPC(err)
	}
	return &pb.HashResponse{Header: m.s.header(rev), Hash: hash}, nil
}

// HashKV implements pb.MaintenanceServer.
func (m *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	hash, rev, compacted, err := snapshot.HashKV(ctx, m.s.cfg.Store, max(r.Revision, 0))
	if err != nil {
		return nil, toGRPC(err)
	}
	if compacted == 0 {
		compacted = -1 // etcd's way to say never
	}
	return &pb.HashKVResponse{Header: m.s.now(), Hash: hash, HashRevision: rev, CompactRevision: compacted}, nil
}
