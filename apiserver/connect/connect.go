// Package connect carries requests of API clients on to kubelets, pods and
// services: plain HTTP, logs, and protocol upgrades (SPDY and websockets).
// Clients' credentials never leave the API server, redirects are never
// followed, and a refused upgrade ends the connection it was tried on.
package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Proxy connects clients to targets.
type Proxy struct {
	Dial     DialFunc
	Log      *slog.Logger
	Stopping <-chan struct{} // closed when streams must end
}

// Target is where a request goes. A nil TLS means that an https target's
// certificate is not checked, as upstream treats proxied pods.
type Target struct {
	URL *url.URL
	TLS *tls.Config
	// Identify, when set, tells an upgraded connection's target who the client is.
	Identify func(*http.Request)
}

// Call is one client's request; Fail answers it with an error.
type Call struct {
	Req  *http.Request
	W    http.ResponseWriter
	Fail func(error)
}

// Copy passes a kubelet's plain answer on, flushing as it comes.
func (p *Proxy) Copy(c Call, t Target) {
	client := &http.Client{
		Transport:     p.transport(t.TLS),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(c.Req.Context(), http.MethodGet, t.URL.String(), http.NoBody)
	if err != nil {
		c.Fail(err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		c.Fail(apierrors.NewInternalError(fmt.Errorf("Get %q: %w", t.URL.String(), errors.Unwrap(err)))) //nolint:staticcheck // upstream's text
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.Fail(kubeletError(resp))
		return
	}
	c.W.Header().Set("Content-Type", "text/plain")
	c.W.WriteHeader(http.StatusOK)
	copyFlushing(c.W, resp.Body)
}

// kubeletError turns a kubelet's refusal into a Status.
func kubeletError(resp *http.Response) error {
	const most = 2048
	text, _ := io.ReadAll(io.LimitReader(resp.Body, most))
	switch resp.StatusCode {
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(string(text))
	case http.StatusNotFound:
		return status(http.StatusNotFound, metav1.StatusReasonNotFound, string(text))
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(errors.New(string(text)))
	}
	return status(int32(resp.StatusCode), "", string(text))
}

func copyFlushing(w http.ResponseWriter, r io.Reader) {
	flush := http.NewResponseController(w)
	flush.Flush() //nolint:errcheck // the next write tells
	buf := make([]byte, 32*1024)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			flush.Flush() //nolint:errcheck // the next write tells
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) transport(conf *tls.Config) *http.Transport {
	t := &http.Transport{DialContext: p.Dial, TLSClientConfig: conf, DisableCompression: true, MaxResponseHeaderBytes: 1 << 20}
	if conf == nil {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // proxied pods have certificates nobody can check, as upstream
	}
	return t
}

// Forward proxies one plain request. base is the path the proxied server's
// root has at the API server: redirects and the links in pages go back to the
// client rewritten to lead through the proxy again.
func (p *Proxy) Forward(c Call, t Target, base string) {
	tr := p.transport(t.TLS)
	defer tr.CloseIdleConnections()
	rp := &httputil.ReverseProxy{
		Transport:     tr,
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.Path, r.Out.URL.RawPath = t.URL.Scheme, t.URL.Host, t.URL.Path, ""
			r.Out.Host = t.URL.Host
			r.SetXForwarded()
			r.Out.Header.Set("X-Forwarded-Uri", c.Req.URL.Path)
			for _, h := range []string{"Authorization", "X-Remote-User", "X-Remote-Group"} {
				r.Out.Header.Del(h)
			}
		},
		ModifyResponse: mount{base, []string{t.URL.Host, c.Req.Host}}.rewrite,
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			c.Fail(apierrors.NewServiceUnavailable("error trying to reach service: " + err.Error()))
		},
	}
	rp.ServeHTTP(c.W, c.Req)
}

func status(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}}
}
