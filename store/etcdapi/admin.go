package etcdapi

import (
	"context"
	"encoding/json"
	"net/http"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

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

// MemberAdd implements pb.ClusterServer. A cluster of one stays one: the
// others answer as etcd does for members that are not there.
func (c *clusterServer) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, status.Error(codes.Unimplemented, "etcdserver: this server is a cluster of one; take a snapshot to real etcd to have more members")
}

// MemberRemove implements pb.ClusterServer.
func (c *clusterServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if r.ID == c.s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotEnoughStarted
	}
	return nil, rpctypes.ErrGRPCMemberNotFound
}

// MemberUpdate implements pb.ClusterServer: peer URLs are the command line's.
func (c *clusterServer) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if r.ID != c.s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, status.Error(codes.Unimplemented, "etcdserver: peer URLs are given by --initial-advertise-peer-urls")
}

// MemberPromote implements pb.ClusterServer.
func (c *clusterServer) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if r.ID != c.s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, rpctypes.ErrGRPCMemberNotLearner
}

// Handler serves what clients reach over HTTP.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	s.registerHealth(mux)
	if s.v2 != nil {
		s.v2.Register(mux)
	}
	if s.gateway != nil && !s.cfg.NoGateway {
		s.gateway.register(mux)
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
	mux.Handle("GET /metrics", s.metrics.handler())
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
