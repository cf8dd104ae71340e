package etcdapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// handshakeTimeout bounds how long a connection may take to say what it wants.
const handshakeTimeout = 10 * time.Second

// requestTimeout is how long the first request of an HTTP/2 connection is
// waited for, if nothing before it tells gRPC.
const requestTimeout = 250 * time.Millisecond

// settingGRPC is a setting that only gRPC clients send.
const settingGRPC = http2.SettingID(0xfe03)

// mux gives each connection of one listener to gRPC or to HTTP. What a client
// negotiates does not tell: curl and Go's http.Client talk HTTP/2 as well. So
// an HTTP/2 connection is judged by the content type of its first request.
type mux struct {
	lis  net.Listener
	tls  *tls.Config
	grpc *queue
	http *queue
	wg   sync.WaitGroup
}

func newMux(lis net.Listener, conf *tls.Config) *mux {
	if conf != nil {
		conf = conf.Clone()
		conf.NextProtos = []string{"h2", "http/1.1"}
		conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
	}
	return &mux{lis: lis, tls: conf, grpc: newQueue(lis.Addr()), http: newQueue(lis.Addr())}
}

// run accepts connections until the listener is closed.
func (m *mux) run() error {
	for {
		conn, err := m.lis.Accept()
		var temporary interface{ Temporary() bool }
		if errors.As(err, &temporary) && temporary.Temporary() {
			time.Sleep(10 * time.Millisecond) // out of file descriptors: shed load
			continue
		}
		if err != nil {
			return err
		}
		m.wg.Go(func() { m.route(conn) })
	}
}

func (m *mux) close() {
	m.lis.Close()
	m.grpc.Close()
	m.http.Close()
	m.wg.Wait()
}

func (m *mux) route(conn net.Conn) {
	stop := context.AfterFunc(m.grpc.ctx, func() { conn.Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if m.tls != nil {
		secure := tls.Server(conn, m.tls)
		if err := secure.Handshake(); err != nil {
			conn.Close()
			return
		}
		conn = secure
	}
	to, conn, err := m.judge(conn)
	if err != nil {
		conn.Close()
		return
	}
	conn.SetDeadline(time.Time{})
	stop()
	to.give(conn)
}

// judge reads the beginning of a connection and returns who serves it, and
// the connection with what was read put back.
func (m *mux) judge(conn net.Conn) (*queue, net.Conn, error) {
	var seen bytes.Buffer
	in := bufio.NewReaderSize(io.TeeReader(conn, &seen), 512)
	preface, err := in.Peek(len(http2.ClientPreface))
	if err != nil && (len(preface) == 0 || strings.HasPrefix(http2.ClientPreface, string(preface))) {
		return nil, conn, err
	}
	to := m.http
	if bytes.Equal(preface, []byte(http2.ClientPreface)) {
		in.Discard(len(preface))
		conn.SetDeadline(time.Now().Add(requestTimeout))
		to = m.judgeRequest(in, &seen)
	}
	return to, &replayed{Conn: conn, seen: seen.Bytes()}, nil
}

// judgeRequest looks at the first request. gRPC clients, unlike others, may
// wait for the server to speak first: who sends none is one of them.
func (m *mux) judgeRequest(in io.Reader, seen *bytes.Buffer) *queue {
	framer := http2.NewFramer(io.Discard, in)
	framer.SetMaxReadFrameSize(1 << 14)
	for seen.Len() < 1<<16 {
		frame, err := framer.ReadFrame()
		if err != nil {
			return m.grpc
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			// grpc-go has no settings of its own; browsers and curl have.
			if _, own := f.Value(settingGRPC); own || f.NumSettings() == 0 && !f.IsAck() {
				return m.grpc
			}
		case *http2.HeadersFrame:
			if isGRPC(f.HeaderBlockFragment()) {
				return m.grpc
			}
			return m.http
		}
	}
	return m.grpc
}

func isGRPC(block []byte) bool {
	fields, _ := hpack.NewDecoder(4096, nil).DecodeFull(block)
	return slices.ContainsFunc(fields, func(f hpack.HeaderField) bool {
		return f.Name == "content-type" && strings.HasPrefix(f.Value, "application/grpc")
	})
}

// replayed is a connection whose first bytes were read already.
type replayed struct {
	net.Conn
	seen []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.seen) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.seen)
	if r.seen = r.seen[n:]; len(r.seen) == 0 {
		r.seen = nil
	}
	return n, nil
}

// queue is a net.Listener that is given its connections.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	ctx   context.Context
	stop  context.CancelFunc
}

func newQueue(addr net.Addr) *queue {
	ctx, stop := context.WithCancel(context.Background())
	return &queue{addr: addr, conns: make(chan net.Conn), ctx: ctx, stop: stop}
}

func (q *queue) give(conn net.Conn) {
	select {
	case q.conns <- conn:
	case <-q.ctx.Done():
		conn.Close()
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.stop()
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }
