package shutdown

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"
)

// A server serves on for the delay, then refuses what is new and waits for what is not.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Delay: time.Minute, Refuse: true}, clock.RealClock{})
		slow := make(chan struct{})
		h := s.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/slow" {
				<-slow
			}
		}))
		get := func(path, agent string) int {
			req := httptest.NewRequest("GET", path, http.NoBody)
			req.Header.Set("User-Agent", agent)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			if w.Code == 429 && (w.Header().Get("Retry-After") != "5" || w.Header().Get("Connection") != "close") {
				t.Errorf("a refusal with %v", w.Header())
			}
			return w.Code
		}
		go get("/slow", "")
		began, done := time.Now(), make(chan time.Duration)
		go func() {
			s.Begin(nil)
			done <- time.Since(began)
		}()
		synctest.Wait()
		if got := get("/api", ""); got != 200 || !s.Begun() {
			t.Errorf("during the delay: %d, begun %v", got, s.Begun())
		}
		if took := <-done; took != time.Minute {
			t.Errorf("a delay of %v", took)
		}
		for _, c := range []struct {
			path, agent string
			want        int
		}{{"/api", "kubectl/v1", 429}, {"/readyz", "", 200}, {"/api", "kube-apiserver/v1", 200}} {
			if got := get(c.path, c.agent); got != c.want {
				t.Errorf("%s of %q after the delay: %d, want %d", c.path, c.agent, got, c.want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if s.Wait(ctx); ctx.Err() == nil {
			t.Error("the slow request was not waited for")
		}
		close(slow)
		s.Wait(t.Context())
	})
}

// By default a server ends at once.
func TestNoDelay(t *testing.T) {
	s := New(Options{}, clock.RealClock{})
	s.Begin(nil)
	s.Wait(t.Context())
	if !s.Begun() {
		t.Error("it has not begun")
	}
}

// Watches end one after the other, 200 in a second or as many more as it takes.
func TestWatchesAreSpread(t *testing.T) {
	for _, c := range []struct {
		watches int
		over    time.Duration
		pause   time.Duration // between two ends
	}{{1000, time.Minute, 5 * time.Millisecond}, {1000, 2 * time.Second, 2 * time.Millisecond}, {1, time.Minute, 0}} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Options{Watches: c.over}, clock.RealClock{})
			stopping, ends := make(chan struct{}), make(chan time.Time, c.watches)
			h := s.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
				if req.URL.Query().Get("watch") == "1" && req.Context().Value(http.ServerContextKey) == nil {
					<-stopping
				}
			}))
			get := func(ctx context.Context, path string) *httptest.ResponseRecorder {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", path, http.NoBody))
				return w
			}
			const watch = "/api/v1/pods?watch=1"
			get(context.WithValue(t.Context(), http.ServerContextKey, true), watch) // is over before: it does not count
			for range c.watches {
				go func() {
					get(t.Context(), watch)
					ends <- time.Now()
				}()
			}
			synctest.Wait()
			began := time.Now()
			s.Begin(nil)
			for path, want := range map[string]int{watch: 503, "/api/v1/pods": 200, "/readyz": 200} {
				if w := get(t.Context(), path); w.Code != want || want == 503 && (w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"reason":"ServiceUnavailable"`)) {
					t.Errorf("a new %s: %d, want %d: %v %s", path, w.Code, want, w.Header(), w.Body)
				}
			}
			close(stopping)
			for i := range c.watches {
				if at := (<-ends).Sub(began); at != time.Duration(i)*c.pause {
					t.Fatalf("%d over %v: the %dth ends after %v, want %v", c.watches, c.over, i, at, time.Duration(i)*c.pause)
				}
			}
		})
	}
}

// A watch whose client is gone waits for no turn.
func TestAWatchWithoutItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Watches: time.Hour}, clock.RealClock{})
		began := time.Now()
		h := s.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/api/v1/pods?watch=1", http.NoBody))
			})
		}
		synctest.Wait()
		s.Begin(nil)
		cancel()
		wg.Wait()
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}
