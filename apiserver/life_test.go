package apiserver_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/shutdown"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac/policy"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

// TestRestartWritesNothing: a second start over the same store finds all it
// needs and keeps service addresses.
func TestRestartWritesNothing(t *testing.T) {
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var ip string
	for round := range 2 {
		s, err := apiserver.New(apiserver.Config{Store: st, Resources: all.Resources(), Authorizer: allowAll{}, Policy: policy.Bootstrap(), ClientCA: []byte("CA"),
			Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
		if err != nil {
			t.Fatal(err)
		}
		before := st.Status().Revision
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		waitReady(t, s)
		svcs := typed(t, s).CoreV1().Services("default")
		if round == 0 {
			svc, err := svcs.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ip = svc.Spec.ClusterIP
			flowSchemasJudged(t, s) // the last that a start writes, but for what is written beside it:
			for began := time.Now(); !trackingSince(t, s); time.Sleep(time.Millisecond) {
				if time.Since(began) > time.Minute {
					t.Fatal("no ConfigMap says since when legacy tokens are tracked")
				}
			}
		} else {
			snap, err := st.Snapshot(t.Context(), store.Local)
			if err != nil {
				t.Fatal(err)
			}
			for kv := range snap.Range("/", "0") { // the server's own Lease comes and goes with it
				if kv.ModRevision > before && !strings.HasPrefix(kv.Key, "/registry/leases/kube-system/apiserver-") {
					t.Errorf("the second start wrote %s", kv.Key)
				}
			}
			_, err = svcs.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
			if err == nil {
				t.Errorf("address %s was given twice", ip)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func trackingSince(t *testing.T, s *apiserver.Server) bool {
	t.Helper()
	_, err := typed(t, s).CoreV1().ConfigMaps("kube-system").Get(t.Context(), "kube-apiserver-legacy-service-account-token-tracking", metav1.GetOptions{})
	return err == nil
}

// flowSchemasJudged waits until every FlowSchema has its conditions, which come after a server is ready.
func flowSchemasJudged(t *testing.T, s *apiserver.Server) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		list, err := typed(t, s).FlowcontrolV1().FlowSchemas().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(list.Items, func(f flowcontrolv1.FlowSchema) bool { return len(f.Status.Conditions) == 0 }) {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("FlowSchemas without conditions")
		}
	}
}

// TestShutdownEndsWatches: Run returns soon although watches are open.
func TestShutdownEndsWatches(t *testing.T) {
	st, _ := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	defer st.Close()
	s, err := apiserver.New(apiserver.Config{Store: st, Resources: all.Resources(), Authorizer: allowAll{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	waitReady(t, s)
	w, err := typed(t, s).CoreV1().ConfigMaps("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case _, ok := <-w.ResultChan():
			if !ok {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the watch is still open")
		}
	}
}

// stoppable runs a server over TLS until it is told to end, or the test does.
func stoppable(t *testing.T, clk clock.WithTickerAndDelayedExecution, o shutdown.Options) (host string, end func(), done <-chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	s, err := apiserver.New(apiserver.Config{
		Store: st, Resources: all.Resources(), Authorizer: allowAll{}, Clock: clk, Listener: ln,
		TLS: &tls.Config{Certificates: []tls.Certificate{certificate(t)}}, Authenticator: auth.Server(auth.HealthPaths, auth.Bearer(oneToken{})),
		Tuning: apiserver.Tuning{Shutdown: o},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	over := make(chan struct{})
	go func() {
		defer close(over)
		ran <- s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-over
		st.Close()
	})
	waitReady(t, s)
	return "https://" + ln.Addr().String(), cancel, ran
}

// TestWatchesEndOneByOne: the server keeps watches open until each has its turn, and itself until then.
func TestWatchesEndOneByOne(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: refuse}}
		clk := testclock.NewFakeClock(time.Now())
		host, end, done := stoppable(t, clk, shutdown.Options{Refuse: refuse, Watches: time.Minute})
		ended := make(chan error, 3)
		for range cap(ended) {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", host+"/api/v1/configmaps?watch=1", http.NoBody)
			req.Header.Set("Authorization", "Bearer secret")
			resp, err := client.Do(req)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			go func() {
				_, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				ended <- err
			}()
		}
		end()
		for n := range cap(ended) {
			for waiting := true; waiting; {
				select {
				case err := <-ended:
					if waiting = false; err != nil {
						t.Errorf("the %d. watch is cut: %v", n+1, err)
					}
				case <-time.After(20 * time.Millisecond):
					if n > 0 { // the first has its turn at once
						clk.Step(5 * time.Millisecond)
					}
				}
			}
			if n == 0 {
				time.Sleep(100 * time.Millisecond) // the clock stands: nothing may come
				if len(ended)+len(done) > 0 {
					t.Errorf("%d watches end at once, and %d servers", 1+len(ended), len(done))
				}
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestShutdownBehindABalancer: the server says that it ends, serves on for the delay, and then refuses what is new while
// the watch before it is ended.
func TestShutdownBehindABalancer(t *testing.T) {
	clk := testclock.NewFakeClock(time.Now())
	host, cancel, done := stoppable(t, clk, shutdown.Options{Delay: time.Minute, Refuse: true})
	code := func(path string) int {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", host+path, http.NoBody)
		req.Header.Set("Authorization", "Bearer secret")
		resp, err := insecure.Do(req)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	wait := func(what string, is func() bool) {
		t.Helper()
		for began := time.Now(); !is(); time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatal(what + " never comes")
			}
		}
	}
	cancel()
	wait("a /readyz that fails", func() bool { return code("/readyz") == 500 })
	if got := code("/api/v1/namespaces"); got != 200 {
		t.Errorf("during the delay: %d", got)
	}
	wait("the end", func() bool {
		clk.Step(time.Minute)
		return code("/api/v1/namespaces") != 200
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestBookmarks: an idle watch is told how far it is, and a watch ends in time.
func TestBookmarks(t *testing.T) {
	s := newServer(t, func(c *apiserver.Config) { c.BookmarkInterval = 50 * time.Millisecond })
	one := int64(1)
	w, err := typed(t, s).CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{AllowWatchBookmarks: true, TimeoutSeconds: &one})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	n := 0
	for ev := range w.ResultChan() {
		if ev.Type == "BOOKMARK" {
			if ev.Object.(*corev1.ConfigMap).ResourceVersion == "" {
				t.Error("bookmark without a resource version")
			}
			n++
		}
	}
	if n < 2 {
		t.Errorf("%d bookmarks in a second", n)
	}
}

type panicking struct{}

func (panicking) Name() string                                       { return "Panicking" }
func (panicking) Validate(context.Context, *admission.Request) error { return nil }
func (panicking) Admit(_ context.Context, r *admission.Request) error {
	if r.Object != nil && r.Object.GetName() == "boom" {
		panic("boom")
	}
	return nil
}

func TestPanicIsA500(t *testing.T) {
	c := newRaw(newServer(t, func(c *apiserver.Config) {
		c.Admission = []admission.Plugin{panicking{}}
		c.Log = slog.New(slog.DiscardHandler)
	}))
	code, body := c.do(t, "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"boom"}}`))
	if code != 500 || !strings.Contains(body, "This request caused apiserver to panic") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := c.do(t, "GET", cmPath, "", nil); code != 200 {
		t.Errorf("the server is ill: %d", code)
	}
}

// TestInFlightBound: beyond the bound a request is told to come back.
func TestInFlightBound(t *testing.T) {
	block := make(chan struct{})
	s, cfg := newTLSServer(t, func(c *apiserver.Config) {
		c.Limits = apiserver.Limits{Mutating: 1, NoFairness: true}
		c.Authenticator = auth.Server(auth.HealthPaths, auth.Bearer(plainToken{}))
		c.Admission = []admission.Plugin{blocking{block}}
	})
	_ = s
	do := func(name string) (int, string) {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", cfg.Host+cmPath, strings.NewReader(`{"metadata":{"name":"`+name+`"}}`))
		req.Header.Set("Authorization", "Bearer x")
		req.Header.Set("Content-Type", "application/json")
		resp, err := insecure.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(data)
	}
	first := make(chan int, 1)
	go func() { code, _ := do("block"); first <- code }()
	<-block // the first request holds the one slot
	if code, body := do("b"); code != 429 {
		t.Errorf("second request: %d %s", code, body)
	}
	block <- struct{}{}
	if code := <-first; code != 201 {
		t.Errorf("first request: %d", code)
	}
}

type plainToken struct{}

func (plainToken) AuthenticateToken(context.Context, string, []string) (auth.Identity, bool, error) {
	return auth.Identity{User: auth.User{Name: "bob"}}, true, nil
}

type blocking struct{ c chan struct{} }

func (blocking) Name() string                                       { return "Blocking" }
func (blocking) Validate(context.Context, *admission.Request) error { return nil }
func (b blocking) Admit(_ context.Context, r *admission.Request) error {
	if r.Object != nil && r.Object.GetName() == "block" {
		b.c <- struct{}{}
		<-b.c
	}
	return nil
}
