package network

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/skiff-project/skiff/internal/innetns"
	"github.com/skiff-project/skiff/internal/nft"
)

const (
	// loopbackConns bounds the connections, and UDP clients, of one host port on loopback.
	loopbackConns = 256
	loopbackDial  = 5 * time.Second
	// loopbackIdle ends a UDP client's session.
	loopbackIdle = 60 * time.Second
	udpMax       = 64 << 10
)

// loopback serves host ports on the host's loopback address, for TCP and UDP, by passing
// bytes along. The kernel could do it only with route_localnet, which would also let
// neighbours on the bridge send to the host's loopback services. Unlike the kernel's rules
// it pauses while the agent is down.
type loopback struct {
	netns string
	log   *slog.Logger
	open  map[loopbackKey]*forward
}

type loopbackKey struct {
	proto nft.Proto
	from  netip.AddrPort
	to    netip.AddrPort
}

// forward is one open host port.
type forward struct {
	cancel context.CancelFunc
	socket io.Closer
}

// loopbackPorts lists the host ports that loopback addresses answer.
func loopbackPorts(ports []hostPort) map[loopbackKey]bool {
	want, taken := map[loopbackKey]bool{}, map[loopbackKey]bool{}
	for _, p := range ports {
		proto, ok := protoOf(p.Protocol)
		if !ok || proto == nft.SCTP {
			continue
		}
		at := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if p.pod.Is6() {
			at = netip.IPv6Loopback()
		}
		switch {
		case !p.HostIP.IsValid() || p.HostIP.IsUnspecified():
		case p.HostIP.IsLoopback():
			at = p.HostIP.Unmap()
		default:
			continue
		}
		key := loopbackKey{proto, netip.AddrPortFrom(at, p.HostPort), netip.AddrPortFrom(p.pod, p.ContainerPort)}
		if one := (loopbackKey{proto, key.from, netip.AddrPort{}}); !taken[one] {
			taken[one], want[key] = true, true
		}
	}
	return want
}

// sync makes the open ports exactly those wanted. One that is taken by another program is
// logged and left to it.
func (l *loopback) sync(want map[loopbackKey]bool) {
	for key, f := range l.open {
		if !want[key] {
			f.cancel()
			_ = f.socket.Close()
			delete(l.open, key)
		}
	}
	for key := range want {
		if l.open[key] != nil {
			continue
		}
		f, err := l.listen(key)
		if err != nil {
			l.log.Warn("a host port is not served on loopback", "address", key.from, "protocol", key.proto, "err", err)
			continue
		}
		if l.open == nil {
			l.open = map[loopbackKey]*forward{}
		}
		l.open[key] = f
	}
}

func (l *loopback) listen(key loopbackKey) (*forward, error) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &forward{cancel: cancel}
	err := innetns.Do(l.netns, func() error {
		if key.proto == nft.UDP {
			pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(key.from))
			if err == nil {
				f.socket = pc
				go l.serveUDP(ctx, pc, key.to)
			}
			return err
		}
		ln, err := net.Listen("tcp", key.from.String())
		if err == nil {
			f.socket = ln
			go l.serveTCP(ctx, ln, key.to)
		}
		return err
	})
	if err != nil {
		cancel()
		return nil, err
	}
	return f, nil
}

// dial connects to the pod from the node's namespace.
func (l *loopback) dial(network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = innetns.Do(l.netns, func() error {
		conn, err = net.DialTimeout(network, to.String(), loopbackDial)
		return err
	})
	return conn, err
}

func (l *loopback) serveTCP(ctx context.Context, ln net.Listener, to netip.AddrPort) {
	slots := make(chan struct{}, loopbackConns)
	for {
		slots <- struct{}{}
		in, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			// Out of file descriptors, most likely: wait for some to come back.
			time.Sleep(50 * time.Millisecond)
			<-slots
			continue
		}
		go func() {
			defer func() { <-slots }()
			defer func() { _ = in.Close() }()
			out, err := l.dial("tcp", to)
			if err != nil {
				return
			}
			defer func() { _ = out.Close() }()
			// The host port goes with its pod: so do its connections.
			stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
			defer stop()
			pass(in, out)
		}()
	}
}

// pass copies both ways; the end of one way is passed on, and both ends close after both.
func pass(a, b net.Conn) {
	var wg sync.WaitGroup
	copyTo := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src)
		if w, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		}
	}
	wg.Go(func() { copyTo(a, b) })
	copyTo(b, a)
	wg.Wait()
}

// serveUDP keeps one socket towards the pod per client, while it talks.
func (l *loopback) serveUDP(ctx context.Context, pc *net.UDPConn, to netip.AddrPort) {
	var mu sync.Mutex
	clients := map[netip.AddrPort]net.Conn{}
	buf := make([]byte, udpMax)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			continue // an ICMP error from an earlier answer
		}
		mu.Lock()
		out, full := clients[from], len(clients) >= loopbackConns
		mu.Unlock()
		if out == nil {
			if full {
				continue
			}
			if out, err = l.dial("udp", to); err != nil {
				continue
			}
			mu.Lock()
			clients[from] = out
			mu.Unlock()
			go func() {
				answerUDP(ctx, pc, out, from)
				mu.Lock()
				delete(clients, from)
				mu.Unlock()
			}()
		}
		_ = out.SetReadDeadline(time.Now().Add(loopbackIdle))
		_, _ = out.Write(buf[:n])
	}
}

// answerUDP passes the pod's datagrams to one client until neither has talked for a while.
func answerUDP(ctx context.Context, pc *net.UDPConn, out net.Conn, client netip.AddrPort) {
	defer func() { _ = out.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = out.Close() })
	defer stop()
	buf := make([]byte, udpMax)
	for {
		n, err := out.Read(buf)
		if err != nil {
			return
		}
		_ = out.SetReadDeadline(time.Now().Add(loopbackIdle))
		_, _ = pc.WriteToUDPAddrPort(buf[:n], client)
	}
}
