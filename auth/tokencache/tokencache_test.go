package tokencache

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/auth"
)

// book knows one token; it counts how often it is asked, and waits for gate.
type book struct {
	asked atomic.Int32
	gate  chan struct{}
	err   error
}

func (b *book) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	b.asked.Add(1)
	if b.gate != nil {
		<-b.gate
	}
	return auth.Identity{User: auth.User{Name: "jane"}, Audiences: audiences}, token == "good", b.err
}

func TestAnswersAreRememberedForTheirTime(t *testing.T) {
	b, c := &book{}, clocktesting.NewFakeClock(time.Unix(1000, 0))
	m := NewMetrics()
	z := New(b, 10*time.Second, 3*time.Second, c, m)
	for _, step := range []struct {
		after     time.Duration
		token     string
		audiences []string
		asked     int32 // in all
	}{
		{0, "good", nil, 1},
		{9 * time.Second, "good", nil, 1},
		{0, "good", []string{"a", "bc"}, 2},
		{0, "good", []string{"ab", "c"}, 3}, // other audiences
		{2 * time.Second, "good", nil, 4},
		{0, "bad", nil, 5},
		{2 * time.Second, "bad", nil, 5},
		{2 * time.Second, "bad", nil, 6},
	} {
		c.Step(step.after)
		id, ok, err := z.AuthenticateToken(t.Context(), step.token, step.audiences)
		if ok != (step.token == "good") || err != nil || id.User.Name != "jane" || len(id.Audiences) != len(step.audiences) {
			t.Errorf("%+v: %+v %v %v", step, id, ok, err)
		}
		if n := b.asked.Load(); n != step.asked {
			t.Errorf("%+v: asked %d times", step, n)
		}
	}
	b.err = errors.New("no answer")
	for range 2 {
		if _, ok, err := z.AuthenticateToken(t.Context(), "other", nil); ok || err == nil {
			t.Error(ok, err)
		}
	}
	if n := b.asked.Load(); n != 8 {
		t.Errorf("an error was remembered: asked %d times", n)
	}
	registry, rec := prometheus.NewRegistry(), httptest.NewRecorder()
	registry.MustRegister(m.Collectors()...)
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`request_total{status="hit"} 2`, `request_total{status="miss"} 8`, `request_duration_seconds_count{status="hit"} 2`,
		`fetch_total{status="ok"} 6`, `fetch_total{status="error"} 2`,
		`active_fetch_count{status="in_flight"} 0`, `active_fetch_count{status="blocked"} 0`,
	} {
		if !strings.Contains(rec.Body.String(), "authentication_token_cache_"+want) {
			t.Errorf("no %s in\n%s", want, rec.Body)
		}
	}
}

func TestRequestsAtOnceAskOnce(t *testing.T) {
	b := &book{gate: make(chan struct{})}
	z := New(b, time.Minute, 0, clocktesting.NewFakeClock(time.Unix(1000, 0)), nil)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok, err := z.AuthenticateToken(gone, "good", nil); ok || !errors.Is(err, context.Canceled) {
		t.Fatal("a client that left:", ok, err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, ok, err := z.AuthenticateToken(t.Context(), "good", nil); !ok || err != nil {
				t.Error(ok, err)
			}
		})
	}
	close(b.gate)
	all.Wait()
	if n := b.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}
