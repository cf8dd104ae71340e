package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/internal/innetns"
)

const (
	// upstreamTimeout is the wait for one upstream; clients themselves wait 5 s.
	upstreamTimeout = 2 * time.Second
	// maxUpstreams is how many a resolver configuration may name (resolv.conf(5)).
	maxUpstreams = 3
	// cacheSize and cacheTTL bound the memory of upstream answers.
	cacheSize = 2048
	cacheTTL  = 30 * time.Second
	// confCheck is how often the resolver configuration is looked at, when questions come.
	confCheck = 5 * time.Second
)

// forwarder asks upstream servers and remembers their answers for a while.
type forwarder struct {
	fixed []netip.AddrPort
	conf  string
	own   []netip.AddrPort
	netns string
	clock clock.PassiveClock
	slots chan struct{}

	mu      sync.Mutex
	cache   map[cacheKey]cached
	servers []netip.AddrPort
	checked time.Time
	changed time.Time
}

type cacheKey struct {
	name   string
	qtype  uint16
	qclass uint16
	do     bool
	cd     bool
}

type cached struct {
	msg   *dns.Msg
	until time.Time
}

func newForwarder(cfg Config) *forwarder {
	return &forwarder{fixed: cfg.Upstreams, conf: cfg.ResolvConf, own: cfg.ListenAddrs, netns: cfg.Netns, clock: cfg.Clock,
		slots: make(chan struct{}, maxForwards), cache: map[cacheKey]cached{}}
}

// upstreams lists the servers to ask.
func (f *forwarder) upstreams() []netip.AddrPort {
	if len(f.fixed) > 0 || f.conf == "" {
		return f.fixed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock.Now()
	if now.Sub(f.checked) < confCheck && !f.checked.IsZero() {
		return f.servers
	}
	f.checked = now
	st, err := os.Stat(f.conf)
	if err != nil {
		f.servers, f.changed = nil, time.Time{}
		return nil
	}
	if !st.ModTime().Equal(f.changed) {
		f.changed = st.ModTime()
		f.servers = nil
		for _, u := range Upstreams(f.conf) {
			// Asking ourselves would go round for ever.
			if !slices.Contains(f.own, u) {
				f.servers = append(f.servers, u)
			}
		}
	}
	return f.servers
}

// Upstreams reads the name servers of a resolver configuration, at most three; none if it
// cannot be read.
func Upstreams(path string) []netip.AddrPort {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" || len(out) == maxUpstreams {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}

// any reports whether there is somebody to ask.
func (f *forwarder) any() bool { return len(f.upstreams()) > 0 }

// ask answers a question from memory or by the first upstream that answers. Without
// upstreams the answer is REFUSED, and if none answers SERVFAIL.
func (f *forwarder) ask(req *dns.Msg, tcp bool) *dns.Msg {
	servers := f.upstreams()
	if len(servers) == 0 {
		return new(dns.Msg).SetRcode(req, dns.RcodeRefused)
	}
	q := req.Question[0]
	opt := req.IsEdns0()
	key := cacheKey{strings.ToLower(q.Name), q.Qtype, q.Qclass, opt != nil && opt.Do(), req.CheckingDisabled}
	if m := f.recall(key); m != nil {
		return reply(req, m)
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
	}
	out := new(dns.Msg).SetQuestion(q.Name, q.Qtype)
	out.Question[0].Qclass = q.Qclass
	out.CheckingDisabled = req.CheckingDisabled
	out.SetEdns0(udpSize, key.do)
	for _, server := range servers {
		m := f.exchange(out, server, tcp)
		if m == nil || m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused {
			continue
		}
		f.remember(key, m)
		return reply(req, m)
	}
	return new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
}

// exchange asks one server, by TCP if the client did or the answer does not fit; nil if it
// does not answer.
func (f *forwarder) exchange(q *dns.Msg, server netip.AddrPort, tcp bool) *dns.Msg {
	for _, network := range []string{"udp", "tcp"} {
		if network == "udp" && tcp {
			continue
		}
		var conn net.Conn
		err := innetns.Do(f.netns, func() (err error) {
			conn, err = net.DialTimeout(network, server.String(), upstreamTimeout)
			return err
		})
		if err != nil {
			return nil
		}
		c := &dns.Conn{Conn: conn, UDPSize: dns.DefaultMsgSize}
		ctx, cancel := context.WithTimeout(context.Background(), upstreamTimeout)
		client := dns.Client{Net: network, Timeout: upstreamTimeout, UDPSize: udpSize}
		m, _, err := client.ExchangeWithConnContext(ctx, q, c)
		cancel()
		_ = conn.Close()
		if err != nil || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
			return nil
		}
		if !m.Truncated {
			return m
		}
	}
	return nil
}

// reply turns an upstream's answer into one to req, with req's own spelling of the name.
func reply(req, m *dns.Msg) *dns.Msg {
	out := new(dns.Msg).SetRcode(req, m.Rcode)
	out.AuthenticatedData, out.CheckingDisabled = m.AuthenticatedData, req.CheckingDisabled
	name := req.Question[0].Name
	for _, rr := range m.Answer {
		rr = dns.Copy(rr)
		if strings.EqualFold(rr.Header().Name, name) {
			rr.Header().Name = name
		}
		out.Answer = append(out.Answer, rr)
	}
	for _, rr := range m.Ns {
		out.Ns = append(out.Ns, dns.Copy(rr))
	}
	return out
}

func (f *forwarder) recall(key cacheKey) *dns.Msg {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.cache[key]
	if !ok {
		return nil
	}
	left := c.until.Sub(f.clock.Now())
	if left <= 0 {
		delete(f.cache, key)
		return nil
	}
	m := c.msg.Copy()
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range rrs {
			rr.Header().Ttl = min(rr.Header().Ttl, uint32(left/time.Second)+1)
		}
	}
	return m
}

// remember keeps an answer as long as its records allow, at most cacheTTL.
func (f *forwarder) remember(key cacheKey, m *dns.Msg) {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return
	}
	keep := cacheTTL
	rrs := slices.Concat(m.Answer, m.Ns)
	if len(rrs) == 0 {
		return
	}
	for _, rr := range rrs {
		keep = min(keep, time.Duration(rr.Header().Ttl)*time.Second)
		if soa, ok := rr.(*dns.SOA); ok {
			keep = min(keep, time.Duration(soa.Minttl)*time.Second)
		}
	}
	if keep <= 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.cache) >= cacheSize {
		for old := range f.cache {
			// Any one: the map's order is as good as random.
			delete(f.cache, old)
			break
		}
	}
	f.cache[key] = cached{m, f.clock.Now().Add(keep)}
}
