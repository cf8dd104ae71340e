package etcdapi

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"net/http"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	s *Server
}

// Status implements pb.MaintenanceServer.
func (m *maintenanceServer) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	st := m.s.cfg.Store.Status()
	return &pb.StatusResponse{
		Header: m.s.header(st.Revision), Version: Version, StorageVersion: "3.7.0",
		DbSize: st.SizeBytes, DbSizeInUse: st.InUseBytes, DbSizeQuota: m.s.cfg.QuotaBytes,
		Leader: m.s.cfg.MemberID, RaftIndex: uint64(st.Revision), RaftAppliedIndex: uint64(st.Revision), RaftTerm: 1,
		DowngradeInfo: &pb.DowngradeInfo{},
	}, nil
}

// Alarm implements pb.MaintenanceServer. The store raises none: it refuses
// writes while there is no space and goes on when there is.
func (m *maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action == pb.AlarmRequest_ACTIVATE {
		return m.UnimplementedMaintenanceServer.Alarm(ctx, r)
	}
	return &pb.AlarmResponse{Header: m.s.now()}, nil
}

// Defragment implements pb.MaintenanceServer: checkpoints leave nothing to do.
func (m *maintenanceServer) Defragment(ctx context.Context, r *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return &pb.DefragmentResponse{Header: m.s.now()}, nil
}

// Hash implements pb.MaintenanceServer.
func (m *maintenanceServer) Hash(ctx context.Context, r *pb.HashRequest) (*pb.HashResponse, error) {
	hash, rev, err := m.hash(ctx, 0)
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: m.s.header(rev), Hash: hash}, nil
}

// HashKV implements pb.MaintenanceServer. The hash covers the keys at the
// revision, not the history below it; only members of Skiff compare equal.
func (m *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	hash, rev, err := m.hash(ctx, r.Revision)
	if err != nil {
		return nil, err
	}
	compacted := m.s.cfg.Store.Status().CompactRevision
	return &pb.HashKVResponse{Header: m.s.now(), Hash: hash, HashRevision: rev, CompactRevision: compacted}, nil
}

func (m *maintenanceServer) hash(ctx context.Context, rev int64) (uint32, int64, error) {
	snap, err := m.s.cfg.Store.Snapshot(ctx, max(rev, 0))
	if err != nil {
		return 0, 0, toGRPC(err)
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	var sum uint32
	for kv := range snap.Range("", "\x00") {
		head := append([]byte(kv.Key), 0)
		for _, n := range []int64{kv.CreateRevision, kv.ModRevision, kv.Version, int64(kv.Lease)} {
			head = binary.AppendVarint(head, n)
		}
		sum = crc32.Update(crc32.Update(sum, table, head), table, kv.Value)
	}
	return sum, snap.Revision(), nil
}

type clusterServer struct {
	pb.UnimplementedClusterServer
	s *Server
}

// MemberList implements pb.ClusterServer.
func (c *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	cfg := c.s.cfg
	return &pb.MemberListResponse{Header: c.s.now(), Members: []*pb.Member{{
		ID: cfg.MemberID, Name: cfg.Name, ClientURLs: c.s.clientURLs(), PeerURLs: cfg.PeerURLs,
	}}}, nil
}

type authServer struct {
	pb.UnimplementedAuthServer
	s *Server
}

// AuthStatus implements pb.AuthServer: access is by client certificate only.
func (a *authServer) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return &pb.AuthStatusResponse{Header: a.s.now(), AuthRevision: 1}, nil
}

// Authenticate implements pb.AuthServer.
func (a *authServer) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	return nil, rpctypes.ErrGRPCAuthNotEnabled
}

// Handler serves what clients reach over HTTP.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	s.registerHealth(mux)
	if s.v2 != nil {
		s.v2.Register(mux)
	}
	return mux
}

// MetricsHandler serves /health, /livez, /readyz, /version and /metrics, as
// etcd does on its metrics listeners.
func (s *Server) MetricsHandler() http.Handler {
	mux := http.NewServeMux()
	s.registerHealth(mux)
	return mux
}

func (s *Server) registerHealth(mux *http.ServeMux) {
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		health := map[string]string{"health": "true", "reason": ""}
		if _, err := s.cfg.Store.Snapshot(r.Context(), 0); err != nil {
			health["health"], health["reason"] = "false", err.Error()
		}
		writeJSON(w, health["health"] == "true", health)
	})
	for _, path := range []string{"GET /livez", "GET /readyz"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if _, err := s.cfg.Store.Snapshot(r.Context(), 0); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			w.Write([]byte("ok\n"))
		})
	}
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, true, map[string]string{"etcdserver": Version, "etcdcluster": "3.7.0", "storage": "3.7.0"})
	})
}

func writeJSON(w http.ResponseWriter, ok bool, body any) {
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(body)
}
