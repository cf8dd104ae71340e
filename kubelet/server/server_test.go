package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/kubelet/logs"
)

type fakeBackend struct {
	stream  string // address of the runtime's streaming server
	log     string
	exec    *runtimeapi.ExecRequest
	forward *runtimeapi.PortForwardRequest
}

func (f *fakeBackend) Pods() []*v1.Pod { return []*v1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "p"}}} }
func (f *fakeBackend) Container(_ context.Context, ns, pod string, _ types.UID, c string) (string, error) {
	if c != "main" {
		return "", &Error{http.StatusNotFound, fmt.Errorf("container not found (%q)", c)}
	}
	return "id-" + ns + "-" + pod, nil
}
func (f *fakeBackend) Sandbox(context.Context, string, string, types.UID) (string, error) {
	return "sb", nil
}
func (f *fakeBackend) LogFile(_, _, c string, previous bool) (string, logs.Alive, error) {
	if previous {
		return "", nil, &Error{http.StatusBadRequest, errors.New(`previous terminated container "main" in pod "p" not found`)}
	}
	return f.log, func() bool { return false }, nil
}
func (f *fakeBackend) Streams() Streams { return f }
func (f *fakeBackend) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	f.exec = r
	return &runtimeapi.ExecResponse{Url: f.stream + "/exec/token"}, nil
}
func (f *fakeBackend) Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return &runtimeapi.AttachResponse{Url: f.stream + "/attach/token"}, nil
}
func (f *fakeBackend) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	f.forward = r
	return &runtimeapi.PortForwardResponse{Url: f.stream + "/portforward/token"}, nil
}
func (f *fakeBackend) Summary(context.Context, bool) (*statsapi.Summary, error) {
	n := uint64(5e9)
	return &statsapi.Summary{Node: statsapi.NodeStats{NodeName: "n1", CPU: &statsapi.CPUStats{Time: metav1.NewTime(time.UnixMilli(7)), UsageCoreNanoSeconds: &n}},
		Pods: []statsapi.PodStats{{PodRef: statsapi.PodReference{Namespace: "ns", Name: "p"},
			Containers: []statsapi.ContainerStats{{Name: "main", StartTime: metav1.NewTime(time.Unix(9, 5e8))}}}}}, nil
}
func (f *fakeBackend) ExecSync(_ context.Context, id string, cmd []string, _ time.Duration) ([]byte, error) {
	return []byte(id + strings.Join(cmd, " ")), nil
}
func (f *fakeBackend) Healthy() error { return nil }

// newTest serves with an API server that knows two tokens: "admin" may do all, "reader" only stats.
func newTest(t *testing.T) (*httptest.Server, *fakeBackend, *int) {
	t.Helper()
	asked := 0
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		tok := a.(clienttesting.CreateAction).GetObject().(*authnv1.TokenReview).Spec.Token
		ok := tok == "admin" || tok == "reader"
		return true, &authnv1.TokenReview{Status: authnv1.TokenReviewStatus{Authenticated: ok, User: authnv1.UserInfo{Username: tok}}}, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s := a.(clienttesting.CreateAction).GetObject().(*authzv1.SubjectAccessReview).Spec
		ok := s.ResourceAttributes.Resource == "nodes" && s.ResourceAttributes.Name == "n1" && (s.User == "admin" || s.ResourceAttributes.Subresource == "stats")
		return true, &authzv1.SubjectAccessReview{Status: authzv1.SubjectAccessReviewStatus{Allowed: ok}}, nil
	})
	b := &fakeBackend{log: filepath.Join(t.TempDir(), "0.log")}
	if err := os.WriteFile(b.log, []byte("2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stdout F two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Metrics: more(), NodeName: "n1", LogDir: filepath.Dir(b.log), Cert: &tls.Certificate{}, Client: client, Backend: b, Log: slog.New(slog.DiscardHandler), Clock: clock.RealClock{}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	return srv, b, &asked
}

func ask(t *testing.T, srv *httptest.Server, token, method, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

// more is what others of the process tell.
func more() *prometheus.Registry {
	r, g := prometheus.NewRegistry(), prometheus.NewGauge(prometheus.GaugeOpts{Name: "more"})
	g.Set(1)
	r.MustRegister(g)
	return r
}

func TestRequests(t *testing.T) {
	srv, _, asked := newTest(t)
	for _, c := range []struct {
		token, method, path string
		code                int
		has                 string
	}{
		{"", "GET", "/pods", 401, "Unauthorized"},
		{"wrong", "GET", "/healthz", 401, "Unauthorized"},
		{"reader", "GET", "/pods", 403, "Forbidden (user=reader, verb=get, resource=nodes, subresource(s)=[pods proxy])"},
		{"reader", "GET", "/stats/summary", 200, `"nodeName":"n1"`},
		{"reader", "GET", "/stats/../pods", 403, ""},
		{"reader", "GET", "/statusz", 403, "subresource(s)=[statusz]"},
		{"admin", "GET", "/statusz", 200, "kubelet statusz"},
		{"admin", "GET", "/flagz", 404, ""},
		{"admin", "GET", "/metrics", 200, "\n# HELP more \n# TYPE more gauge\nmore 1\n"},
		{"admin", "GET", "/pods", 200, `"kind":"PodList"`},
		{"admin", "GET", "/healthz", 200, "ok"},
		{"admin", "GET", "/containerLogs/ns/p/main", 200, "one\ntwo\n"},
		{"admin", "GET", "/containerLogs/ns/p/main?tailLines=1&timestamps=true", 200, "2026-01-01T00:00:01Z two\n"},
		{"admin", "GET", "/containerLogs/ns/p/main?tailLines=-1", 422, "Invalid request"},
		{"admin", "GET", "/containerLogs/ns/p/main?previous=true", 400, `previous terminated container "main" in pod "p" not found`},
		{"admin", "POST", "/run/ns/p/main?cmd=a&cmd=b", 200, "id-ns-pa b"},
		{"admin", "POST", "/exec/ns/p/none?command=x&output=1", 404, `container not found ("none")`},
		{"admin", "POST", "/exec/ns/p/main?command=x", 400, "at least 1 of stdin, stdout, stderr"},
		{"admin", "POST", "/portForward/ns/p?port=99999", 400, "unable to parse"},
		{"admin", "GET", "/metrics/resource", 200, "node_cpu_usage_seconds_total 5 7"},
		{"admin", "GET", "/metrics/resource", 200, `container_start_time_seconds{container="main",namespace="ns",pod="p"} 9.5`},
		{"admin", "GET", "/metrics/resource", 200, "\nresource_scrape_error 0\n"},
		{"admin", "GET", "/metrics", 200, `kubelet_node_name{node="n1"} 1`},
		{"admin", "GET", "/nope", 404, ""},
	} {
		code, body := ask(t, srv, c.token, c.method, c.path)
		if code != c.code || !strings.Contains(body, c.has) {
			t.Errorf("%s %s as %q: %d %q, want %d %q", c.method, c.path, c.token, code, body, c.code, c.has)
		}
	}
	if *asked != 3 {
		t.Errorf("the API server was asked %d times about 3 tokens", *asked)
	}
}

// An upgrade, whatever its protocol, passes through to the runtime and bytes flow both ways.
func TestUpgradePassesThrough(t *testing.T) {
	srv, b, _ := newTest(t)
	streaming := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/exec/token" || r.Header.Get("Upgrade") != "SPDY/3.1" || r.Header.Get("Authorization") != "" {
			http.Error(w, "bad request to the runtime", http.StatusBadRequest)
			return
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n")
		line, _ := rw.ReadString('\n')
		fmt.Fprintf(conn, "echo %s", line)
	}))
	defer streaming.Close()
	b.stream = streaming.URL
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "POST /exec/ns/p/main?command=sh&input=1&output=1&tty=1&error=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n"+
		"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("X-Stream-Protocol-Version") != "v4.channel.k8s.io" {
		t.Fatalf("%v %v", res, err)
	}
	fmt.Fprint(conn, "hello\n")
	if line, err := r.ReadString('\n'); err != nil || line != "echo hello\n" {
		t.Errorf("%q %v", line, err)
	}
	if !b.exec.Tty || !b.exec.Stdin || !b.exec.Stdout || b.exec.Stderr || strings.Join(b.exec.Cmd, " ") != "sh" {
		t.Errorf("request to the runtime: %v", b.exec)
	}
}

func TestNodeLogs(t *testing.T) {
	srv, b, _ := newTest(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(os.WriteFile(secret, []byte("hidden"), 0o600), os.Symlink(secret, filepath.Join(filepath.Dir(b.log), "out"))); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		token, path string
		code        int
		want        string
	}{
		{"admin", "/logs/", 200, `<a href="0.log">0.log</a>`},
		{"admin", "/logs/0.log", 200, "stdout F one"},
		{"admin", "/logs/none", 404, ""},
		{"reader", "/logs/0.log", 403, ""},
	} {
		if code, body := ask(t, srv, tt.token, "GET", tt.path); code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("%s as %s: %d %s", tt.path, tt.token, code, body)
		}
	}
	if code, body := ask(t, srv, "admin", "GET", "/logs/out"); code == 200 || strings.Contains(body, "hidden") {
		t.Errorf("a link out of the folder: %d %s", code, body)
	}
}

func TestSubresources(t *testing.T) {
	for path, want := range map[string]string{
		"/stats/summary": "[stats]", "/metrics/cadvisor": "[metrics]", "/logs/x": "[log]", "/pods": "[pods proxy]", "/runningpods/": "[pods proxy]",
		"/healthz/ping": "[healthz proxy]", "/configz": "[configz proxy]", "/exec/a/b/c": "[proxy]", "/podsx": "[proxy]", "/containerLogs/a/b/c": "[proxy]",
	} {
		if got := fmt.Sprint(subresources(path)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}
