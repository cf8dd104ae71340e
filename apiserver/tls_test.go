package apiserver_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/auth"
)

// oneToken authenticates bearer "secret" as admin.
type oneToken struct{}

func (oneToken) AuthenticateToken(_ context.Context, token string, _ []string) (auth.Identity, bool, error) {
	if token != "secret" {
		return auth.Identity{}, false, fmt.Errorf("bad token")
	}
	return auth.Identity{User: admin}, true, nil
}

// certificate borrows httptest's.
func certificate(t testing.TB) tls.Certificate {
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	defer srv.Close()
	return srv.TLS.Certificates[0]
}

func newTLSServer(t testing.TB, edit func(*apiserver.Config)) (*apiserver.Server, *rest.Config) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func(c *apiserver.Config) {
		c.Listener = ln
		c.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
		c.Authenticator = auth.Server(auth.HealthPaths, auth.Bearer(oneToken{}))
		c.AdvertiseAddress, c.AdvertisePort = netip.MustParseAddr("192.0.2.1"), 6443
		if edit != nil {
			edit(c)
		}
	})
	return s, &rest.Config{Host: "https://" + ln.Addr().String(), BearerToken: "secret", TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: -1}
}

func TestOverTLS(t *testing.T) {
	_, cfg := newTLSServer(t, nil)
	c := kubernetes.NewForConfigOrDie(cfg)
	w, err := c.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("a", map[string]string{"x": strings.Repeat("y", 300_000)}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if ev := next(t, w); ev.Type != watch.Added {
		t.Errorf("event %v", ev)
	}
	l, err := c.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{}) // compressed
	if err != nil || len(l.Items[0].Data["x"]) != 300_000 {
		t.Errorf("large list: %v", err)
	}
	bad := rest.CopyConfig(cfg)
	bad.BearerToken = "wrong"
	_, err = kubernetes.NewForConfigOrDie(bad).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsUnauthorized(err) {
		t.Errorf("wrong token: %v", err)
	}
	bad.BearerToken = ""
	cl, _ := rest.HTTPClientFor(bad)
	for path, want := range map[string]int{"/healthz": 200, "/version": 401, "/api/v1/pods": 401} {
		resp, err := cl.Get(cfg.Host + path)
		if err != nil || resp.StatusCode != want {
			t.Errorf("anonymous %s: %v %v", path, resp, err)
		}
		resp.Body.Close()
	}
	sl, err := c.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || sl.Endpoints[0].Addresses[0] != "192.0.2.1" || sl.Labels[discoveryv1.LabelServiceName] != "kubernetes" {
		t.Errorf("kubernetes endpoint slice: %+v %v", sl, err)
	}
}

// TestProxies: log and proxy reach a backend; redirects (CVE-2020-8559), forbidden
// addresses (CVE-2022-3294) and failed upgrades (CVE-2018-1002105) do no harm.
func TestProxies(t *testing.T) {
	var last *http.Request
	backend := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last = r.Clone(context.Background())
		switch {
		case strings.HasPrefix(r.URL.Path, "/containerLogs/"):
			fmt.Fprintf(w, "log of %s %s\n", r.URL.Path, r.URL.RawQuery)
		case r.URL.Path == "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/exec/"):
			http.Error(w, "no upgrade here", http.StatusForbidden)
		default:
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
		}
	}))
	defer backend.Close()
	s, cfg := newTLSServer(t, func(c *apiserver.Config) {
		c.KubeletTLS = &tls.Config{InsecureSkipVerify: true}
		c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, backend.Listener.Addr().String())
		}
	})
	c := typed(t, s)
	n, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = 10250
	if _, err := c.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := pod("p")
	p.Spec.NodeName = "n1"
	if p, err = c.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.Status.PodIP, p.Status.PodIPs = "10.1.2.3", []corev1.PodIP{{IP: "10.1.2.3"}}
	if _, err := c.CoreV1().Pods("default").UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	logs, err := c.CoreV1().Pods("default").GetLogs("p", &corev1.PodLogOptions{Follow: true}).DoRaw(t.Context())
	if err != nil || string(logs) != "log of /containerLogs/default/p/c follow=true\n" {
		t.Errorf("log: %q %v", logs, err)
	}
	_, err = c.CoreV1().Pods("default").GetLogs("p", &corev1.PodLogOptions{Container: "nope"}).Stream(t.Context())
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "container nope is not valid for pod p") {
		t.Errorf("unknown container: %v", err)
	}
	hc, _ := rest.HTTPClientFor(cfg)
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	do := func(method, path, body string) (int, string, string) {
		req, _ := http.NewRequestWithContext(t.Context(), method, cfg.Host+path, strings.NewReader(body))
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(data), resp.Header.Get("Location")
	}
	base := "/api/v1/namespaces/default/pods/https:p:8443/proxy"
	if code, _, loc := do("GET", base, ""); code != 301 || loc != base+"/" {
		t.Errorf("bare path: %d %s", code, loc)
	}
	for _, m := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		if code, body, _ := do(m, base+"/some/path", "data"); code != 200 || !strings.HasPrefix(body, m+" /some/path") {
			t.Errorf("%s through the proxy: %d %q", m, code, body)
		}
	}
	if last.Header.Get("Authorization") != "" {
		t.Error("the client's token reached the backend")
	}
	if code, _, loc := do("GET", base+"/redirect", ""); code != 302 || loc != base+"/elsewhere" {
		t.Errorf("redirect: %d %s", code, loc)
	}
	if code, body, _ := do("GET", "/api/v1/nodes/n1/proxy/healthz", ""); code != 200 || !strings.HasPrefix(body, "GET /healthz") {
		t.Errorf("node proxy: %d %s", code, body)
	}
	if code, body, _ := do("GET", "/api/v1/namespaces/default/services/none/proxy/", ""); code != 404 {
		t.Errorf("no such service: %d %s", code, body)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", cfg.Host+"/api/v1/namespaces/default/pods/p/exec?command=x&stdout=1", http.NoBody)
	req.Header.Set("Upgrade", "SPDY/3.1")
	req.Header.Set("Connection", "Upgrade")
	h1 := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer h1.CloseIdleConnections()
	req.Header.Set("Authorization", "Bearer secret")
	resp, err := h1.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusForbidden {
		t.Fatalf("refused upgrade: %v %v", resp, err)
	}
	resp.Body.Close()
	p.Status.PodIP, p.Status.PodIPs = "127.0.0.1", []corev1.PodIP{{IP: "127.0.0.1"}}
	p.ResourceVersion = ""
	if _, err := c.CoreV1().Pods("default").UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err == nil {
		if code, body, _ := do("GET", base+"/", ""); code != 400 || !strings.Contains(body, "address not allowed") {
			t.Errorf("loopback pod: %d %s", code, body)
		}
	}
}

// TestServeForHand serves until the file named by SKIFF_HAND is removed, for
// trying clients by hand.
func TestServeForHand(t *testing.T) {
	path := os.Getenv("SKIFF_HAND")
	if path == "" {
		t.Skip("SKIFF_HAND names no file: only for trying clients by hand")
	}
	_, cfg := newTLSServer(t, nil)
	kubeconfig := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]\n"+
		"users: [{name: u, user: {token: secret}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", cfg.Host)
	if err := os.WriteFile(path, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(path); err != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// insecure is an HTTPS client that trusts any server.
var insecure = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}

// Upstream's pages about what a server is, how it was started, and what it works on.
func TestPages(t *testing.T) {
	_, cfg := newTLSServer(t, func(c *apiserver.Config) { c.Flags = map[string]string{"event-ttl": "1h0m0s"} })
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct{ path, accept, want string }{
		{"/statusz", "", "/flagz /healthz /livez /metrics /readyz /statusz /version\n"},
		{"/statusz", "application/json;as=Statusz;v=v1beta1;g=config.k8s.io", `"binaryVersion":"1.37.2","emulationVersion":"1.37"`},
		{"/flagz", "application/json;as=Flagz;v=v1beta1;g=config.k8s.io", `"metadata":{"name":"apiserver"},"flags":{"event-ttl":"1h0m0s"}}`},
		{"/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1", "", "admin,    get,    /debug/api_priority_and_fairness/dump_requests,"},
		{"/debug/api_priority_and_fairness/dump_priority_levels", "", "\nworkload-low,      0,            true,   false,"},
		{"/debug/api_priority_and_fairness/dump_queues", "", "\nworkload-low,      0,      0,               0,                 0,          0.00000000ss,  0,               0,           0.00000000ss\n"},
		{"/debug/api_priority_and_fairness/dump", "", "404 page not found"},
		{"/metrics", "", `authentication_attempts{result="success"} `},
		{"/metrics", "", `authenticated_user_requests{username="admin"} `},
		{"/metrics", "", `authorization_attempts_total{result="allowed"} `},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", cfg.Host+k.path, http.NoBody)
		if k.accept != "" {
			req.Header.Set("Accept", k.accept)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(text), k.want) {
			t.Errorf("%s: %d, %v\n%s", k.path, resp.StatusCode, err, text)
		}
	}
}

// What flags say of connections and browsers holds on the network.
func TestProtocolAndFront(t *testing.T) {
	for _, c := range []struct {
		edit   func(*apiserver.Config)
		proto  string
		header string
	}{
		{nil, "HTTP/2.0", ""},
		{func(c *apiserver.Config) { c.NoHTTP2, c.Front.Transport = true, []string{"max-age=1"} }, "HTTP/1.1", "max-age=1"},
	} {
		_, cfg := newTLSServer(t, c.edit)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
		resp, err := client.Get(cfg.Host + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		client.CloseIdleConnections()
		if resp.StatusCode != 200 || resp.Proto != c.proto || resp.Header.Get("Strict-Transport-Security") != c.header {
			t.Errorf("%s %s %v", resp.Status, resp.Proto, resp.Header)
		}
	}
}
