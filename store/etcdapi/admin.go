package etcdapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"net/url"
	"slices"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skiff-project/skiff/store/etcdapi/snapshot"
)

type clusterServer struct {
	pb.UnimplementedClusterServer
	s *Server
}

// MemberList implements pb.ClusterServer.
func (c *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	cfg := c.s.cfg
	return &pb.MemberListResponse{Header: c.s.header(0), Members: []*pb.Member{{
		ID: cfg.MemberID, Name: cfg.Name, ClientURLs: c.s.clientURLs(), PeerURLs: cfg.PeerURLs,
	}}}, nil
}

// peerURLs reports whether members could have these URLs.
func peerURLs(urls []string) bool {
	return len(urls) > 0 && !slices.ContainsFunc(urls, func(text string) bool {
		u, err := url.Parse(text)
		return err != nil || u.Host == "" || u.Path != ""
	})
}

// MemberAdd implements pb.ClusterServer. A cluster of one stays one: the
// others answer as etcd does for members that are not there.
func (c *clusterServer) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if !peerURLs(r.PeerURLs) {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
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
	if s.cfg.Pprof {
		for name, h := range map[string]http.HandlerFunc{"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace} {
			mux.HandleFunc("/debug/pprof/"+name, h)
		}
	}
	return s.guard(mux)
}

// MetricsHandler serves /health, /livez, /readyz, /version and /metrics, as
// etcd does on its metrics listeners.
func (s *Server) MetricsHandler() http.Handler {
	mux := http.NewServeMux()
	s.registerHealth(mux)
	return mux
}

// get registers a handler of GET requests, with etcd's answer to others.
func get(mux *http.ServeMux, path string, h http.HandlerFunc) {
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	})
}

func (s *Server) registerHealth(mux *http.ServeMux) {
	get(mux, "/metrics", s.metrics.handler().ServeHTTP)
	get(mux, "/health", s.serveHealth)
	get(mux, "/version", serveVersion)
	read := healthCheck{"serializable_read", s.readable}
	s.registerChecks(mux, "/livez", read)
	s.registerChecks(mux, "/readyz", healthCheck{"data_corruption", s.intact}, read,
		healthCheck{"linearizable_read", s.readable}, healthCheck{"non_learner", func(context.Context) error { return nil }})
}

func serveVersion(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	text, _ := json.Marshal(map[string]string{"etcdserver": Version, "etcdcluster": snapshot.StorageVersion, "storage": snapshot.StorageVersion})
	w.Write(text)
}

func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	reason := ""
	for _, a := range s.alarms.list() {
		if !slices.Contains(r.URL.Query()["exclude"], a.Alarm.String()) {
			reason = "ALARM " + a.Alarm.String()
			break
		}
	}
	if err := s.readable(r.Context()); err != nil && reason == "" {
		reason = "RANGE ERROR:" + err.Error()
	}
	text, _ := json.Marshal(struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{strconv.FormatBool(reason == ""), reason})
	if reason != "" {
		s.metrics.health.failed.Add(1)
		http.Error(w, string(text), http.StatusServiceUnavailable)
		return
	}
	s.metrics.health.fine.Add(1)
	w.Write(text)
}

// healthCheck is a part of /livez or /readyz, also served by itself below it.
type healthCheck struct {
	name  string
	check func(context.Context) error
}

func (s *Server) readable(ctx context.Context) error {
	_, err := s.cfg.Store.Snapshot(ctx, 0)
	return err
}

func (s *Server) intact(context.Context) error {
	if s.alarms.has(pb.AlarmType_CORRUPT) {
		return errors.New("alarm activated: CORRUPT")
	}
	return nil
}

func (s *Server) registerChecks(mux *http.ServeMux, root string, checks ...healthCheck) {
	serve := func(path string, checks ...healthCheck) {
		get(mux, path, func(w http.ResponseWriter, r *http.Request) {
			var text strings.Builder
			failed := false
			for _, c := range checks {
				if slices.Contains(r.URL.Query()["exclude"], c.name) {
					continue
				}
				if err := c.check(r.Context()); err != nil {
					failed = true
					fmt.Fprintf(&text, "[-]%s failed: %v\n", c.name, err)
				} else {
					fmt.Fprintf(&text, "[+]%s ok\n", c.name)
				}
			}
			if failed {
				http.Error(w, text.String(), http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			if r.URL.Query().Has("verbose") {
				fmt.Fprint(w, text.String())
			}
			fmt.Fprint(w, "ok\n")
		})
	}
	serve(root, checks...)
	for _, c := range checks {
		serve(root+"/"+c.name, c)
	}
}
