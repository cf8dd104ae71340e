package h2_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/skiff-project/skiff/internal/h2"
)

// TestSpec runs h2spec's 145 tests of RFC 9113 and RFC 7541.
func TestSpec(t *testing.T) {
	h2spec := os.Getenv("SKIFF_H2SPEC")
	if h2spec == "" {
		t.Skip("$SKIFF_H2SPEC is to name the program h2spec: `make h2spec` builds it and runs this")
	}
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)             //nolint:errcheck // many of the requests are broken
		io.WriteString(w, "a body to cut up\n") //nolint:errcheck // h2spec sees
	}), h2.Config{})
	_, port, _ := strings.Cut(addr, ":")
	out, err := exec.CommandContext(t.Context(), h2spec, "--tls", "--insecure", "--host", "127.0.0.1", "--port", port, "--timeout", "10").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("145 passed, 0 skipped, 0 failed")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// await reads frames until want is satisfied by one, and returns its text.
func (c *rawConn) await(t *testing.T, what string, want func(http2.Frame) bool) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // the read tells
	var seen []string
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatalf("no %s: %v, after %s", what, err, strings.Join(seen, "; "))
		}
		if want(f) {
			return
		}
		seen = append(seen, f.Header().String())
	}
}

func goAway(code http2.ErrCode) func(http2.Frame) bool {
	return func(f http2.Frame) bool {
		g, ok := f.(*http2.GoAwayFrame)
		return ok && g.ErrCode == code
	}
}

func reset(id uint32, code http2.ErrCode) func(http2.Frame) bool {
	return func(f http2.Frame) bool {
		r, ok := f.(*http2.RSTStreamFrame)
		return ok && r.StreamID == id && r.ErrCode == code
	}
}

func ended(id uint32) func(http2.Frame) bool {
	return func(f http2.Frame) bool {
		h := f.Header()
		return h.StreamID == id && h.Type <= http2.FrameHeaders && h.Flags&1 != 0
	}
}

// closed waits for the server to hang up.
func (c *rawConn) closed(t *testing.T) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // the read tells
	if _, err := io.Copy(io.Discard, c.Conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection is still open")
	}
}

// waiting is a handler that runs until its request is over or free is closed.
func waiting(free <-chan struct{}) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-free:
		}
	}
}

func TestRequestsBeyondTheLimitAreRefused(t *testing.T) {
	free := make(chan struct{})
	c := dialRaw(t, serve(t, waiting(free), h2.Config{MaxStreams: 2}))
	c.WriteSettings() //nolint:errcheck // the next read tells
	c.get(1, "/")
	c.get(3, "/")
	c.get(5, "/")
	c.await(t, "refusal of the third", reset(5, http2.ErrCodeRefusedStream))
	close(free)
	left := 2
	c.await(t, "answers to the first two", func(f http2.Frame) bool {
		if ended(1)(f) || ended(3)(f) {
			left--
		}
		return left == 0
	})
	c.get(7, "/")
	c.await(t, "answer to the next", ended(7))
}

// CVE-2023-44487: requests that are reset at once leave handlers behind that
// still run, so they count.
func TestRapidReset(t *testing.T) {
	free := make(chan struct{})
	defer close(free)
	var mu sync.Mutex
	running, most := 0, 0
	stubborn := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		<-free // whatever becomes of the request
	})
	c := dialRaw(t, serve(t, stubborn, h2.Config{MaxStreams: 10}))
	go func() {
		c.WriteSettings() //nolint:errcheck // the server hangs up
		for id := uint32(1); id < 4000; id += 2 {
			c.get(id, "/")
			if c.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				return
			}
		}
	}()
	c.await(t, "end of the connection", goAway(http2.ErrCodeEnhanceYourCalm))
	mu.Lock()
	defer mu.Unlock()
	if most > 10 {
		t.Errorf("%d handlers ran at once", most)
	}
}

func TestAnswersThatNobodyReads(t *testing.T) {
	c := dialRaw(t, serve(t, waiting(nil), h2.Config{}))
	c.WriteSettings() //nolint:errcheck // the server hangs up
	c.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for {
		if err := c.WritePing(false, [8]byte{}); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the server neither answers nor hangs up")
			}
			return
		}
	}
}

// A client that takes nothing holds its own connection for the write timeout,
// and nobody else's.
func TestSlowReader(t *testing.T) {
	gone := make(chan error, 1)
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/small" {
			return
		}
		piece := make([]byte, 1<<20)
		for {
			if _, err := w.Write(piece); err != nil {
				gone <- err
				return
			}
		}
	}), h2.Config{WriteTimeout: 500 * time.Millisecond})
	slow, other := dialRaw(t, addr), dialRaw(t, addr)
	slow.takeAll()
	slow.get(1, "/endless")
	other.WriteSettings() //nolint:errcheck // the next read tells
	other.get(1, "/small")
	other.await(t, "answer beside the slow one", ended(1))
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the handler still writes")
	}
}

// Windows hold back a stream, not its neighbours.
func TestFlowControl(t *testing.T) {
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			w.Write(make([]byte, 100_000)) //nolint:errcheck // the client sees
		}
	}), h2.Config{})
	c := dialRaw(t, addr)
	c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}) //nolint:errcheck // the next read tells
	c.get(1, "/big")
	c.await(t, "first ten bytes", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData && f.Header().Length == 10 })
	c.get(3, "/small")
	c.await(t, "answer beside the one that waits", ended(3))
	c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}) //nolint:errcheck // see above
	c.await(t, "990 bytes more", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData && f.Header().Length == 990 })
	c.WriteWindowUpdate(1, 200_000) //nolint:errcheck // see above
	left := 65535 - 1000            // of the connection
	c.await(t, "all the connection takes", func(f http2.Frame) bool { left -= int(f.Header().Length); return left == 0 })
	c.WriteWindowUpdate(0, 200_000) //nolint:errcheck // see above
	c.await(t, "the rest", ended(1))
}

// A client that does not heed the advertised limit.
func TestHeadersTooLarge(t *testing.T) {
	c := dialRaw(t, serve(t, waiting(nil), h2.Config{MaxHeaderBytes: 2000}))
	c.WriteSettings() //nolint:errcheck // the next read tells
	c.headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "localhost", "long", strings.Repeat("x", 1990))
	status := ""
	fields := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			status = f.Value
		}
	})
	c.await(t, "answer", func(f http2.Frame) bool {
		if h, ok := f.(*http2.HeadersFrame); ok {
			fields.Write(h.HeaderBlockFragment()) //nolint:errcheck // an empty status tells
		}
		return ended(1)(f)
	})
	if status != "431" {
		t.Errorf("status %q, want 431", status)
	}
}

// A client that still sends when it is answered gets to read the answer: what it
// sends is dropped, and it is asked to stop only if it does not end by itself.
func TestAnswersBeforeTheBody(t *testing.T) {
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	}), h2.Config{})
	c := dialRaw(t, addr)
	c.WriteSettings() //nolint:errcheck // the next read tells
	post := []string{":method", "POST", ":scheme", "https", ":path", "/", ":authority", "localhost"}
	quiet := func(want func(http2.Frame) bool) func(http2.Frame) bool {
		return func(f http2.Frame) bool {
			if r, ok := f.(*http2.RSTStreamFrame); ok && !want(f) {
				t.Errorf("stream %d is reset: %v", r.StreamID, r.ErrCode)
			}
			return want(f)
		}
	}
	id := uint32(1)
	for ; id < 40; id += 2 { // 4 MiB, four times what the connection may send untold
		c.headers(id, false, post...)
		c.await(t, "answer", quiet(ended(id)))
		for range 13 {
			c.WriteData(id, false, make([]byte, 16<<10)) //nolint:errcheck // the next read tells
		}
		if id%4 == 1 {
			c.WriteData(id, true, nil) //nolint:errcheck // see above
		} else {
			c.headers(id, true, "checksum", "x")
		}
	}
	c.headers(id, false, post...)
	c.await(t, "answer", quiet(ended(id)))
	c.await(t, "request to stop", quiet(reset(id, http2.ErrCodeNo)))
	c.get(id+2, "/")
	c.await(t, "next answer", quiet(ended(id+2)))
	if _, err := exec.LookPath("curl"); err != nil {
		return // none here to be tried
	}
	body := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(body, make([]byte, 3<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		out, err := exec.CommandContext(t.Context(), "curl", "-sk", "--http2", "--data-binary", "@"+body, "https://"+addr).CombinedOutput()
		if string(out) != "too large\n" {
			t.Errorf("curl is told %q: %v", out, err)
		}
	}
}

func TestBodyOfAnotherLength(t *testing.T) {
	bodies := make(chan string, 1)
	c := dialRaw(t, serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		bodies <- fmt.Sprintf("%s, %v", body, err)
	}), h2.Config{}))
	c.WriteSettings() //nolint:errcheck // the next read tells
	post := []string{":method", "POST", ":scheme", "https", ":path", "/", ":authority", "localhost", "content-length", "5"}
	c.headers(1, false, post...)
	c.WriteData(1, true, []byte("four")) //nolint:errcheck // see above
	c.await(t, "reset", reset(1, http2.ErrCodeProtocol))
	if got := <-bodies; !strings.Contains(got, "the client has gone") {
		t.Errorf("the handler read %s", got)
	}
	c.headers(3, false, post...)
	c.WriteData(3, true, []byte("fives")) //nolint:errcheck // see above
	if got := <-bodies; got != "fives, <nil>" {
		t.Errorf("the handler read %s", got)
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	free := make(chan struct{})
	c := dialRaw(t, serve(t, waiting(free), h2.Config{IdleTimeout: 100 * time.Millisecond}))
	c.WriteSettings() //nolint:errcheck // the next read tells
	c.get(1, "/")
	time.Sleep(300 * time.Millisecond) // it is busy as long as it likes
	close(free)
	c.await(t, "answer", ended(1))
	c.await(t, "parting", goAway(http2.ErrCodeNo))
	c.closed(t)
}

func TestTheFirstFrameIsSettings(t *testing.T) {
	c := dialRaw(t, serve(t, waiting(nil), h2.Config{}))
	c.WriteRawFrame(0x20, 0, 0, nil) //nolint:errcheck // the next read tells; no such frame is known
	c.await(t, "end of the connection", goAway(http2.ErrCodeProtocol))
	c.closed(t)
}

// TestShutdown lets requests end that the client was promised an answer to.
func TestShutdown(t *testing.T) {
	free, began := make(chan struct{}), make(chan struct{})
	srv := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-free
		io.WriteString(w, "done") //nolint:errcheck // the client sees
	}), h2.Config{})
	c := dialRaw(t, srv.addr)
	c.WriteSettings() //nolint:errcheck // the next read tells
	c.get(1, "/")
	<-began
	over := make(chan error, 1)
	go func() { over <- srv.Shutdown(context.WithoutCancel(t.Context())) }()
	c.await(t, "parting", goAway(http2.ErrCodeNo))
	c.get(3, "/too-late")
	close(free)
	c.await(t, "answer", ended(1))
	c.closed(t)
	if err := <-over; err != nil {
		t.Error(err)
	}
}

// TestManyAtOnce holds bodies of all sizes in both directions against each
// other on one connection.
func TestManyAtOnce(t *testing.T) {
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body) //nolint:errcheck // the client compares
	}), h2.Config{StreamWindow: 1 << 16})
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			sent := bytes.Repeat([]byte{byte(i)}, i*i*10)
			resp, err := client.Post("https://"+addr, "", bytes.NewReader(sent))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("sent %d bytes, got %d back: %v", len(sent), len(got), err)
			}
		})
	}
	all.Wait()
}
