// Package etcdapi serves etcd's API over any store.Store, so that stock clients
// (etcdctl, clientv3, curl, upstream's kube-apiserver) work on it: the gRPC v3
// services, complete for one member, the same as JSON over HTTP, the HTTP v2
// keys (v2), health and metrics, all on one listener. Package snapshot makes
// files that stock etcd restores and reads those it makes; package standalone
// is the whole server.
//
// There is one member, which is always the leader; raft terms and indexes are
// made up from the revision. What is not among the v3 keys (v2 keys, users,
// roles, alarms) is kept in a store beside, Config.Side. What is not supported
// (more members) answers with an error that says so.
package etcdapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/keepalive"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/etcdapi/v2"
)

// Version is the etcd version whose API is served.
const Version = "3.7.3"

// Config configures a Server.
type Config struct {
	Store store.Store // required
	// Side keeps what is not among the v3 keys: the v2 keys, users and roles,
	// alarms. Default none: then these are not served. Nobody else writes to it.
	Side store.Store
	// NoV2 leaves out the v2 keys, NoGateway JSON over HTTP.
	NoV2, NoGateway bool
	// Origins are those that browsers' scripts may ask from, Hosts the names by
	// which HTTP without TLS may ask for this server. Empty, or with * among
	// them: any.
	Origins, Hosts []string
	// Pprof serves Go's profiles at /debug/pprof/.
	Pprof bool
	// TLS, if set, is the listener's; set ClientAuth and ClientCAs in it to
	// demand client certificates. Default plain text.
	TLS *tls.Config
	// Collectors are shown among the metrics: what the server does not know of itself, as of its disk.
	Collectors []prometheus.Collector
	// Name is the member's name. Default "default".
	Name string
	// ClientURLs and PeerURLs are what MemberList reports. Default for clients
	// the address served.
	ClientURLs, PeerURLs []string
	// ClusterID and MemberID go into every response. Default etcd's for a
	// single default member.
	ClusterID, MemberID uint64
	// ProgressInterval is how often an idle watch that asked for it is told
	// the revision. Default 10 minutes.
	ProgressInterval time.Duration
	// MaxRequestBytes bounds a message from a client. Default 1.5 MiB.
	MaxRequestBytes int
	// JWT makes and checks tokens. Default none: simple tokens, kept in memory.
	JWT *JWT
	// TokenTTL is how long a simple token lives unused. Default 5 minutes.
	TokenTTL time.Duration
	// Workers is how many goroutines wait for calls. Default 8; a server for
	// many clients at once wants as many as there are.
	Workers uint32
	// MaxStreams bounds the streams of one connection. Default no bound.
	MaxStreams uint32
	// KeepaliveMin is the least time between a client's pings (negative: any),
	// KeepaliveInterval the time after which a silent client is pinged and
	// KeepaliveTimeout the time it has to answer. Default etcd's: 5 s, 2 h, 20 s.
	KeepaliveMin, KeepaliveInterval, KeepaliveTimeout time.Duration
	// BcryptCost is the cost of hashing passwords. Default 10.
	BcryptCost int
	// TempDir is where snapshots are made. Default the system's.
	TempDir string
	// QuotaBytes is reported as the size limit. Default 0: unknown.
	QuotaBytes int64
	// Clock times progress notifications. Default the real clock.
	Clock clock.WithTicker
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

func (c *Config) setDefaults() error {
	if c.Store == nil {
		return errors.New("etcd API: no store is configured")
	}
	if c.Name == "" {
		c.Name = "default"
	}
	if c.ClusterID == 0 {
		c.ClusterID = 0xcdf818194e3a8c32
	}
	if c.MemberID == 0 {
		c.MemberID = 0x8e9e05c52164694d
	}
	if c.ProgressInterval == 0 {
		c.ProgressInterval = 10 * time.Minute
	}
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = 3 << 19
	}
	if c.TokenTTL == 0 {
		c.TokenTTL = defaultTokenTTL
	}
	c.Workers = cmp.Or(c.Workers, 8)
	if c.MaxStreams == 0 {
		c.MaxStreams = math.MaxUint32
	}
	c.KeepaliveMin = cmp.Or(c.KeepaliveMin, 5*time.Second)
	c.KeepaliveInterval = cmp.Or(c.KeepaliveInterval, 2*time.Hour)
	c.KeepaliveTimeout = cmp.Or(c.KeepaliveTimeout, 20*time.Second)
	if c.BcryptCost == 0 {
		c.BcryptCost = 10
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// messageOverhead is what a message may have beside its keys and values. Bytes.
const messageOverhead = 512 << 10

// Windows of what a client may send ahead. Bytes.
const (
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// Server serves the API.
type Server struct {
	cfg  Config
	grpc *grpc.Server
	http *http.Server
	urls atomic.Pointer[[]string]
	v2   *v2.Keys   // nil without a side store
	side sync.Mutex // held around writes to the side store

	background sync.Once
	alarms     alarms
	watches    atomic.Int64 // served now
	access     *access
	authEdits  sync.Mutex // one change of users and roles at a time
	gateway    *gateway
	metrics    *metrics
}

// New returns a server that Serve starts.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg}
	s.access = &access{s: s, clock: cfg.Clock}
	s.urls.Store(&cfg.ClientURLs)
	if err := s.openSide(); err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(cfg.MaxRequestBytes+messageOverhead),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(cfg.MaxStreams),
		grpc.SharedWriteBuffer(true),
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}),
		// Fixed windows: measuring the connection's bandwidth costs a ping and
		// its answer for every burst of requests.
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		// Calls that find one free run on a goroutine whose stack has grown already.
		grpc.NumStreamWorkers(cfg.Workers),
		grpc.Creds(tlsInfo{}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: max(cfg.KeepaliveMin, 0)}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: cfg.KeepaliveInterval, Timeout: cfg.KeepaliveTimeout}),
	)
	pb.RegisterKVServer(s.grpc, &kvServer{s: s})
	pb.RegisterWatchServer(s.grpc, &watchServer{s: s})
	pb.RegisterLeaseServer(s.grpc, &leaseServer{s: s})
	pb.RegisterMaintenanceServer(s.grpc, &maintenanceServer{s: s})
	pb.RegisterClusterServer(s.grpc, &clusterServer{s: s})
	pb.RegisterAuthServer(s.grpc, &authServer{s: s})
	registerLocks(s.grpc, s)
	s.metrics = newMetrics(s)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // TLS, if any, ends in the mux
	var err error
	if s.gateway, err = newGateway(s); err != nil {
		return nil, err
	}
	s.http = &http.Server{Handler: s.Handler(), Protocols: &protocols, ReadHeaderTimeout: handshakeTimeout, IdleTimeout: time.Minute,
		ConnContext: withTLS, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)}
	return s, nil
}

// Serve serves clients of lis until ctx ends, over TLS if that is configured.
// It closes lis. A server may serve several listeners, all until one context
// ends: when one stops, all do.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	return s.ServeTLS(ctx, lis, s.cfg.TLS)
}

// ServeTLS is Serve with the listener's own TLS configuration, nil for none.
func (s *Server) ServeTLS(ctx context.Context, lis net.Listener, conf *tls.Config) error {
	if len(s.cfg.ClientURLs) == 0 {
		scheme := "http://"
		if conf != nil {
			scheme = "https://"
		}
		s.urls.Store(&[]string{scheme + lis.Addr().String()})
	}
	m := newMux(lis, conf)
	var wg sync.WaitGroup
	background, cancel := context.WithCancel(ctx)
	defer wg.Wait()
	defer cancel()
	s.background.Do(func() { s.run(background, &wg) })
	errs := make(chan error, 3)
	wg.Go(func() { errs <- s.grpc.Serve(m.grpc) })
	wg.Go(func() { errs <- s.http.Serve(m.http) })
	wg.Go(func() { errs <- m.run() })
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	m.close()
	s.grpc.Stop()
	s.http.Close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("etcd API on %s: %w", lis.Addr(), err)
}

// unary is around every call with one request and one answer.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	count := s.metrics.start(info.FullMethod)
	err := s.access.check(ctx, req)
	if err == nil {
		err = s.alarms.refuses(req)
	}
	var resp any
	if err == nil {
		resp, err = next(ctx, req)
	}
	count.received.Add(1)
	if err == nil {
		count.sent.Add(1)
	}
	count.done(err)
	return resp, err
}

// run starts what works beside the requests.
func (s *Server) run(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() { s.grpc.Serve(s.gateway.loop) })
	context.AfterFunc(ctx, s.gateway.close)
	if s.v2 != nil {
		wg.Go(func() { s.v2.Run(ctx) })
	}
}

// openSide opens what the side store keeps.
func (s *Server) openSide() (err error) {
	if err := s.loadAlarms(context.Background()); err != nil {
		return err
	}
	if err := s.access.load(context.Background()); err != nil {
		return err
	}
	if s.cfg.Side == nil || s.cfg.NoV2 {
		return nil
	}
	s.v2, err = v2.New(v2.Config{
		Store: s.cfg.Side, Write: &s.side, Clock: s.cfg.Clock, Log: s.cfg.Log, MaxRequestBytes: int64(s.cfg.MaxRequestBytes),
		Member: v2.Member{ID: s.cfg.MemberID, ClusterID: s.cfg.ClusterID, Name: s.cfg.Name, PeerURLs: s.cfg.PeerURLs,
			ClientURLs: s.clientURLs},
	})
	return err
}

func (s *Server) clientURLs() []string { return *s.urls.Load() }

// header is the header of a response at revision rev.
func (s *Server) header(rev int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: s.cfg.ClusterID, MemberId: s.cfg.MemberID, Revision: rev, RaftTerm: 1}
}

// now is the header at the newest revision.
func (s *Server) now() *pb.ResponseHeader { return s.header(s.cfg.Store.Status().Revision) }
