package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/aggregator"
	"github.com/skiff-project/skiff/apiserver/audit"
	"github.com/skiff-project/skiff/apiserver/fairness"
	"github.com/skiff-project/skiff/apiserver/inprocess"
	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/auth"
)

// call is one request on its way through the server.
type call struct {
	req      *http.Request
	received time.Time
	w        *metrics.Recorder
	audit    *audit.Trail
	query    url.Values
	info     *request.Info
	user     caller
	ep       *endpoint // for resource requests
	warnings []string
	warned   int
	limit    time.Duration // of the whole request, unless it is long-running
}

func (c *call) ctx() context.Context { return c.req.Context() }

// caller is the authenticated user; local tells one inside this process.
type caller struct {
	auth.User
	local bool
}

// caller is who an aggregated server is told the request is from.
func (s *Server) caller(c *call) aggregator.Caller {
	return aggregator.Caller{User: c.user.User, Watch: c.info.LongRunning(c.query), Delegated: c.w.Delegated, Fail: func(err error) { s.fail(c, err) }}
}

// Handler returns the server as an http.Handler.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// serve is the pipeline.
func (s *Server) serve(w http.ResponseWriter, req *http.Request) {
	rec := &metrics.Recorder{ResponseWriter: w}
	start := s.cfg.Clock.Now()
	c := &call{req: req, received: start, w: rec, query: req.URL.Query()}
	c.info = request.Parse(req, c.query)
	defer func() {
		p := recover()
		defer c.audit.End(rec.Code, p)
		if rec.Code == http.StatusGatewayTimeout && c.limit > 0 && s.cfg.Clock.Since(start) >= c.limit {
			s.metrics.Terminated(c.counted(), rec.Code)
		}
		if p != nil {
			s.panicked(c, rec, p)
		}
		s.metrics.Observe(c.counted(), rec.Code, s.cfg.Clock.Since(start), c.info.Waiting(), rec.Size)
	}()
	id := req.Header.Get("Audit-Id")
	if id == "" || len(id) > 64 {
		if !isLocal(req) || s.cfg.Audit != nil {
			id = string(uuid.NewUUID())
		}
	}
	if id != "" {
		w.Header().Set("Audit-Id", id)
	}
	w.Header().Set("Cache-Control", "no-cache, private")
	if !s.authenticate(c, start, id) {
		return
	}
	var err error
	if c.limit, err = c.info.Timeout(c.query, s.cfg.RequestTimeout); err != nil {
		s.fail(c, err)
		return
	}
	arrived := s.cfg.Clock.Now()
	release, ok := s.admitInFlight(c)
	c.info.Wait(s.cfg.Clock.Since(arrived))
	if !ok {
		c.ep = s.endpoints[key3(c.info.Group, c.info.Version, c.info.Resource)]
		s.metrics.Terminated(c.counted(), rec.Code)
		return
	}
	defer release()
	if !c.info.LongRunning(c.query) {
		ctx, cancel := context.WithTimeout(c.ctx(), c.limit)
		defer cancel()
		c.req = c.req.WithContext(ctx)
	}
	if !s.authorize(c) {
		return
	}
	s.route(c)
}

// counted is what the request is counted under.
func (c *call) counted() metrics.Request {
	if c.ep == nil {
		return metrics.Request{}
	}
	r := metrics.Request{
		Verb: c.info.Verb, Group: c.ep.kind.Group, Version: c.ep.kind.Version, Resource: c.ep.res.Name,
		Named: c.info.Name != "", Namespaced: c.info.Namespace != "", DryRun: c.query.Get("dryRun") == metav1.DryRunAll,
		Apply: c.info.Verb == "patch" && c.req.Header.Get("Content-Type") == string(types.ApplyYAMLPatchType),
	}
	if c.ep.subs[c.info.Subresource] != nil {
		r.Subresource = c.info.Subresource
	}
	return r
}

// panicked answers a handler that panicked, if nothing was sent yet.
func (s *Server) panicked(c *call, rec *metrics.Recorder, p any) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		s.metrics.Aborted(c.counted())
		panic(p)
	}
	s.cfg.Log.Error("panic while serving a request", "method", c.req.Method, "path", c.req.URL.Path, "panic", p, "stack", string(debug.Stack()))
	if rec.Code == 0 {
		s.fail(c, apierrors.NewInternalError(fmt.Errorf("This request caused apiserver to panic. Look in the logs for details."))) //nolint:staticcheck // upstream's text
		return
	}
	panic(http.ErrAbortHandler) // cut the connection: the client must not take half an answer for a whole one
}

// beginAudit begins the record of a request, or answers it where it must be recorded and cannot.
func (s *Server) beginAudit(c *call, received time.Time, id string) bool {
	if s.cfg.Audit == nil {
		return true
	}
	var err error
	if c.audit, err = s.cfg.Audit.Begin(c.req, c.info.Attributes(c.user.User), id, received); err != nil {
		s.fail(c, apierrors.NewInternalError(err))
		return false
	}
	if c.audit != nil && c.info.LongRunning(c.query) {
		c.w.Begun = c.audit.Started
	}
	return true
}

// authenticate finds the user or answers 401.
func (s *Server) authenticate(c *call, received time.Time, id string) bool {
	var remarks *auth.Remarks
	if u, ok := inprocess.User(c.req); ok {
		c.user = caller{u, true}
	} else {
		var who auth.Identity
		var err error
		if s.cfg.Authenticator != nil {
			who, ok, err = s.cfg.Authenticator.Authenticate(c.req)
		}
		s.metrics.Authenticated(c.req, who, ok, err, s.cfg.Clock.Since(received))
		if err != nil || !ok {
			if err != nil {
				s.cfg.Log.Debug("unable to authenticate the request", "error", err)
			}
			if s.beginAudit(c, received, id) {
				s.remark(c, auth.RemarksOf(err))
				c.audit.Failed(c.req)
				s.fail(c, apierrors.NewUnauthorized("Unauthorized"))
			}
			return false
		}
		c.user.User, remarks = who.User, who.Remarks
	}
	if !s.beginAudit(c, received, id) {
		return false
	}
	s.remark(c, remarks)
	if !s.impersonate(c) {
		return false
	}
	if !c.info.ReadOnly() { // for strategies and plugins
		ctx := request.WithInfo(c.ctx(), c.info, c.user.User)
		if ctx = admission.WithWarner(ctx, c.warn); c.audit != nil {
			ctx = admission.WithAnnotator(ctx, c.audit.Admitted)
		}
		c.req = c.req.WithContext(ctx)
	}
	return true
}

// remark passes on what is said of the credential.
func (s *Server) remark(c *call, r *auth.Remarks) {
	if r != nil {
		c.warn(r.Warning)
		c.audit.AnnotateAll("", r.Annotations)
	}
}

// admitInFlight waits for the request's turn, or answers that there is none.
func (s *Server) admitInFlight(c *call) (release func(), ok bool) {
	a := c.info.Attributes(c.user.User)
	return s.gate.Admit(c.w, c.req.Context(), fairness.Request{
		Attributes: &a, Query: c.query, Wait: c.limit / 4, Stream: c.info.LongRunning(c.query), Own: c.user.local,
		Stats: func() (int, int64) {
			if ep := s.endpoints[key3(a.APIGroup, a.APIVersion, a.Resource)]; ep != nil && ep.reg != nil {
				return ep.reg.Stats()
			}
			return 0, 0
		},
	})
}

func (s *Server) authorize(c *call) bool {
	attrs, asked := c.info.Attributes(c.user.User), s.cfg.Clock.Now()
	d, reason, err := s.cfg.Authorizer.Authorize(c.ctx(), attrs)
	s.metrics.Authorized(d, err, s.cfg.Clock.Since(asked))
	c.audit.Authorized(d, reason, err)
	if err := request.Refusal(attrs, d, reason, err); err != nil {
		s.fail(c, err)
		return false
	}
	return true
}

// allowed asks the authorizer and returns the 403 when the answer is no.
func (s *Server) allowed(ctx context.Context, a auth.Attributes) error {
	d, reason, err := s.cfg.Authorizer.Authorize(ctx, a)
	return request.Refusal(a, d, reason, err)
}

// route sends a request to its handler.
func (s *Server) route(c *call) {
	if s.aggregator.Serve(c.w, c.req, s.caller(c)) {
		return
	}
	if !c.info.IsResource {
		s.serveNonResource(c)
		return
	}
	i := c.info
	c.ep = s.endpoints[key3(i.Group, i.Version, i.Resource)]
	if (i.Prefix == "api") != (i.Group == "") {
		c.ep = nil
	}
	if c.ep == nil {
		c.ep = s.customEndpoint(c)
	}
	if c.ep == nil || i.Namespace != "" && !c.ep.res.Namespaced && i.Resource != "namespaces" {
		s.notFoundPath(c)
		return
	}
	if i.BadFields != nil {
		s.fail(c, apierrors.NewBadRequest(i.BadFields.Error()))
		return
	}
	if d := c.ep.ver.Deprecated; d != "" {
		c.warn(d)
		c.audit.Annotate("k8s.io/deprecated", "true")
		s.metrics.Deprecated(c.counted())
	}
	if i.LongRunning(c.query) {
		defer s.metrics.Stream(c.counted())()
	}
	if i.Subresource != "" {
		s.serveSubresource(c)
		return
	}
	if !c.ep.serves(i.Verb) || !c.ep.custom() && (c.req.Method == http.MethodHead || i.Name == "" && (i.Verb == "update" || i.Verb == "patch")) {
		s.fail(c, methodNotAllowed(c))
		return
	}
	if c.ep.res.Virtual {
		s.serveReview(c)
		return
	}
	s.serveVerb(c)
}

func (s *Server) serveVerb(c *call) {
	switch c.info.Verb {
	case "get":
		s.get(c)
	case "list":
		s.list(c)
	case "watch":
		s.watch(c)
	case "create":
		s.create(c)
	case "update":
		s.update(c)
	case "patch":
		s.patch(c)
	case "delete":
		s.delete(c)
	case "deletecollection":
		s.deleteCollection(c)
	default:
		s.fail(c, methodNotAllowed(c))
	}
}

func methodNotAllowed(c *call) error {
	return generic(http.StatusMethodNotAllowed, "")
}

// notFoundPath is the answer to a path nothing is served at.
func (s *Server) notFoundPath(c *call) {
	h := c.w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(http.StatusNotFound)
	fmt.Fprintln(c.w, "404 page not found")
}
