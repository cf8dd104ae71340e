package h2_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/skiff-project/skiff/internal/h2"
)

// servers are ours and the standard library's, for the same handler.
func servers(tb testing.TB, run func(name string, start func(http.Handler) string)) {
	run("skiff", func(h http.Handler) string { return serve(tb, h, h2.Config{}) })
	run("net-http", func(h http.Handler) string {
		srv := httptest.NewUnstartedServer(h)
		srv.EnableHTTP2 = true
		srv.StartTLS()
		tb.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	})
}

// running is a server of ours.
type running struct {
	*http.Server
	addr string
}

// newServer runs a server until the test ends.
func newServer(tb testing.TB, h http.Handler, cfg h2.Config) running {
	cert := httptest.NewTLSServer(nil)
	cert.Close()
	srv := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}}
	h2.Attach(srv, cfg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	go srv.ServeTLS(h2.Listen(ln), "", "") //nolint:errcheck // it ends with the test
	tb.Cleanup(func() { srv.Close() })
	return running{srv, ln.Addr().String()}
}

func serve(tb testing.TB, h http.Handler, cfg h2.Config) string { return newServer(tb, h, cfg).addr }

// rawConn is the client's end of a connection, frame by frame.
type rawConn struct {
	net.Conn
	*http2.Framer
	hp  *hpack.Encoder
	buf bytes.Buffer
}

func dialRaw(tb testing.TB, addr string) *rawConn {
	nc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { nc.Close() })
	if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
		tb.Fatal(err)
	}
	c := &rawConn{Conn: nc, Framer: http2.NewFramer(nc, nc)}
	c.SetMaxReadFrameSize(1 << 20)
	c.hp = hpack.NewEncoder(&c.buf)
	return c
}

func (c *rawConn) headers(id uint32, end bool, pairs ...string) {
	c.buf.Reset()
	for i := 0; i < len(pairs); i += 2 {
		c.hp.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}) //nolint:errcheck // to memory
	}
	c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.buf.Bytes(), EndHeaders: true, EndStream: end}) //nolint:errcheck // the next read tells
}

func (c *rawConn) get(id uint32, path string) {
	c.headers(id, true, ":method", "GET", ":scheme", "https", ":path", path, ":authority", "localhost")
}

// takeAll opens the windows as far as they go.
func (c *rawConn) takeAll() {
	c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}) //nolint:errcheck // the next read tells
	c.WriteWindowUpdate(0, 1<<30)                                                    //nolint:errcheck // see above
}

// BenchmarkGet is a small answer, one after the other on a connection; the
// client is next to free.
func BenchmarkGet(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1600)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body) //nolint:errcheck // the client counts
	})
	servers(b, func(name string, start func(http.Handler) string) {
		b.Run(name, func(b *testing.B) {
			c := dialRaw(b, start(h))
			c.takeAll()
			b.ReportAllocs()
			id := uint32(1)
			for b.Loop() {
				c.get(id, "/api/v1/namespaces/default/pods/web")
				awaitEnd(b, c.Conn, id)
				id += 2
			}
		})
	})
}

// awaitEnd reads frames until the stream's last.
func awaitEnd(tb testing.TB, from io.Reader, id uint32) {
	var head [9]byte
	var payload [16 << 10]byte
	for {
		if _, err := io.ReadFull(from, head[:]); err != nil {
			tb.Fatal(err)
		}
		n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
		if _, err := io.ReadFull(from, payload[:n]); err != nil {
			tb.Fatal(err)
		}
		if binary.BigEndian.Uint32(head[5:]) == id && head[4]&1 != 0 && head[3] <= 1 {
			return
		}
	}
}

// BenchmarkFanOut is a change on its way to 1,000 streams of 10 connections.
func BenchmarkFanOut(b *testing.B) {
	const conns, each = 10, 100
	event := bytes.Repeat([]byte("x"), 1600)
	var mu sync.Mutex
	turn := sync.NewCond(&mu)
	now, open := 0, 0
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flush := http.NewResponseController(w)
		flush.Flush() //nolint:errcheck // the next write tells
		mu.Lock()
		seen := now
		open++
		mu.Unlock()
		for {
			mu.Lock()
			for seen == now {
				turn.Wait()
			}
			seen++
			end := now < 0
			mu.Unlock()
			if end {
				return
			}
			if _, err := w.Write(event); err != nil || flush.Flush() != nil {
				return
			}
		}
	})
	servers(b, func(name string, start func(http.Handler) string) {
		b.Run(name, func(b *testing.B) {
			addr := start(h)
			now, open = 0, 0
			var all sync.WaitGroup
			arrived := make(chan int, conns)
			for range conns {
				c := dialRaw(b, addr)
				c.takeAll()
				for i := range each {
					c.get(uint32(2*i+1), "/")
				}
				all.Go(func() { count(c.Conn, each, arrived) })
			}
			for ready := false; !ready; {
				mu.Lock()
				ready = open == conns*each
				mu.Unlock()
			}
			b.ResetTimer()
			for range b.N {
				mu.Lock()
				now++
				turn.Broadcast()
				mu.Unlock()
				for range conns {
					<-arrived
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/conns/each, "ns/watcher")
			mu.Lock()
			now = -1 << 40
			turn.Broadcast()
			mu.Unlock()
		})
	})
}

// count tells of every n DATA frames.
func count(from io.Reader, n int, arrived chan<- int) {
	var head [9]byte
	var payload [1 << 20]byte
	for seen := 0; ; {
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return
		}
		size := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
		if _, err := io.ReadFull(from, payload[:size]); err != nil {
			return
		}
		if head[3] == 0 && size > 0 {
			if seen++; seen%n == 0 {
				arrived <- seen
			}
		}
	}
}

// BenchmarkLarge is an answer of 7 MB.
func BenchmarkLarge(b *testing.B) {
	body := make([]byte, 7<<20)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body) //nolint:errcheck // the client counts
	})
	servers(b, func(name string, start func(http.Handler) string) {
		b.Run(name, func(b *testing.B) {
			c := dialRaw(b, start(h))
			c.takeAll()
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			id := uint32(1)
			for b.Loop() {
				c.get(id, "/")
				awaitEnd(b, c.Conn, id)
				c.WriteWindowUpdate(0, uint32(len(body))) //nolint:errcheck // see above
				id += 2
			}
		})
	})
}
