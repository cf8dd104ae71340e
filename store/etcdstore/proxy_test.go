package etcdstore

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy is a network that breaks: it carries connections to a member, and can
// cut them, refuse new ones, and swallow what the member answers.
type proxy struct {
	l      net.Listener
	target string

	mu      sync.Mutex
	conns   map[net.Conn]bool
	refuse  bool
	swallow bool
}

func startProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, target: target, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		l.Close()
		p.cut(true)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.carry(c)
		}
	}()
	return p
}

func (p *proxy) url() string { return "http://" + p.l.Addr().String() }

func (p *proxy) carry(c net.Conn) {
	defer c.Close()
	m, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer m.Close()
	p.mu.Lock()
	if p.refuse {
		p.mu.Unlock()
		return
	}
	p.conns[c], p.conns[m] = true, true
	p.mu.Unlock()
	go io.Copy(m, c)
	buf := make([]byte, 32<<10)
	for {
		n, err := m.Read(buf)
		p.mu.Lock()
		drop := p.swallow
		p.mu.Unlock()
		if err != nil {
			break
		}
		if !drop {
			if _, err := c.Write(buf[:n]); err != nil {
				break
			}
		}
	}
	p.mu.Lock()
	delete(p.conns, c)
	delete(p.conns, m)
	p.mu.Unlock()
}

// cut ends every connection; refuse keeps new ones from being made.
func (p *proxy) cut(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.swallow = refuse, false
	for c := range p.conns {
		c.Close()
	}
}

// mute carries requests on but no answers.
func (p *proxy) mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallow = true
}
