package aggregator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/transport"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/skiff-project/skiff/apiserver/connect"
	"github.com/skiff-project/skiff/auth"
)

// discoveryTimeout bounds requests for a version's discovery document, on
// which clients wait before everything else.
const discoveryTimeout = 5 * time.Second

// Caller is who a request is passed on for, as this server knows it.
type Caller struct {
	auth.User
	Watch bool // the request lasts as long as its client likes
	// Fail answers with a Status. Delegated, if set, is called before the other server is asked.
	Fail      func(error)
	Delegated func()
}

// Serve passes a request on to the server it is for; it reports false,
// having done nothing, when that is this one.
func (a *Aggregator) Serve(w http.ResponseWriter, req *http.Request, who Caller) bool {
	r := a.of(req.URL.Path)
	if r == nil {
		return false
	}
	r.serve(w, req, who)
	return true
}

func (r *remote) serve(w http.ResponseWriter, req *http.Request, who Caller) {
	if !r.available.Load() {
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	if r.broken != nil {
		http.Error(w, r.broken.Error(), http.StatusInternalServerError)
		return
	}
	to, err := r.url(req.URL.Path)
	if err != nil {
		r.a.Log.Debug("the Service of an APIService cannot be reached", "apiservice", r.name, "error", err)
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	if who.Delegated != nil {
		who.Delegated()
	}
	to.RawQuery = req.URL.Query().Encode()
	allotted := req.Context()
	ctx, cancel := context.WithCancel(allotted)
	defer cancel()
	if strings.TrimSuffix(req.URL.Path, "/") == r.root() {
		ctx, cancel = context.WithTimeout(ctx, discoveryTimeout)
		defer cancel()
	}
	if who.Watch { // would hold up the end of the server
		defer context.AfterFunc(r.a.life, cancel)()
	}
	req = req.WithContext(ctx)
	identify := func(out *http.Request) {
		out.Header.Del("Authorization")
		if id := w.Header().Get("Audit-Id"); id != "" {
			out.Header.Set("Audit-Id", id)
		}
		transport.SetAuthProxyHeaders(out, who.Name, who.UID, who.Groups, who.Extra)
	}
	if httpstream.IsUpgradeRequest(req) {
		r.a.Proxy.Upgrade(connect.Call{Req: req, W: w, Fail: func(err error) {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}}, connect.Target{URL: to, TLS: r.tls, Identify: identify})
		return
	}
	(&httputil.ReverseProxy{
		Transport: r.transport,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host = to, to.Host
			p.Out.Header["X-Forwarded-For"] = p.In.Header["X-Forwarded-For"]
			p.SetXForwarded()
			p.Out.Header.Set("X-Forwarded-Uri", p.In.URL.Path)
			identify(p.Out)
		},
		ModifyResponse: func(resp *http.Response) error {
			refuseRedirect(resp)
			maps.DeleteFunc(w.Header(), func(k string, _ []string) bool { _, ok := resp.Header[k]; return ok }) // said once is enough
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if errors.Is(allotted.Err(), context.DeadlineExceeded) {
				who.Fail(apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0))
				return
			}
			http.Error(w, "error trying to reach service: "+err.Error(), http.StatusServiceUnavailable)
		},
	}).ServeHTTP(w, req)
}

// refuseRedirect replaces an answer that would send the client, with its
// credentials, elsewhere.
func refuseRedirect(resp *http.Response) {
	if resp.StatusCode < 300 || resp.StatusCode > 399 || resp.Header.Get("Location") == "" {
		return
	}
	const text = "the backend attempted to redirect this request, which is not permitted"
	resp.Body.Close()
	*resp = http.Response{
		StatusCode: http.StatusBadGateway, Status: fmt.Sprintf("%d %s", http.StatusBadGateway, http.StatusText(http.StatusBadGateway)),
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)), Request: resp.Request,
	}
}
