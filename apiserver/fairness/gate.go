package fairness

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/apiserver/initial"
	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/auth"
)

// Limits are how many requests that are not streams are worked on at once;
// negative: any number. Their sum is what priority and fairness divides.
type Limits struct {
	ReadOnly, Mutating int
	NoFairness         bool // they are two plain bounds
}

// NewGate returns a gate that lets in by the built-in schemas until those that
// are stored are followed.
func NewGate(l Limits, streams int, c clock.WithTickerAndDelayedExecution) *Gate {
	g := &Gate{limits: l, maxStreams: streams}
	if !l.NoFairness {
		g.Limiter = New(max(l.ReadOnly, 0)+max(l.Mutating, 0), c)
		g.Limiter.Configure(initial.PriorityLevels(), initial.FlowSchemas())
	}
	return g
}

// Gate is what a request passes before it is worked on: priority and
// fairness, or without a Limiter plain bounds on how many are in flight.
type Gate struct {
	Limiter    *Limiter // nil: none
	limits     Limits
	maxStreams int

	readOnly, mutating, streams atomic.Int64
}

// Request is one that asks to be let in.
type Request struct {
	Attributes *auth.Attributes
	Query      url.Values
	// Stream tells one that lasts as long as its client likes. A watch keeps
	// its place only until its answer begins, or is another server's to give; others take none.
	Stream bool
	Own    bool          // it is of this process
	Wait   time.Duration // it waits at most
	// Stats tells how many objects the resource has and how large they are.
	Stats func() (n int, each int64)
}

// Admit waits for a request's turn; release gives its place to others. When
// there is no place it answers that the client is to come again later.
func (g *Gate) Admit(w *metrics.Recorder, ctx context.Context, r Request) (release func(), ok bool) {
	streams := func() {}
	if r.Stream {
		streams = func() { g.streams.Add(-1) }
		if n := g.streams.Add(1); n > int64(g.maxStreams) && !r.Own && !master(r.Attributes) {
			streams()
			refuse(w)
			return nil, false
		}
		if r.Attributes.Verb != "watch" {
			return streams, true
		}
	}
	t, err := g.enter(ctx, r)
	if t.pass != nil {
		w.Header().Set(flowcontrolv1.ResponseHeaderMatchedPriorityLevelConfigurationUID, t.pass.Level())
		w.Header().Set(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID, t.pass.Schema())
	}
	if err != nil {
		streams()
		refuse(w)
		return nil, false
	}
	if !r.Stream {
		return t.leave, true
	}
	w.Delegated = t.leave
	begun := w.Begun
	w.Begun = func(code int) {
		if t.leave(); begun != nil {
			begun(code)
		}
	}
	ended := func() {}
	if g.Limiter != nil {
		ended = g.Limiter.Watching(r.Attributes)
	}
	return func() { t.leave(); ended(); streams() }, true
}

func refuse(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "Too many requests, please try again later.", http.StatusTooManyRequests)
}

func master(a *auth.Attributes) bool { return slices.Contains(a.User.Groups, auth.GroupMasters) }

// ticket is a request's place, if it has one.
type ticket struct {
	pass  *Pass
	count *atomic.Int64
}

// enter's ticket is valid on an error too.
func (g *Gate) enter(ctx context.Context, r Request) (*ticket, error) {
	a := r.Attributes
	t, limit := &ticket{count: &g.mutating}, g.limits.Mutating
	if a.Verb == "get" || a.Verb == "list" || a.Verb == "watch" {
		t.count, limit = &g.readOnly, g.limits.ReadOnly
	}
	var err error
	if g.Limiter != nil {
		t.pass, err = g.Limiter.Enter(ctx, a, r.Wait, func(most int) Work { return g.Limiter.work(a, r.Query, most, r.Stats) })
		limit = -1
	}
	if err == nil {
		n := t.count.Add(1)
		if limit < 0 || n <= int64(limit) || master(a) {
			return t, nil
		}
		t.count.Add(-1)
		err = ErrLimit
	}
	t.count = nil
	return t, err
}

// leave may be called more than once.
func (t *ticket) leave() {
	if t.count == nil {
		return
	}
	t.count.Add(-1)
	if t.count = nil; t.pass != nil {
		t.pass.Leave()
	}
}

// work is what a request costs.
func (l *Limiter) work(a *auth.Attributes, query url.Values, most int, stats func() (int, int64)) Work {
	switch a.Verb {
	case "watch":
		if rv := query.Get("resourceVersion"); rv != "" && rv != "0" && query.Get("sendInitialEvents") != "true" {
			break
		}
		fallthrough
	case "list":
		n, each := stats()
		if limit := query.Get("limit"); limit != "" && a.Verb == "list" {
			n = min(n, atoi(limit, n))
		}
		if a.Name != "" {
			n = min(n, 1)
		}
		return List(n, each, most)
	case "create", "update", "patch", "delete":
		if a.ResourceRequest {
			return l.Write(a, most)
		}
	}
	return Work{Seats: 1}
}

// atoi reads a positive number, else returns other.
func atoi(s string, other int) int {
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 1<<30 {
			return other
		}
		n = 10*n + int(c-'0')
	}
	if n == 0 {
		return other
	}
	return n
}

// Collectors are the Gate's metrics.
func (g *Gate) Collectors() []prometheus.Collector {
	inflight := func(kind string, n *atomic.Int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_current_inflight_requests", Help: "Requests being served now.", ConstLabels: prometheus.Labels{"request_kind": kind},
		}, func() float64 { return float64(n.Load()) })
	}
	out := []prometheus.Collector{inflight("readOnly", &g.readOnly), inflight("mutating", &g.mutating), inflight("longRunning", &g.streams)}
	if g.Limiter != nil {
		out = append(out, g.Limiter)
	}
	return out
}
