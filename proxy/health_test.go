package proxy

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/internal/zpages"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestHealthzAndMetrics(t *testing.T) {
	c := testingclock.NewFakePassiveClock(time.Unix(1000, 0))
	addr := freeAddr(t)
	p := &Proxy{cfg: Config{HealthzAddr: addr, MetricsAddr: addr}, metrics: newMetrics(c)}
	p.cfg.Pages = zpages.New("kube-proxy", "v1.37.2", nil)
	stop, err := p.serveHTTP()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if code, _ := get(t, "http://"+addr+"/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("before the first update: %d", code)
	}
	p.metrics.observe(c.Now(), false)
	if code, body := get(t, "http://"+addr+"/healthz"); code != http.StatusOK || !strings.Contains(body, "lastUpdated") {
		t.Errorf("after it: %d %s", code, body)
	}
	p.metrics.observe(c.Now(), true)
	if code, _ := get(t, "http://"+addr+"/livez"); code != http.StatusServiceUnavailable {
		t.Errorf("after the kernel refused one: %d", code)
	}
	_, body := get(t, "http://"+addr+"/metrics")
	for _, want := range []string{"kubeproxy_sync_proxy_rules_duration_seconds_count 2", "kubeproxy_sync_proxy_rules_last_timestamp_seconds 1000", "failures_total 1"} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q:\n%s", want, body)
		}
	}
	if _, body := get(t, "http://"+addr+"/proxyMode"); body != "nftables" {
		t.Errorf("proxyMode: %s", body)
	}
	if code, body := get(t, "http://"+addr+"/statusz"); code != http.StatusOK || !strings.Contains(body, "kube-proxy statusz") {
		t.Errorf("statusz: %d %s", code, body)
	}
}

// A health check follows its Service: other port, no local endpoints, gone.
func TestHealthCheckNodePort(t *testing.T) {
	h := &healthServers{log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	defer h.sync(nil)
	svc := service("web", clusterIP, func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	})
	first, second := freeAddr(t), freeAddr(t)
	at := func(addr string, eps ...discoveryv1.Endpoint) {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		svc.Spec.HealthCheckNodePort = int32(a.Port)
		h.note("ns/web", svc, []*discoveryv1.EndpointSlice{slice("web", eps...)}, "node")
		h.apply()
	}
	at(first, ep("10.244.0.1", "node"), ep("10.244.0.2", "node"), ep("10.244.1.1", "other"))
	if code, body := get(t, "http://"+first); code != http.StatusOK ||
		strings.TrimSpace(body) != `{"service":{"namespace":"ns","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}` {
		t.Errorf("two local endpoints: %d %s", code, body)
	}
	at(second, ep("10.244.1.1", "other"))
	if code, _ := get(t, "http://"+second); code != http.StatusServiceUnavailable {
		t.Errorf("no local endpoint: %d", code)
	}
	if c, err := net.Dial("tcp", first); err == nil {
		_ = c.Close()
		t.Error("the old port still answers")
	}
	h.note("ns/web", nil, nil, "node")
	h.apply()
	if c, err := net.Dial("tcp", second); err == nil {
		_ = c.Close()
		t.Error("the health check of a Service that has gone still answers")
	}
}
