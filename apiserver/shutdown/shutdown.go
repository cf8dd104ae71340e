// Package shutdown is how a server behind a load balancer ends without a client noticing: it says first that it
// is about to, while it serves on, and sends new requests elsewhere while those it has come to their end.
package shutdown

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// Options are upstream's; with the zero value a server ends at once.
type Options struct {
	Delay  time.Duration // how long the server serves on while /readyz says that it ends
	Refuse bool          // new requests are answered, with 429, instead of finding nobody
}

// Shutdown is a server's. Safe for concurrent use.
type Shutdown struct {
	o       Options
	clock   clock.Clock
	leaving atomic.Bool

	mu       sync.Mutex
	refusing bool
	requests int
	none     chan struct{} // closed when refusing and no request is left
}

// New returns a Shutdown that has not begun.
func New(o Options, c clock.Clock) *Shutdown {
	return &Shutdown{o: o, clock: c, none: make(chan struct{})}
}

// Begun tells whether the server is about to end.
func (s *Shutdown) Begun() bool { return s.leaving.Load() }

// Begin says that the server ends, and returns when it may: after the delay, or when failed has something to tell.
// From then on new requests are refused, if they are to be.
func (s *Shutdown) Begin(failed <-chan error) (err error) {
	s.leaving.Store(true)
	if s.o.Delay > 0 {
		select {
		case <-s.clock.After(s.o.Delay):
		case err = <-failed:
		}
	}
	if !s.o.Refuse {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusing = true; s.requests == 0 {
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

// Wrap counts and refuses requests before h.
func (s *Shutdown) Wrap(h http.Handler) http.Handler {
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
