package connect

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Upgrade connects the client to a backend that switches protocols (SPDY,
// websocket). If the backend refuses, its answer is passed on and its
// connection closed: nothing more may be sent over it.
func (p *Proxy) Upgrade(c Call, t Target) {
	backend, br, resp := p.openBackend(c, c.Req, t)
	if backend == nil {
		return
	}
	defer backend.Close()
	conn, rw, err := http.NewResponseController(c.W).Hijack()
	if err != nil {
		c.Fail(status(http.StatusHTTPVersionNotSupported, metav1.StatusReasonBadRequest, "protocol upgrades need HTTP/1.1"))
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{}) //nolint:errcheck // a stream lasts as long as it lasts
	var head bytes.Buffer
	fmt.Fprintf(&head, "HTTP/1.1 101 Switching Protocols\r\n")
	resp.Header.Write(&head) //nolint:errcheck // a buffer
	head.WriteString("\r\n")
	if _, err := conn.Write(head.Bytes()); err != nil {
		return
	}
	p.join(conn, rw.Reader, backend, br)
}

// openBackend sends the upgrade request in to the target and returns the
// connection once the target has switched protocols. Otherwise it has
// answered the client and returns nil.
func (p *Proxy) openBackend(c Call, in *http.Request, t Target) (net.Conn, *bufio.Reader, *http.Response) {
	backend, err := p.dialTarget(c, t)
	if err != nil {
		c.Fail(apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err)))
		return nil, nil, nil
	}
	if err := sendUpgrade(backend, in, t); err != nil {
		backend.Close()
		c.Fail(apierrors.NewInternalError(fmt.Errorf("error sending request: %w", err)))
		return nil, nil, nil
	}
	backend.SetReadDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // bounds the handshake only
	br := bufio.NewReader(backend)
	resp, err := http.ReadResponse(br, in)
	if err != nil {
		backend.Close()
		c.Fail(apierrors.NewInternalError(fmt.Errorf("error reading backend response: %w", err)))
		return nil, nil, nil
	}
	backend.SetReadDeadline(time.Time{}) //nolint:errcheck // see above
	if resp.StatusCode != http.StatusSwitchingProtocols {
		refuseUpgrade(c, resp)
		backend.Close()
		return nil, nil, nil
	}
	return backend, br, resp
}

func (p *Proxy) dialTarget(c Call, t Target) (net.Conn, error) {
	host := t.URL.Host
	if t.URL.Port() == "" {
		port := "80"
		if t.URL.Scheme == "https" {
			port = "443"
		}
		host = net.JoinHostPort(t.URL.Hostname(), port)
	}
	conn, err := p.Dial(c.Req.Context(), "tcp", host)
	if err != nil || t.URL.Scheme != "https" {
		return conn, err
	}
	conf := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see Proxy.transport
	if t.TLS != nil {
		conf = t.TLS.Clone()
	}
	conf.NextProtos = []string{"http/1.1"}
	if conf.ServerName == "" {
		conf.ServerName = t.URL.Hostname()
	}
	tc := tls.Client(conn, conf)
	if err := tc.HandshakeContext(c.Req.Context()); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

// sendUpgrade writes the client's request for the backend, without the
// client's credentials.
func sendUpgrade(w io.Writer, in *http.Request, t Target) error {
	out := in.Clone(in.Context())
	out.URL, out.Host, out.RequestURI = t.URL, t.URL.Host, ""
	out.Body, out.ContentLength = http.NoBody, 0
	for _, h := range []string{"Authorization", "X-Remote-User", "X-Remote-Group", "Cookie"} {
		out.Header.Del(h)
	}
	if t.Identify != nil {
		t.Identify(out)
	}
	out.Header.Set("Connection", "Upgrade")
	if out.Method == http.MethodHead {
		out.Method = http.MethodGet
	}
	return out.Write(w)
}

func refuseUpgrade(c Call, resp *http.Response) {
	defer resp.Body.Close()
	const most = 64 * 1024
	for k, v := range resp.Header {
		if k != "Connection" && k != "Upgrade" && !strings.HasPrefix(k, "Transfer-") {
			c.W.Header()[k] = v
		}
	}
	c.W.Header().Del("Content-Length")
	c.W.WriteHeader(resp.StatusCode)
	io.Copy(c.W, io.LimitReader(resp.Body, most)) //nolint:errcheck // the client went away
}

// join copies both ways until one side ends or the server stops.
func (p *Proxy) join(a net.Conn, ar io.Reader, b net.Conn, br io.Reader) {
	done := make(chan struct{}, 2)
	var once sync.Once
	closeBoth := func() { once.Do(func() { a.Close(); b.Close() }) }
	pipe := func(dst net.Conn, src io.Reader) {
		io.Copy(dst, src) //nolint:errcheck // either end closing ends the stream
		if cw, ok := dst.(interface{ CloseWrite() error }); ok {
			cw.CloseWrite() //nolint:errcheck // half close is best effort
		}
		done <- struct{}{}
	}
	go pipe(b, ar)
	go pipe(a, br)
	select {
	case <-done:
	case <-p.Stopping:
	}
	const linger = 5 * time.Second // for the other direction's last bytes
	select {
	case <-done:
	case <-time.After(linger):
	case <-p.Stopping:
	}
	closeBoth()
}
