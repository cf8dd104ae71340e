package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/internal/innetns"
)

// Config says what a node's DNS server answers, and where.
type Config struct {
	// Informers give Services, EndpointSlices and Namespaces. New registers what it needs;
	// the caller starts the factory after New. Required.
	Informers informers.SharedInformerFactory
	// Domain is the cluster's domain. Default "cluster.local".
	Domain string
	// ListenAddrs are answered by UDP and TCP. They need not exist yet (IP_FREEBIND). Port
	// 0 takes a free one, the same for both. Required.
	ListenAddrs []netip.AddrPort
	// Upstreams answer names outside the cluster, in this order. Default: those of
	// ResolvConf; with neither, such names are refused at once.
	Upstreams []netip.AddrPort
	// ResolvConf is a resolver configuration to take upstreams from, read again when it
	// changes. Default "": none.
	ResolvConf string
	// Netns is the path of the network namespace to work in. Default: the process's own.
	Netns string
	// Client, NodeName and Advertise, if all are set, keep this node's EndpointSlice of the
	// Service kube-system/kube-dns: see keepSlice. Advertise is the address that is listened
	// on; the ports are the actual ones.
	Client    kubernetes.Interface
	NodeName  string
	Advertise netip.Addr
	// Clock tells the time. Default: the real one.
	Clock clock.Clock
	// Log gets one line per unusual event. Default: none.
	Log *slog.Logger
}

const (
	// udpSize is the largest UDP message sent: what fits an unfragmented packet anywhere.
	udpSize = 1232
	// maxForwards and maxTCP bound questions waiting for upstreams and TCP connections.
	maxForwards = 256
	maxTCP      = 256
	tcpIdle     = 10 * time.Second
	stopTimeout = 2 * time.Second
)

// Server is a node's DNS server. Make it with New.
type Server struct {
	cfg      Config
	log      *slog.Logger
	zone     Zone
	snap     *informerSnapshot
	upstream *forwarder
	ready    chan struct{}

	mu    sync.Mutex
	addrs []netip.AddrPort
}

// New checks the configuration and registers with the informers; it opens no socket.
func New(cfg Config) (*Server, error) {
	if cfg.Informers == nil || len(cfg.ListenAddrs) == 0 {
		return nil, errors.New("dns: Informers and ListenAddrs are required")
	}
	if cfg.Domain == "" {
		cfg.Domain = "cluster.local"
	}
	if _, ok := dns.IsDomainName(cfg.Domain); !ok {
		return nil, fmt.Errorf("dns: %q is no domain name", cfg.Domain)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	snap, err := newInformerSnapshot(cfg.Informers)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, log: cfg.Log, zone: Zone{Domain: dns.CanonicalName(cfg.Domain)}, snap: snap,
		upstream: newForwarder(cfg), ready: make(chan struct{})}, nil
}

// Ready is closed once every address is listened on and the cluster's names are known.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addrs are the addresses listened on, with their actual ports; empty before Run listens.
func (s *Server) Addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs
}

// Run answers questions until ctx ends. It fails if an address cannot be listened on.
func (s *Server) Run(ctx context.Context) error {
	servers, err := s.listen()
	if err != nil {
		return err
	}
	defer shutdown(servers)
	if !cache.WaitForCacheSync(ctx.Done(), s.snap.synced...) {
		return nil
	}
	failed := make(chan error, len(servers))
	for _, srv := range servers {
		go func() { failed <- srv.ActivateAndServe() }()
	}
	close(s.ready)
	if s.cfg.Client != nil && s.cfg.NodeName != "" && s.cfg.Advertise.IsValid() {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { s.keepSlice(ctx) })
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("dns: a server ended: %w", err)
	}
}

func shutdown(servers []*dns.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for _, srv := range servers {
		if srv.ShutdownContext(ctx) != nil {
			// Never started: close what it would have served.
			if srv.Listener != nil {
				_ = srv.Listener.Close()
			}
			if srv.PacketConn != nil {
				_ = srv.PacketConn.Close()
			}
		}
	}
}

// listen opens the sockets.
func (s *Server) listen() (servers []*dns.Server, err error) {
	err = innetns.Do(s.cfg.Netns, func() error {
		for _, want := range s.cfg.ListenAddrs {
			pc, l, at, err := listenPair(want)
			if err != nil {
				return fmt.Errorf("dns: listen on %s: %w", want, err)
			}
			s.mu.Lock()
			s.addrs = append(s.addrs, at)
			s.mu.Unlock()
			servers = append(servers,
				&dns.Server{PacketConn: pc, Handler: s, UDPSize: dns.DefaultMsgSize},
				&dns.Server{Listener: netutil.LimitListener(l, maxTCP), Handler: s, IdleTimeout: func() time.Duration { return tcpIdle }})
		}
		return nil
	})
	if err != nil {
		shutdown(servers)
		return nil, err
	}
	return servers, nil
}

// listenPair opens a UDP and a TCP socket on one port.
func listenPair(at netip.AddrPort) (net.PacketConn, net.Listener, netip.AddrPort, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			// The bridge may get its address after us.
			level, opt := unix.SOL_IP, unix.IP_FREEBIND
			if at.Addr().Is6() {
				level, opt = unix.SOL_IPV6, unix.IPV6_FREEBIND
			}
			serr = unix.SetsockoptInt(int(fd), level, opt, 1)
		})
		return errors.Join(err, serr)
	}}
	const tries = 10 // a free UDP port may be taken for TCP
	var errs error
	for range tries {
		pc, err := lc.ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			return nil, nil, at, err
		}
		got := netip.AddrPortFrom(at.Addr(), uint16(pc.LocalAddr().(*net.UDPAddr).Port))
		l, err := lc.Listen(context.Background(), "tcp", got.String())
		if err == nil {
			return pc, l, got, nil
		}
		errs = errors.Join(err, pc.Close())
		if at.Port() != 0 {
			break
		}
	}
	return nil, nil, at, errs
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	tcp := w.LocalAddr().Network() == "tcp"
	m := s.respond(req, tcp)
	size := dns.MaxMsgSize
	if !tcp {
		size = dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), udpSize)
		}
	}
	m.Truncate(size)
	// A client that has gone is no concern of ours.
	_ = w.WriteMsg(m)
}

// respond makes the whole answer, with EDNS as the request has it (RFC 6891).
func (s *Server) respond(req *dns.Msg, tcp bool) *dns.Msg {
	opt := req.IsEdns0()
	if opt != nil && opt.Version() != 0 {
		m := new(dns.Msg).SetRcode(req, dns.RcodeBadVers)
		m.SetEdns0(udpSize, opt.Do())
		return m
	}
	if len(req.Question) != 1 || req.Opcode != dns.OpcodeQuery {
		return new(dns.Msg).SetRcode(req, dns.RcodeFormatError)
	}
	m, result := Answer(s.zone, s.snap, req)
	if result == Outside {
		m = s.upstream.ask(req, tcp)
	} else {
		s.chase(m, tcp)
		shuffle(m.Answer)
	}
	m.Compress = true
	m.RecursionAvailable = s.upstream.any()
	m.Extra = dropOPT(m.Extra)
	if opt != nil {
		m.SetEdns0(udpSize, opt.Do())
	}
	return m
}

func dropOPT(in []dns.RR) []dns.RR {
	out := in[:0]
	for _, rr := range in {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, rr)
		}
	}
	return out
}

// chase adds the addresses behind a CNAME that leads outside the cluster.
func (s *Server) chase(m *dns.Msg, tcp bool) {
	q := m.Question[0]
	if len(m.Answer) == 0 || (q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA) || !s.upstream.any() {
		return
	}
	cname, ok := m.Answer[len(m.Answer)-1].(*dns.CNAME)
	if !ok || strings.HasSuffix(strings.ToLower(cname.Target), "."+s.zone.Domain) {
		return
	}
	more := s.upstream.ask(new(dns.Msg).SetQuestion(cname.Target, q.Qtype), tcp)
	if more.Rcode == dns.RcodeSuccess {
		m.Answer = append(m.Answer, more.Answer...)
	}
}

// shuffle spreads clients that take the first address over all of them.
func shuffle(answer []dns.RR) {
	for _, rr := range answer {
		if t := rr.Header().Rrtype; t != dns.TypeA && t != dns.TypeAAAA {
			return
		}
	}
	rand.Shuffle(len(answer), func(i, j int) { answer[i], answer[j] = answer[j], answer[i] })
}
