// Package h2 serves HTTP/2 (RFC 9113) to an http.Handler.
//
// It is there for servers of very many short answers and long streams. The
// standard library's hands each frame from the handler's goroutine to the
// connection's, and from there to one that writes it, with a system call for
// each. Here a handler puts its frames behind those of others, and whoever
// comes first writes all that has come: a change that a hundred watches of a
// connection see goes out in one call.
//
// The rest of HTTP stays net/http's: listening, TLS, HTTP/1.1, and what a
// handler may expect of a request and a ResponseWriter. Parsing of frames is
// golang.org/x/net's.
package h2

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Config bounds what a client may take.
type Config struct {
	MaxStreams     int           // requests at once on a connection; default 250
	MaxHeaderBytes int           // of a request, each field counted with 32 bytes more; default 1 MiB
	StreamWindow   int           // bytes of a body that wait to be read; default 256 KiB
	ConnWindow     int           // the same of all bodies of a connection; default 1 MiB
	IdleTimeout    time.Duration // a connection without requests is closed after it, at most half as much later; default 90 s
	WriteTimeout   time.Duration // for a peer to take what was sent, at most 128 KiB; default 30 s
	Log            *slog.Logger  // clients' faults, at debug level; default none
}

// server serves the HTTP/2 connections of one http.Server.
type server struct {
	cfg Config

	mu      sync.Mutex
	conns   map[*conn]struct{}
	closing bool
}

// Attach makes srv serve HTTP/2 by this package, within these bounds. Its listener is
// to be wrapped with Listen. To be called before srv serves.
func Attach(srv *http.Server, cfg Config) {
	or := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	or(&cfg.MaxStreams, 250)
	or(&cfg.MaxHeaderBytes, 1<<20)
	or(&cfg.StreamWindow, 256<<10)
	or(&cfg.ConnWindow, 1<<20)
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 90 * time.Second
	}
	if cfg.WriteTimeout <= 0 {
		cfg.WriteTimeout = 30 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{cfg: cfg, conns: map[*conn]struct{}{}}
	if srv.TLSNextProto == nil {
		srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	srv.TLSNextProto["h2"] = s.serve
	if srv.TLSConfig != nil {
		// Records grow by themselves only after each pause; a watch always pauses.
		srv.TLSConfig.DynamicRecordSizingDisabled = true
	}
	srv.RegisterOnShutdown(s.goAway)
}

// serve is net/http's call for a connection whose client chose HTTP/2. It
// returns when the connection is over and its handlers have been told.
func (s *server) serve(_ *http.Server, nc *tls.Conn, handler http.Handler) {
	c := newConn(s, nc, handler)
	s.mu.Lock()
	s.conns[c] = struct{}{}
	closing := s.closing
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	if closing {
		c.goAway()
	}
	c.serve()
}

// goAway lets every connection end with the requests it has.
func (s *server) goAway() {
	s.mu.Lock()
	s.closing = true
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.goAway()
	}
}

// Listen wraps a listener so that what is written in one go is one system
// call, though TLS cuts it into records of 16 KiB.
func Listen(ln net.Listener) net.Listener { return listener{ln} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gather{Conn: nc}, nil
}

// gather keeps what is written while it is held.
type gather struct {
	net.Conn
	mu   sync.Mutex
	held *[]byte // nil: not held
}

func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	if g.held != nil {
		*g.held = append(*g.held, p...)
		g.mu.Unlock()
		return len(p), nil
	}
	g.mu.Unlock()
	return g.Conn.Write(p)
}

func (g *gather) hold() {
	g.mu.Lock()
	g.held = buffers.Get().(*[]byte)
	g.mu.Unlock()
}

func (g *gather) release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	held := g.held
	g.held = nil
	_, err := g.Conn.Write(*held)
	free(held)
	return err
}

// buffers are lent to connections that have something to write. They grow to
// what a busy connection has at once, and stay so until the next collection.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 16<<10)
	return &b
}}

func free(b *[]byte) {
	if cap(*b) > 2*maxPending { // an unusual answer's
		return
	}
	*b = (*b)[:0]
	buffers.Put(b)
}
