package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"
)

type exitError int

func (e exitError) Error() string   { return "exit" }
func (e exitError) ExitStatus() int { return int(e) }

func target(ip string) Target {
	return Target{Pod: &v1.Pod{}, ContainerID: "id", PodIP: ip, Container: &v1.Container{Name: "c", Env: []v1.EnvVar{{Name: "A", Value: "1"}},
		Ports: []v1.ContainerPort{{Name: "web", ContainerPort: 80}}}}
}

func TestHTTPProbe(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			if r.UserAgent() != "kube-probe/1.37" || r.Header.Get("X-A") != "b" || r.Host != "name" || r.URL.RawQuery != "q=1" {
				w.WriteHeader(http.StatusTeapot)
			}
		case "/away":
			http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
		case "/slow":
			time.Sleep(1500 * time.Millisecond)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	port, _ := strconv.Atoi(u.Port())
	r := &Runner{Version: "1.37"}
	for _, c := range []struct {
		path string
		want Outcome
		text string
	}{
		{"/ok?q=1", Success, ""}, {"/bad", Failure, "HTTP probe failed with statuscode: 500"},
		{"/away", Warning, "Probe terminated redirects, Response body: "}, {"/slow", Failure, "context deadline exceeded"},
	} {
		p := &v1.Probe{TimeoutSeconds: 1, ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: c.path, Port: intstr.FromInt32(int32(port)),
			HTTPHeaders: []v1.HTTPHeader{{Name: "X-A", Value: "b"}, {Name: "Host", Value: "name"}}}}}
		out, text, err := r.Probe(context.Background(), p, target("127.0.0.1"))
		if err != nil || out != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s: %v %q %v", c.path, out, text, err)
		}
	}
}

func TestTCPAndExecProbes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	p := &v1.Probe{TimeoutSeconds: 1, ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt32(int32(port))}}}
	r := &Runner{}
	if out, _, err := r.Probe(context.Background(), p, target("127.0.0.1")); out != Success || err != nil {
		t.Errorf("open port: %v %v", out, err)
	}
	l.Close()
	if out, _, err := r.Probe(context.Background(), p, target("127.0.0.1")); out != Failure || err != nil {
		t.Errorf("closed port: %v %v", out, err)
	}
	for _, c := range []struct {
		err  error
		want Outcome
	}{{nil, Success}, {exitError(1), Failure}, {context.DeadlineExceeded, Failure}, {errors.New("runtime is down"), Unknown}} {
		r.Exec = func(_ context.Context, id string, cmd []string, _ time.Duration) ([]byte, error) {
			if id != "id" || strings.Join(cmd, " ") != "x 1" {
				return nil, fmt.Errorf("wrong command %v in %s", cmd, id)
			}
			return []byte("out"), c.err
		}
		p := &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"x", "$(A)"}}}}
		if out, _, _ := r.Probe(context.Background(), p, target("")); out != c.want {
			t.Errorf("%v: %v, want %v", c.err, out, c.want)
		}
	}
	if _, err := Port(intstr.FromString("nope"), target("").Container); err == nil {
		t.Error("an unknown port name was accepted")
	}
	if n, err := Port(intstr.FromString("web"), target("").Container); n != 80 || err != nil {
		t.Errorf("web: %d %v", n, err)
	}
}

// A verdict needs as many equal outcomes in a row as the probe's threshold says.
func TestThresholds(t *testing.T) {
	var mu sync.Mutex
	outcomes := []error{nil, exitError(1), nil, exitError(1), exitError(1), nil}
	changed := make(chan struct{}, 10)
	var events []string
	p := NewPod(Config{Clock: clock.RealClock{}, Changed: func() { changed <- struct{}{} },
		Event: func(_, reason, msg string) { mu.Lock(); events = append(events, reason+" "+msg); mu.Unlock() },
		Runner: &Runner{Exec: func(context.Context, string, []string, time.Duration) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			if len(outcomes) == 0 {
				return nil, nil
			}
			o := outcomes[0]
			outcomes = outcomes[1:]
			return []byte("why"), o
		}}})
	w := &worker{pod: p, kind: Readiness, target: target(""), spec: &v1.Probe{FailureThreshold: 2, SuccessThreshold: 1,
		ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{}}}}
	p.workers[key{"id", Readiness}] = func() {}
	var verdicts []string
	for range 6 {
		if w.once(context.Background()) {
			t.Fatal("readiness is probed for ever")
		}
		verdicts = append(verdicts, fmt.Sprint(*p.Results()["id"].Readiness))
	}
	if got := strings.Join(verdicts, " "); got != "true true true true false true" {
		t.Errorf("verdicts %s", got)
	}
	if len(changed) != 3 || len(events) != 3 || events[0] != "Unhealthy Readiness probe failed: why" {
		t.Errorf("%d changes, events %v", len(changed), events)
	}
}

func TestStartupHoldsTheOthersBack(t *testing.T) {
	p := NewPod(Config{Clock: clock.RealClock{}, Event: func(string, string, string) {}, Runner: &Runner{Exec: func(context.Context, string, []string, time.Duration) ([]byte, error) { return nil, nil }}})
	defer p.Stop()
	probe := &v1.Probe{PeriodSeconds: 100, SuccessThreshold: 1, FailureThreshold: 1, InitialDelaySeconds: 100, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{}}}
	c := &v1.Container{Name: "c", StartupProbe: probe, LivenessProbe: probe, ReadinessProbe: probe}
	kinds := func(started, deleting bool) string {
		p.Sync(context.Background(), &v1.Pod{}, "", []Running{{Container: c, ID: "id", StartedAt: time.Now(), Started: started}}, deleting)
		var out []string
		for _, k := range []Kind{Startup, Liveness, Readiness} {
			if _, ok := p.workers[key{"id", k}]; ok {
				out = append(out, string(k))
			}
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		started, deleting bool
		want              string
	}{{false, false, "Startup"}, {true, false, "Liveness Readiness"}, {true, true, "Readiness"}} {
		if got := kinds(c.started, c.deleting); got != c.want {
			t.Errorf("started %v deleting %v: %q, want %q", c.started, c.deleting, got, c.want)
		}
	}
}
