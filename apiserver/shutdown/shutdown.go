// Package shutdown is how a server behind a load balancer ends without a client noticing: it says first that it
// is about to, while it serves on, and sends new requests elsewhere while those it has come to their end.
package shutdown

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/apiserver/request"
)

// Options are upstream's; with the zero value a server ends at once.
type Options struct {
	Delay  time.Duration // how long the server serves on while /readyz says that it ends
	Refuse bool          // new requests are answered, with 429, instead of finding nobody
	// Watches is over how long the ends of watches are spread, so that their clients do not all come to another
	// server at once: 200 a second, or as many more as it takes. 0: they end at once.
	Watches time.Duration
}

// watchPause is the longest pause between the ends of two watches.
const watchPause = time.Second / 200

// Shutdown is a server's. Safe for concurrent use.
type Shutdown struct {
	o       Options
	clock   clock.Clock
	leaving atomic.Bool

	mu       sync.Mutex
	refusing bool
	requests int
	none     chan struct{} // closed when refusing and no request is left

	watches int
	last    time.Time     // when watches must have ended; zero: they need not yet
	next    time.Time     // when one may
	pause   time.Duration // until the one after that may
}

// New returns a Shutdown that has not begun.
func New(o Options, c clock.Clock) *Shutdown {
	return &Shutdown{o: o, clock: c, none: make(chan struct{})}
}

// Begun tells whether the server is about to end.
func (s *Shutdown) Begun() bool { return s.leaving.Load() }

// Begin says that the server ends, and returns when it may: after the delay, or when failed has something to tell.
// From then on new requests are refused, if they are to be, and watches may end.
func (s *Shutdown) Begin(failed <-chan error) (err error) {
	s.leaving.Store(true)
	if s.o.Delay > 0 {
		select {
		case <-s.clock.After(s.o.Delay):
		case err = <-failed:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = s.clock.Now()
	s.last, s.pause = s.next.Add(s.o.Watches), min(watchPause, s.o.Watches/time.Duration(max(s.watches, 1)))
	if s.refusing = s.o.Refuse; s.refusing && s.requests == 0 {
		close(s.none)
	}
	return err
}

// Wait returns when the requests that came before are done, or ctx ends; at once where new ones are not refused.
func (s *Shutdown) Wait(ctx context.Context) {
	if !s.o.Refuse {
		return
	}
	select {
	case <-s.none:
	case <-ctx.Done():
	}
}

// Wrap counts and refuses requests before h, and spreads the ends of watches.
func (s *Shutdown) Wrap(h http.Handler) http.Handler {
	if s.o.Watches > 0 {
		h = s.spread(h)
	}
	if !s.o.Refuse {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case exempt(req):
			h.ServeHTTP(w, req)
		case s.enter():
			defer s.leave()
			h.ServeHTTP(w, req)
		default:
			w.Header().Set("Connection", "close")
			w.Header().Set("Retry-After", "5")
			http.Error(w, "The apiserver is shutting down, please try again later.", http.StatusTooManyRequests)
		}
	})
}

// spread keeps the answers to watches open until each may end.
func (s *Shutdown) spread(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.Method != http.MethodGet || request.Parse(req, req.URL.Query()).Verb != "watch":
			h.ServeHTTP(w, req)
		case s.begin():
			defer s.end(req.Context())
			h.ServeHTTP(w, req)
		default:
			st := apierrors.NewServiceUnavailable("apiserver is shutting down").Status()
			st.Kind, st.APIVersion = "Status", "v1"
			w.Header().Set("Retry-After", "1")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(int(st.Code))
			json.NewEncoder(w).Encode(st) //nolint:errcheck // the client is gone
		}
	})
}

// begin counts a watch, unless they end.
func (s *Shutdown) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.IsZero() {
		s.watches++
	}
	return s.last.IsZero()
}

// end returns when a watch may end, or its client is gone.
func (s *Shutdown) end(ctx context.Context) {
	s.mu.Lock()
	s.watches--
	var wait time.Duration
	if now := s.clock.Now(); !s.last.IsZero() {
		if s.next.Before(now) {
			s.next = now
		}
		wait = min(s.next.Sub(now), s.last.Sub(now))
		s.next = s.next.Add(s.pause)
	}
	s.mu.Unlock()
	if wait <= 0 {
		return
	}
	select {
	case <-s.clock.After(wait):
	case <-ctx.Done():
	}
}

// exempt are those who watch the server end, and servers themselves.
func exempt(req *http.Request) bool {
	for _, path := range []string{"/readyz", "/livez", "/healthz", "/metrics"} {
		if strings.HasPrefix(req.URL.Path, path) {
			return true
		}
	}
	return strings.HasPrefix(req.UserAgent(), "kube-apiserver/")
}

func (s *Shutdown) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.refusing {
		s.requests++
	}
	return !s.refusing
}

func (s *Shutdown) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.requests--; s.refusing && s.requests == 0 {
		close(s.none)
	}
}
