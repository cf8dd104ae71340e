package apiserver

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func invalidLogOption(name string, value int64) error {
	msg := "must be greater than 0"
	if name == "tailLines" {
		msg = "must be greater than or equal to 0"
	}
	return apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, "", field.ErrorList{field.Invalid(field.NewPath(name), value, msg)})
}

func forbiddenLogOption() error {
	return apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, "", field.ErrorList{
		field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified")})
}

// upgrade connects the client to a backend that switches protocols (SPDY,
// websocket). If the backend refuses, its answer is passed on and its
// connection closed: nothing more may be sent over it.
func (s *Server) upgrade(c *call, t target) {
	backend, br, resp := s.openBackend(c, c.req, t)
	if backend == nil {
		return
	}
	defer backend.Close()
	conn, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		s.fail(c, statusError(http.StatusHTTPVersionNotSupported, metav1.StatusReasonBadRequest, "protocol upgrades need HTTP/1.1"))
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
	s.join(conn, rw.Reader, backend, br)
}

// openBackend sends the upgrade request in to the target and returns the
// connection once the target has switched protocols. Otherwise it has
// answered the client and returns nil.
func (s *Server) openBackend(c *call, in *http.Request, t target) (net.Conn, *bufio.Reader, *http.Response) {
	backend, err := s.dialTarget(c, t)
	if err != nil {
		s.fail(c, apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err)))
		return nil, nil, nil
	}
	if err := sendUpgrade(backend, in, t.url); err != nil {
		backend.Close()
		s.fail(c, apierrors.NewInternalError(fmt.Errorf("error sending request: %w", err)))
		return nil, nil, nil
	}
	backend.SetReadDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // bounds the handshake only
	br := bufio.NewReader(backend)
	resp, err := http.ReadResponse(br, in)
	if err != nil {
		backend.Close()
		s.fail(c, apierrors.NewInternalError(fmt.Errorf("error reading backend response: %w", err)))
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

func (s *Server) dialTarget(c *call, t target) (net.Conn, error) {
	host := t.url.Host
	if t.url.Port() == "" {
		port := "80"
		if t.url.Scheme == "https" {
			port = "443"
		}
		host = net.JoinHostPort(t.url.Hostname(), port)
	}
	conn, err := s.cfg.Dial(c.ctx(), "tcp", host)
	if err != nil || t.url.Scheme != "https" {
		return conn, err
	}
	conf := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see Server.transport
	if t.tls != nil {
		conf = t.tls.Clone()
	}
	conf.NextProtos = []string{"http/1.1"}
	if conf.ServerName == "" {
		conf.ServerName = t.url.Hostname()
	}
	tc := tls.Client(conn, conf)
	if err := tc.HandshakeContext(c.ctx()); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

// sendUpgrade writes the client's request for the backend, without the
// client's credentials.
func sendUpgrade(w io.Writer, in *http.Request, to *url.URL) error {
	out := in.Clone(in.Context())
	out.URL, out.Host, out.RequestURI = to, to.Host, ""
	out.Body, out.ContentLength = http.NoBody, 0
	for _, h := range []string{"Authorization", "X-Remote-User", "X-Remote-Group", "Cookie"} {
		out.Header.Del(h)
	}
	out.Header.Set("Connection", "Upgrade")
	if out.Method == http.MethodHead {
		out.Method = http.MethodGet
	}
	return out.Write(w)
}

func refuseUpgrade(c *call, resp *http.Response) {
	defer resp.Body.Close()
	const most = 64 * 1024
	for k, v := range resp.Header {
		if k != "Connection" && k != "Upgrade" && !strings.HasPrefix(k, "Transfer-") {
			c.w.Header()[k] = v
		}
	}
	c.w.Header().Del("Content-Length")
	c.w.WriteHeader(resp.StatusCode)
	io.Copy(c.w, io.LimitReader(resp.Body, most)) //nolint:errcheck // the client went away
}

// join copies both ways until one side ends or the server stops.
func (s *Server) join(a net.Conn, ar io.Reader, b net.Conn, br io.Reader) {
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
	case <-s.stopping:
	}
	const linger = 5 * time.Second // for the other direction's last bytes
	select {
	case <-done:
	case <-time.After(linger):
	case <-s.stopping:
	}
	closeBoth()
}

// rewriteResponse makes a proxied redirect lead through the proxy again.
func rewriteResponse(resp *http.Response, to *url.URL, base string) error {
	loc := resp.Header.Get("Location")
	if loc == "" {
		return nil
	}
	u, err := url.Parse(loc)
	if err != nil || u.Host != "" && u.Host != to.Host || !strings.HasPrefix(u.Path, "/") {
		return nil //nolint:nilerr // a redirect elsewhere is the client's to follow
	}
	u.Scheme, u.Host = "", ""
	u.Path = strings.TrimSuffix(base, "/") + u.Path
	resp.Header.Set("Location", u.String())
	return nil
}
