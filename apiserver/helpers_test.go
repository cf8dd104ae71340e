package apiserver_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/store/embedded"
)

type allowAll struct{}

func (allowAll) Authorize(context.Context, auth.Attributes) (auth.Decision, string, error) {
	return auth.Allow, "", nil
}

var admin = auth.User{Name: "admin", Groups: []string{auth.GroupMasters, auth.GroupAuthenticated}}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// newServer starts a server over a store in memory.
func newServer(t testing.TB, edit func(*apiserver.Config)) *apiserver.Server {
	t.Helper()
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate, Index: registry.Index(all.Resources())})
	if err != nil {
		t.Fatal(err)
	}
	cfg := apiserver.Config{Store: st, Resources: all.Resources(), Authorizer: allowAll{}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	if edit != nil {
		edit(&cfg)
	}
	s, err := apiserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		st.Close()
	})
	waitReady(t, s)
	return s
}

func waitReady(t testing.TB, s *apiserver.Server) {
	t.Helper()
	c := newRaw(s)
	for range 3000 {
		if code, _ := c.do(t, "GET", "/readyz", "", nil); code == 200 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	_, body := c.do(t, "GET", "/readyz?verbose", "", nil)
	t.Fatalf("server does not become ready: %s", body)
}

func typed(t testing.TB, s *apiserver.Server) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(s.InProcess(admin))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dyn(t testing.TB, s *apiserver.Server) dynamic.Interface {
	t.Helper()
	cfg := s.InProcess(admin)
	cfg.ContentConfig = rest.ContentConfig{}
	c, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// raw sends requests as they are.
type raw struct{ rt http.RoundTripper }

func newRaw(s *apiserver.Server) raw { return raw{s.InProcess(admin).Transport} }

func (r raw) do(t testing.TB, method, path, contentType string, body []byte, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := r.rt.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(data)
}
