package etcdapi

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// metrics counts the calls of each method and shows the store's counters
// under etcd's names. Counting costs a call a lookup and two additions.
type metrics struct {
	s       *Server
	methods map[string]*methodCount // fixed once the server serves
	other   methodCount             // of methods that are not there: shown nowhere
	health  health
}

type methodCount struct {
	service, method, kind string
	started               atomic.Int64
	received, sent        atomic.Int64 // messages
	handled               [int(codes.Unauthenticated) + 1]atomic.Int64
}

// health counts what /health has said.
type health struct{ fine, failed atomic.Int64 }

// newMetrics lists the methods of a server whose services are registered.
func newMetrics(s *Server) *metrics {
	m := &metrics{s: s, methods: map[string]*methodCount{}}
	for service, info := range s.grpc.GetServiceInfo() {
		for _, method := range info.Methods {
			kind := "unary"
			switch {
			case method.IsClientStream && method.IsServerStream:
				kind = "bidi_stream"
			case method.IsServerStream:
				kind = "server_stream"
			case method.IsClientStream:
				kind = "client_stream"
			}
			m.methods["/"+service+"/"+method.Name] = &methodCount{service: service, method: method.Name, kind: kind}
		}
	}
	return m
}

// start counts a call that begins; done its end.
func (m *metrics) start(method string) *methodCount {
	c := m.methods[method]
	if c == nil {
		c = &m.other
	}
	c.started.Add(1)
	return c
}

func (c *methodCount) done(err error) {
	if err == nil {
		c.handled[codes.OK].Add(1)
	} else if code := int(status.Code(err)); code < len(c.handled) {
		c.handled[code].Add(1)
	}
}

// stream is around every call with more than one request or answer.
func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	count := s.metrics.start(info.FullMethod)
	err := next(srv, &guarded{ServerStream: stream, a: s.access, count: count})
	count.done(err)
	return err
}

// Describe implements prometheus.Collector: what there is depends on the calls.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, value float64, name, help string, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	st, cfg := m.s.cfg.Store.Status(), &m.s.cfg
	send(gauge, 1, "etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.")
	send(gauge, 1, "etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.")
	send(gauge, 0, "etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.")
	send(counter, 1, "etcd_server_leader_changes_seen_total", "The number of leader changes seen.")
	send(gauge, 1, "etcd_server_id", "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.", "server_id", fmt.Sprintf("%x", cfg.MemberID))
	send(gauge, 1, "etcd_server_version", "Which version is running. 1 for 'server_version' label with current version.", "server_version", Version)
	send(gauge, 1, "etcd_cluster_version", "Which version is running. 1 for 'cluster_version' label with current cluster version", "cluster_version", Version[:strings.LastIndex(Version, ".")])
	send(gauge, float64(cfg.QuotaBytes), "etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.")
	send(gauge, float64(st.Revision), "etcd_server_proposals_committed_total", "The total number of consensus proposals committed.")
	send(gauge, float64(st.Revision), "etcd_server_proposals_applied_total", "The total number of consensus proposals applied.")
	send(gauge, 0, "etcd_server_proposals_pending", "The current number of pending proposals to commit.")
	send(gauge, float64(st.SizeBytes), "etcd_mvcc_db_total_size_in_bytes", "Total size of the underlying database physically allocated in bytes.")
	send(gauge, float64(st.InUseBytes), "etcd_mvcc_db_total_size_in_use_in_bytes", "Total size of the underlying database logically in use in bytes.")
	send(gauge, float64(st.Keys), "etcd_debugging_mvcc_keys_total", "Total number of keys.")
	send(gauge, float64(st.Revision), "etcd_debugging_mvcc_current_revision", "The current revision of store.")
	send(gauge, float64(st.CompactRevision), "etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store.")
	send(counter, float64(m.health.fine.Load()), "etcd_server_health_success", "The total number of successful health checks")
	send(counter, float64(m.health.failed.Load()), "etcd_server_health_failures", "The total number of failed health checks")
	failed := int64(0)
	for _, method := range []string{"KV/Put", "KV/DeleteRange", "KV/Txn", "KV/Compact", "Lease/LeaseGrant", "Lease/LeaseRevoke"} {
		c := m.methods["/etcdserverpb."+method]
		failed += c.handled[codes.Unavailable].Load() + c.handled[codes.DeadlineExceeded].Load()
	}
	send(counter, float64(failed), "etcd_server_proposals_failed_total", "The total number of failed proposals seen.")
	streams := m.methods["/etcdserverpb.Watch/Watch"]
	open := streams.started.Load()
	for code := range streams.handled {
		open -= streams.handled[code].Load()
	}
	send(gauge, float64(open), "etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.")
	send(gauge, float64(m.s.watches.Load()), "etcd_debugging_mvcc_watcher_total", "Total number of watchers.")
	lease := func(method string) float64 {
		return float64(m.methods["/etcdserverpb.Lease/"+method].handled[codes.OK].Load())
	}
	send(counter, lease("LeaseGrant"), "etcd_debugging_lease_granted_total", "The total number of granted leases.")
	send(counter, lease("LeaseRevoke"), "etcd_debugging_lease_revoked_total", "The total number of revoked leases.")
	send(counter, float64(m.methods["/etcdserverpb.Lease/LeaseKeepAlive"].sent.Load()), "etcd_debugging_lease_renewed_total",
		"The number of renewed leases seen by the leader.")
	var files unix.Rlimit
	if used, err := os.ReadDir("/proc/self/fd"); err == nil && unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		send(gauge, float64(len(used)), "os_fd_used", "The number of used file descriptors.")
		send(gauge, float64(files.Cur), "os_fd_limit", "The file descriptor limit.")
	}
	for method, name := range map[string]string{"Range": "range", "Put": "put", "DeleteRange": "delete", "Txn": "txn"} {
		done := m.methods["/etcdserverpb.KV/"+method].handled[codes.OK].Load()
		send(counter, float64(done), "etcd_mvcc_"+name+"_total", "Total number of "+name+" requests served by this member.")
	}
	for _, c := range m.methods {
		labels := []string{"grpc_method", c.method, "grpc_service", c.service, "grpc_type", c.kind}
		send(counter, float64(c.started.Load()), "grpc_server_started_total", "Total number of RPCs started on the server.", labels...)
		send(counter, float64(c.received.Load()), "grpc_server_msg_received_total", "Total number of RPC stream messages received on the server.", labels...)
		send(counter, float64(c.sent.Load()), "grpc_server_msg_sent_total", "Total number of gRPC stream messages sent by the server.", labels...)
		for code := range c.handled {
			if n := c.handled[code].Load(); n > 0 {
				send(counter, float64(n), "grpc_server_handled_total", "Total number of RPCs completed on the server, regardless of success or failure.",
					append(labels, "grpc_code", codes.Code(code).String())...)
			}
		}
	}
}

// handler serves /metrics.
func (m *metrics) handler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.MustRegister(m.s.cfg.Collectors...)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}
