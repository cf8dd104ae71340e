// Package callout calls the webhooks the API server asks in the course of a
// request: admission and conversion. A webhook is named by URL or by Service
// and trusted by its bundle or the system's roots. Connections are kept and
// reused; answers are bounded; errors read as upstream's clients word them.
package callout

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

// Config makes Clients. All fields are required.
type Config struct {
	// Dial connects; Host finds an endpoint ("address:port") of a Service's port.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Host func(namespace, service, port string) (string, error)
	// Answers decodes what webhooks say.
	Answers runtime.Serializer
	// Body bounds an answer, in bytes.
	Body int64
}

// Target names a webhook: by URL, or by Service where that is set.
type Target struct {
	URL      string
	Service  *Service
	CABundle []byte // PEM; empty: the system's roots
}

// Service names a port of a Service; port 0 is 443.
type Service struct {
	Namespace, Name, Path string
	Port                  int32
}

// Clients are the clients of many webhooks. Those at one address with one
// bundle share connections. Safe for concurrent use.
type Clients struct {
	Config
	mu    sync.Mutex
	byKey map[string]client
}

// maxClients bounds the clients kept, as upstream does.
const maxClients = 200

// New returns clients that have connected nowhere yet.
func New(c Config) *Clients { return &Clients{Config: c, byKey: map[string]client{}} }

// client calls the webhooks at one address.
type client struct {
	rest *rest.RESTClient
	http *http.Transport
}

// Client calls one webhook. Safe for concurrent use.
type Client struct {
	client
	path string
}

// To returns the client of a target. It errs where the target makes no sense.
func (c *Clients) To(t Target) (*Client, error) {
	key, to := "", t.path()
	if t.Service != nil {
		key = fmt.Sprintf("%s/%s:%d\n%s", t.Service.Namespace, t.Service.Name, t.Service.Port, t.CABundle)
	} else {
		key = strings.TrimSuffix(t.URL, to) + "\n" + string(t.CABundle)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.byKey[key]; ok {
		return &Client{have, to}, nil
	}
	made, err := c.connect(t)
	if err != nil {
		return nil, err
	}
	if len(c.byKey) >= maxClients {
		for k, old := range c.byKey { // any: those in use come back at once
			old.http.CloseIdleConnections()
			delete(c.byKey, k)
			break
		}
	}
	c.byKey[key] = made
	return &Client{made, to}, nil
}

// path is the path a target is asked at.
func (t Target) path() string {
	if t.Service != nil {
		return t.Service.Path
	}
	if _, rest, ok := strings.Cut(t.URL, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			return rest[i:]
		}
	}
	return ""
}

func (c *Clients) connect(t Target) (made client, err error) {
	tlsConfig, err := transport.TLSConfigFor(&transport.Config{TLS: transport.TLSConfig{CAData: bytes.TrimSpace(t.CABundle)}})
	if err != nil {
		return made, err
	}
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	const idlePerHost = 25 // upstream's
	tr := &http.Transport{TLSClientConfig: tlsConfig, DialContext: c.Dial, MaxIdleConnsPerHost: idlePerHost, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
	// HTTP/2 would send all requests to one backend.
	tlsConfig.NextProtos = []string{"http/1.1"}
	cfg := &rest.Config{QPS: -1, WarningHandler: rest.NoWarnings{}, ContentConfig: rest.ContentConfig{
		ContentType: runtime.ContentTypeJSON, NegotiatedSerializer: serializer.NegotiatedSerializerWrapper(runtime.SerializerInfo{Serializer: c.Answers}), // whatever an answer calls itself
	}}
	via := &tripper{next: tr, most: c.Body}
	switch {
	case t.Service != nil:
		s := *t.Service
		if s.Port == 0 {
			s.Port = 443
		}
		tlsConfig.ServerName = s.Name + "." + s.Namespace + ".svc"
		cfg.Host = "https://" + net.JoinHostPort(tlsConfig.ServerName, strconv.Itoa(int(s.Port)))
		via.host = func() (string, error) { return c.Host(s.Namespace, s.Name, strconv.Itoa(int(s.Port))) }
	case t.URL != "":
		u, err := url.Parse(t.URL)
		if err != nil {
			return made, fmt.Errorf("Unparsable URL: %w", err) //nolint:staticcheck // upstream's text
		}
		if local(u.Hostname()) {
			tlsConfig.NextProtos, tr.ForceAttemptHTTP2 = nil, true
		}
		cfg.Host = u.Scheme + "://" + u.Host
	default:
		return made, errors.New("webhook configuration must have either service or URL")
	}
	made.http = tr
	through := &http.Client{Transport: via, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	made.rest, err = rest.UnversionedRESTClientForConfigAndClient(cfg, through)
	return made, err
}

func local(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}

// Post sends body as JSON and decodes the answer into into. With announce the
// webhook is told by a parameter how long ctx lets it take.
func (c *Client) Post(ctx context.Context, body []byte, announce bool, into runtime.Object) error {
	r := c.rest.Post().AbsPath(path.Join("/", c.path)).SetHeader("Content-Type", runtime.ContentTypeJSON).Body(body)
	if deadline, ok := ctx.Deadline(); announce && ok {
		if left := time.Until(deadline); left > 0 {
			if whole := left.Truncate(time.Second); whole != left {
				left = whole + time.Second
			}
			r.Timeout(left)
		}
	}
	return r.Do(ctx).Into(into)
}

// tripper sends a request for a Service to one of its endpoints, found anew
// each time so that a kept connection never outlives its endpoint, and bounds
// the answer.
type tripper struct {
	next http.RoundTripper
	host func() (string, error) // nil: as the URL says
	most int64
}

// RoundTrip implements http.RoundTripper.
func (t *tripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.host != nil {
		host, err := t.host()
		if err != nil {
			return nil, err
		}
		name := req.URL.Host
		req = req.Clone(req.Context())
		req.Host, req.URL.Host = name, host
	}
	resp, err := t.next.RoundTrip(req)
	if err == nil {
		resp.Body = &bounded{ReadCloser: resp.Body, left: t.most}
	}
	return resp, err
}

// bounded fails where more than left bytes are read.
type bounded struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("the webhook's answer is too large")
	}
	return n, err
}
