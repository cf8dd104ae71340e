package shutdown

import (
	"context"
	"net/http"
	"net/http/httptest"
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
