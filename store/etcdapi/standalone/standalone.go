// Package standalone is a whole etcd server of one member: the embedded store
// in a data folder, etcd's API on the listeners asked for, automatic
// compaction.
//
//	<data-dir>/store   the v3 keys (docs/STORE-FORMAT.md)
//	<data-dir>/side    v2 keys, users and roles, alarms; the same format
//	<wal-dir>/store, /side   the segments of their logs, if Config.WALDir is set
package standalone

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
	"github.com/skiff-project/skiff/store/etcdapi"
	"github.com/skiff-project/skiff/store/vfs"
)

// Folders of the data folder.
const (
	StoreFolder = "store"
	SideFolder  = "side"
)

// Config configures a server.
type Config struct {
	DataDir string // required
	Name    string // default "default"
	// Listen and Metrics are URLs to serve clients, and only health and
	// metrics, on. At least one Listen.
	Listen, Metrics []string
	// Peer are URLs to answer other members on, PeerTLS is for their https ones.
	// Default none.
	Peer    []string
	PeerTLS *tls.Config
	// WALDir is a folder for the logs, on a faster disk perhaps. Default: they
	// are in DataDir. A data folder stays with what it was begun with.
	WALDir string
	// AdvertiseClient and AdvertisePeer are what member lists tell. Default
	// Listen, and http://localhost:2380.
	AdvertiseClient, AdvertisePeer []string
	// Token goes into the cluster's ID. Default "etcd-cluster".
	Token string
	// TLS is for https listeners and unixs ones.
	TLS *tls.Config
	// NoV2 leaves out the v2 keys.
	NoV2 bool
	// API carries what else the API needs; Store, Side, TLS, names and URLs are filled in.
	API etcdapi.Config
	// QuotaBytes, MaxTxnOps and MaxRequestBytes are limits of the store. Default its own.
	QuotaBytes                 int64
	MaxTxnOps, MaxRequestBytes int
	// LeaseCheckpoint is embedded.Options'.
	LeaseCheckpoint time.Duration
	// FS is the disk that DataDir is on. Default the real one.
	FS vfs.FS
	// NoSync leaves out every sync: acknowledged writes may be lost.
	NoSync bool
	// Compaction removes history by itself. Default never.
	Compaction Compaction
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

func (c *Config) setDefaults() error {
	if c.DataDir == "" || len(c.Listen) == 0 {
		return errors.New("etcd: a data folder and a URL to listen on are required")
	}
	if c.Name == "" {
		c.Name = "default"
	}
	if len(c.AdvertiseClient) == 0 {
		c.AdvertiseClient = c.Listen
	}
	if len(c.AdvertisePeer) == 0 {
		c.AdvertisePeer = []string{"http://localhost:2380"}
	}
	if c.Token == "" {
		c.Token = "etcd-cluster"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// IDs are the IDs etcd gives a cluster of one member.
func IDs(peerURLs []string, token string) (cluster, member uint64) {
	urls := slices.Sorted(slices.Values(peerURLs))
	sum := sha1.Sum([]byte(strings.Join(urls, "") + token))
	member = binary.BigEndian.Uint64(sum[:8])
	sum = sha1.Sum(sum[:8])
	return binary.BigEndian.Uint64(sum[:8]), member
}

// Run serves until ctx ends or the disk fails. ready, if any, is called with
// the addresses listened on once clients can connect.
func Run(ctx context.Context, cfg Config, ready func([]net.Addr)) error {
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "member", "snap", "db")); err == nil {
		return fmt.Errorf("data folder %s is one of stock etcd: take a snapshot there and restore it with skiff etcdutl snapshot restore", cfg.DataDir)
	}
	segments, err := segmentDirs(cfg.WALDir, StoreFolder, SideFolder)
	if err != nil {
		return err
	}
	logs, shown := watchLog(cfg.FS)
	cfg.API.Collectors = append(cfg.API.Collectors, shown...)
	db, err := embedded.Open(embedded.Options{FS: logs, Dir: filepath.Join(cfg.DataDir, StoreFolder), SegmentDir: segments[0], NoSync: cfg.NoSync,
		QuotaBytes: cfg.QuotaBytes, MaxTxnOps: cfg.MaxTxnOps, MaxRequestBytes: cfg.MaxRequestBytes, LeaseCheckpoint: cfg.LeaseCheckpoint, Log: cfg.Log})
	if err != nil {
		return err
	}
	defer db.Close()
	side, err := embedded.Open(embedded.Options{FS: cfg.FS, Dir: filepath.Join(cfg.DataDir, SideFolder), SegmentDir: segments[1], NoSync: cfg.NoSync, MaxTxnOps: 1024, Log: cfg.Log})
	if err != nil {
		return err
	}
	defer side.Close()
	server, err := newServer(cfg, db, side)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	addrs, err := serveAll(ctx, &cfg, server, func(serve func() error) {
		wg.Go(func() {
			if err := serve(); err != nil {
				cancel(err)
			}
		})
	})
	if err != nil {
		return err
	}
	wg.Go(func() { cfg.Compaction.run(ctx, db, cfg.Log) })
	if ready != nil {
		ready(addrs)
	}
	select {
	case <-ctx.Done():
		if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	case <-db.Done():
		return db.Err()
	case <-side.Done():
		return side.Err()
	}
}

// segmentDirs are where the logs of two stores are, "" for in their own folders.
func segmentDirs(wal, store, side string) ([2]string, error) {
	if wal == "" {
		return [2]string{}, nil
	}
	wal, err := filepath.Abs(wal)
	return [2]string{filepath.Join(wal, store), filepath.Join(wal, side)}, err
}

// watchLog measures the log of the store that is opened on what it returns.
func watchLog(fs vfs.FS) (vfs.FS, []prometheus.Collector) {
	syncs := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "etcd_disk_wal_fsync_duration_seconds",
		Help: "The latency distributions of fsync called by WAL.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)})
	written := prometheus.NewGauge(prometheus.GaugeOpts{Name: "etcd_disk_wal_write_bytes_total", Help: "Total number of bytes written in WAL."})
	if fs == nil {
		fs = vfs.Disk()
	}
	return vfs.Watched(fs, vfs.Watch{
		Part:   ".log",
		Wrote:  func(n int) { written.Add(float64(n)) },
		Synced: func(took time.Duration) { syncs.Observe(took.Seconds()) },
	}), []prometheus.Collector{syncs, written}
}

func newServer(cfg Config, db, side store.Store) (*etcdapi.Server, error) {
	api := cfg.API
	api.Store, api.Side, api.Name, api.Log = db, side, cfg.Name, cfg.Log
	api.NoV2, api.TempDir = cfg.NoV2, cfg.DataDir
	api.ClientURLs, api.PeerURLs = cfg.AdvertiseClient, cfg.AdvertisePeer
	api.ClusterID, api.MemberID = IDs(cfg.AdvertisePeer, cfg.Token)
	api.MaxRequestBytes = cfg.MaxRequestBytes
	api.QuotaBytes = cfg.QuotaBytes
	return etcdapi.New(api)
}

// listener is one that is open, with what serves it.
type listener struct {
	net.Listener
	serve func(context.Context, net.Listener) error
}

// serveAll opens every listener, then hands what serves them to start. Their
// addresses are in the order clients, metrics, peers.
func serveAll(ctx context.Context, cfg *Config, server *etcdapi.Server, start func(func() error)) (addrs []net.Addr, err error) {
	var open []listener
	defer func() {
		if err != nil {
			for _, l := range open {
				l.Close()
			}
		}
	}()
	for _, kind := range []struct {
		what, flags string
		urls        []string
		tls         *tls.Config
		serve       func(context.Context, net.Listener, *tls.Config) error
	}{
		{"client", "--cert-file, --key-file", cfg.Listen, cfg.TLS, server.ServeTLS},
		{"metrics", "--cert-file, --key-file", cfg.Metrics, cfg.TLS, serveHTTP(server.MetricsHandler(), cfg.Log)},
		{"peer", "--peer-cert-file, --peer-key-file", cfg.Peer, cfg.PeerTLS, serveHTTP(server.PeerHandler(), cfg.Log)},
	} {
		for _, u := range kind.urls {
			lis, secure, err := listen(u)
			if err != nil {
				return nil, fmt.Errorf("etcd: %s URL %s: %w", kind.what, u, err)
			}
			conf := kind.tls
			if !secure {
				conf = nil
			}
			open = append(open, listener{lis, func(ctx context.Context, lis net.Listener) error { return kind.serve(ctx, lis, conf) }})
			if secure && conf == nil {
				return nil, fmt.Errorf("etcd: TLS key/cert (%s) must be provided for %s url %s with HTTPS scheme", kind.flags, kind.what, u)
			}
		}
	}
	for _, l := range open {
		addrs = append(addrs, l.Addr())
		start(func() error { return l.serve(ctx, l.Listener) })
	}
	return addrs, nil
}

// serveHTTP serves what is not for etcd's clients.
func serveHTTP(h http.Handler, log *slog.Logger) func(context.Context, net.Listener, *tls.Config) error {
	return func(ctx context.Context, lis net.Listener, conf *tls.Config) error {
		if conf != nil {
			lis = tls.NewListener(lis, conf)
		}
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 5 * time.Minute, IdleTimeout: time.Minute,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
		stop := context.AfterFunc(ctx, func() { srv.Close() })
		defer stop()
		if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
}

// listen opens the listener of a URL and tells whether it is one with TLS.
func listen(raw string) (lis net.Listener, secure bool, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, false, err
	}
	network, address := "tcp", u.Host
	switch u.Scheme {
	case "http", "https":
	case "unix", "unixs":
		network, address = "unix", u.Host+u.Path
		os.Remove(address)
	default:
		return nil, false, errors.New("the scheme must be http, https, unix, or unixs")
	}
	lis, err = net.Listen(network, address)
	return lis, u.Scheme == "https" || u.Scheme == "unixs", err
}

// Compaction removes old history by itself.
type Compaction struct {
	// Period is how long history is kept; 0 is for ever.
	Period time.Duration
	// Revisions is how many revisions of history are kept; 0 is all.
	Revisions int64
}

// revisionInterval is how often etcd compacts by revisions.
const revisionInterval = 5 * time.Minute

func (c Compaction) run(ctx context.Context, db store.Store, log *slog.Logger) {
	var marks []int64 // the revisions at the last ticks
	interval, keep := revisionInterval, 0
	switch {
	case c.Period > 0:
		// Ten steps a period, an hour's at most, as etcd does.
		interval = min(c.Period, time.Hour) / 10
		keep = int(c.Period / interval)
	case c.Revisions == 0:
		return
	}
	ticker := time.NewTicker(max(interval, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		rev := db.Status().Revision - c.Revisions
		if c.Period > 0 {
			if marks = append(marks, db.Status().Revision); len(marks) <= keep {
				continue
			}
			rev, marks = marks[0], marks[1:]
		}
		if rev <= db.Status().CompactRevision {
			continue
		}
		if err := db.Compact(ctx, rev); err != nil && !errors.Is(err, store.ErrCompacted) && ctx.Err() == nil {
			log.Warn("auto compaction failed", "revision", rev, "err", err)
		}
	}
}
