package aggregator_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clientdiscovery "k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	v1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/api/apiregistration"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/requestheader"
	"github.com/skiff-project/skiff/auth/x509"
	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store/embedded"
)

// Where the extension server's pod would be.
const podAddress = "10.20.30.40:8443"

// extension is an API server of another's making: it believes a front proxy
// who the user is, and nobody else.
type extension struct {
	t        *testing.T
	front    *requestheader.Authenticator
	address  string
	srv      *http.Server
	hangs    atomic.Bool // it takes requests and never answers
	plain    atomic.Bool // it knows nothing of aggregated discovery and of OpenAPI v3
	served   atomic.Int64
	lastUser atomic.Pointer[auth.User]
	lastPath atomic.Pointer[string]
}

// pki makes the authorities, and a serving certificate for the extension's Service.
func pki(t *testing.T) *bootstrap.Assets {
	t.Helper()
	a, err := bootstrap.InMemory(bootstrap.Options{NodeName: "n", NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, ExtraSANs: []string{"wardle.kube-system.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newExtension(t *testing.T, a *bootstrap.Assets) *extension {
	t.Helper()
	front, err := requestheader.New(requestheader.Config{Pool: x509.Static(a.FrontProxyCA.Pool()), AllowedNames: []string{"front-proxy-client"}})
	if err != nil {
		t.Fatal(err)
	}
	e := &extension{t: t, front: front}
	e.start(a, "127.0.0.1:0")
	t.Cleanup(func() { e.srv.Close() })
	return e
}

func (e *extension) start(a *bootstrap.Assets, address string) {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		e.t.Fatal(err)
	}
	e.address = ln.Addr().String()
	e.srv = &http.Server{Handler: e, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{a.APIServer.TLS()}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
	}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go e.srv.ServeTLS(ln, "", "") //nolint:errcheck // ends with the test
}

const flunder = `{"apiVersion":"wardle.example.com/v1","kind":"Flunder","metadata":{"name":"a","namespace":"default","resourceVersion":"5"}}`

// ServeHTTP answers as an extension API server does.
func (e *extension) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	id, ok, err := e.front.Authenticate(req)
	if err != nil || !ok {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	e.served.Add(1)
	if e.hangs.Load() {
		<-req.Context().Done()
		return
	}
	path := req.URL.RequestURI()
	if id.User.Name != "system:kube-aggregator" && id.User.Name != "system:aggregator" {
		e.lastUser.Store(&id.User)
		e.lastPath.Store(&path)
	}
	send := func(media, text string) {
		w.Header().Set("Content-Type", media)
		io.WriteString(w, text) //nolint:errcheck // a test
	}
	const resources = `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"wardle.example.com/v1","resources":[
		{"name":"flunders","singularName":"flunder","namespaced":true,"kind":"Flunder","verbs":["get","list","watch","delete"]},
		{"name":"flunders/status","namespaced":true,"kind":"Flunder","verbs":["get"]}]}`
	switch p := req.URL.Path; {
	case p == "/apis" && !e.plain.Load() && strings.Contains(req.Header.Get("Accept"), "APIGroupDiscoveryList"):
		w.Header().Set("ETag", `"1"`)
		if req.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		send("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", `{"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2","items":[
			{"metadata":{"name":"wardle.example.com"},"versions":[{"version":"v1","resources":[{"resource":"flunders","scope":"Namespaced","singularResource":"flunder",
			"responseKind":{"group":"wardle.example.com","version":"v1","kind":"Flunder"},"verbs":["get","list","watch","delete"]}]}]}]}`)
	case p == "/apis/wardle.example.com/v1":
		send("application/json", resources)
	case p == "/apis/wardle.example.com/v1/namespaces/default/flunders" && req.URL.Query().Get("watch") == "true":
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"type":"ADDED","object":%s}`+"\n", flunder)
		w.(http.Flusher).Flush()
		<-req.Context().Done()
	case strings.HasSuffix(p, "/flunders/upgrade") && req.Header.Get("Upgrade") == "echo":
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			e.t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		fmt.Fprintf(conn, "%s says %s", id.User.Name, line)
	case strings.HasSuffix(p, "/flunders/elsewhere"):
		http.Redirect(w, req, "https://192.0.2.9/", http.StatusFound)
	case strings.HasSuffix(p, "/flunders/a"):
		send("application/json", flunder)
	case strings.HasSuffix(p, "/flunders"):
		send("application/json", `{"kind":"FlunderList","apiVersion":"wardle.example.com/v1","metadata":{"resourceVersion":"5"},"items":[`+flunder+`]}`)
	case p == "/openapi/v2":
		send("application/json", `{"swagger":"2.0","info":{"title":"w","version":"1"},"paths":{"/apis/wardle.example.com/v1/flunders":{"get":{"responses":{"200":{"description":"OK",
			"schema":{"$ref":"#/definitions/com.example.Flunder"}}}}},"/apis/other/v1/":{"get":{"responses":{"200":{"description":"OK"}}}}},
			"definitions":{"com.example.Flunder":{"type":"object","description":"a flunder","x-kubernetes-group-version-kind":[{"group":"wardle.example.com","version":"v1","kind":"Flunder"}]}}}`)
	case p == "/openapi/v3" && !e.plain.Load():
		send("application/json", `{"paths":{"apis/wardle.example.com/v1":{"serverRelativeURL":"/openapi/v3/apis/wardle.example.com/v1?hash=1"},"version":{"serverRelativeURL":"/x"}}}`)
	case p == "/openapi/v3/apis/wardle.example.com/v1" && !e.plain.Load():
		send("application/json", `{"openapi":"3.0.0","info":{"title":"theirs","version":"1"}}`)
	default:
		http.NotFound(w, req)
	}
}

// rig is an API server with an extension server behind a Service.
type rig struct {
	t      *testing.T
	api    *apiserver.Server
	ext    *extension
	assets *bootstrap.Assets
	kube   *kubernetes.Clientset
	dyn    dynamic.Interface
	cfg    *rest.Config // over the network
}

type allowAll struct{}

func (allowAll) Authorize(context.Context, auth.Attributes) (auth.Decision, string, error) {
	return auth.Allow, "", nil
}

type tokens struct{}

func (tokens) AuthenticateToken(_ context.Context, token string, _ []string) (auth.Identity, bool, error) {
	if token != "secret" {
		return auth.Identity{}, false, nil
	}
	return auth.Identity{User: auth.User{Name: "ann", UID: "7", Groups: []string{"dev", auth.GroupAuthenticated}, Extra: map[string][]string{"example.com/Team": {"a", "b"}}}}, true, nil
}

var gvr = schema.GroupVersionResource{Group: apiregistration.Group, Version: "v1", Resource: "apiservices"}

func newRig(t *testing.T) *rig {
	t.Helper()
	assets := pki(t)
	st, err := embedded.Open(embedded.Options{Decorate: wire.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ext: newExtension(t, assets), assets: assets}
	front := assets.FrontProxyClient.TLS()
	r.api, err = apiserver.New(apiserver.Config{
		Store: st, Resources: all.Resources(), Authorizer: allowAll{}, Log: slog.New(slog.DiscardHandler),
		Listener: ln, TLS: &tls.Config{Certificates: []tls.Certificate{assets.APIServer.TLS()}}, Authenticator: auth.Server(auth.HealthPaths, auth.Bearer(tokens{})),
		FrontProxy: func() *tls.Certificate { return &front },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != podAddress {
				return nil, fmt.Errorf("dial %s: no route to host", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, r.ext.address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.api.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		st.Close()
	})
	admin := r.api.InProcess(auth.User{Name: "admin", Groups: []string{auth.GroupMasters, auth.GroupAuthenticated}})
	r.kube = kubernetes.NewForConfigOrDie(admin)
	plain := rest.CopyConfig(admin)
	plain.ContentConfig = rest.ContentConfig{}
	r.dyn = dynamic.NewForConfigOrDie(plain)
	r.cfg = &rest.Config{Host: "https://" + ln.Addr().String(), BearerToken: "secret", TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: -1}
	r.until("ready", func() string {
		if err := r.kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error(); err != nil {
			return err.Error()
		}
		return "ready"
	})
	return r
}

// until waits for f to say want.
func (r *rig) until(want string, f func() string) {
	r.t.Helper()
	var got string
	for range 1000 {
		if got = f(); got == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatalf("got %s\nwant %s", got, want)
}

func (r *rig) condition() string {
	s := r.get("v1.wardle.example.com")
	if s == nil || len(s.Status.Conditions) == 0 {
		return "none"
	}
	c := s.Status.Conditions[0]
	return fmt.Sprintf("%s %s %s: %s", c.Type, c.Status, c.Reason, c.Message)
}

func (r *rig) get(name string) *v1.APIService {
	u, err := r.dyn.Resource(gvr).Get(r.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	s := &v1.APIService{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) create(s *v1.APIService) error {
	s.APIVersion, s.Kind = gvr.GroupVersion().String(), "APIService"
	obj, err := runtime.DefaultUnstructuredConverter.ToUnstructured(s)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = r.dyn.Resource(gvr).Create(r.t.Context(), &unstructured.Unstructured{Object: obj}, metav1.CreateOptions{})
	return err
}

func (r *rig) wardle() *v1.APIService {
	return &v1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.wardle.example.com"}, Spec: v1.APIServiceSpec{
		Group: "wardle.example.com", Version: "v1", GroupPriorityMinimum: 2000, VersionPriority: 200,
		CABundle: r.assets.CA.CertPEM(), Service: &v1.ServiceReference{Namespace: "kube-system", Name: "wardle"},
	}}
}

func (r *rig) service() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "wardle", Namespace: "kube-system"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "api", Port: 443}}}}
}

func (r *rig) slice(ready bool) *discoveryv1.EndpointSlice {
	name, port := "api", int32(8443)
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "wardle-1", Namespace: "kube-system", Labels: map[string]string{discoveryv1.LabelServiceName: "wardle"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.20.30.40"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
}

// up brings the extension to life.
func (r *rig) up() {
	r.t.Helper()
	ctx := r.t.Context()
	if _, err := r.kube.CoreV1().Services("kube-system").Create(ctx, r.service(), metav1.CreateOptions{}); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.kube.DiscoveryV1().EndpointSlices("kube-system").Create(ctx, r.slice(true), metav1.CreateOptions{}); err != nil {
		r.t.Fatal(err)
	}
	if err := r.create(r.wardle()); err != nil {
		r.t.Fatal(err)
	}
	r.until("Available True Passed: all checks passed", r.condition)
	r.until("200", func() string { code, _ := r.ask("GET", flunders); return fmt.Sprint(code) })
}

const flunders = "/apis/wardle.example.com/v1/namespaces/default/flunders"

// ask sends a request over the network as ann.
func (r *rig) ask(method, path string, header ...string) (int, string) {
	r.t.Helper()
	resp, body := r.send(method, path, header...)
	return resp.StatusCode, body
}

func (r *rig) send(method, path string, header ...string) (*http.Response, string) {
	r.t.Helper()
	client, err := rest.HTTPClientFor(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.cfg.Host+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(data)
}

// TestAvailability: the condition says why an extension cannot be used, and
// requests get 404, 503 or 200 accordingly.
func TestAvailability(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	services, endpoints := r.kube.CoreV1().Services("kube-system"), r.kube.DiscoveryV1().EndpointSlices("kube-system")
	if code, _ := r.ask("GET", flunders); code != 404 {
		t.Errorf("before the APIService: %d", code)
	}
	if err := r.create(r.wardle()); err != nil {
		t.Fatal(err)
	}
	check := func(want string) {
		t.Helper()
		r.until(want, r.condition)
		code, body := 200, ""
		if !strings.HasPrefix(want, "Available True") {
			code, body = 503, "service unavailable\n"
		}
		r.until(fmt.Sprint(code), func() string { c, _ := r.ask("GET", flunders); return fmt.Sprint(c) })
		if _, got := r.ask("GET", flunders); body != "" && got != body {
			t.Errorf("body %q", got)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(`Available False ServiceNotFound: service/wardle in "kube-system" is not present`)
	other := r.service()
	other.Spec.Ports[0].Port = 444
	svc, err := services.Create(ctx, other, metav1.CreateOptions{})
	must(err)
	check(`Available False ServicePortError: service/wardle in "kube-system" is not listening on port 443`)
	svc.Spec.Ports[0].Port = 443
	_, err = services.Update(ctx, svc, metav1.UpdateOptions{})
	must(err)
	check(`Available False EndpointsNotFound: cannot find endpointslices for service/wardle in "kube-system"`)
	_, err = endpoints.Create(ctx, r.slice(false), metav1.CreateOptions{})
	must(err)
	check(`Available False MissingEndpoints: endpointslices for service/wardle in "kube-system" have no addresses with port name "api"`)
	_, err = endpoints.Update(ctx, r.slice(true), metav1.UpdateOptions{})
	must(err)
	check("Available True Passed: all checks passed")

	r.ext.srv.Close()
	if code, body := r.ask("GET", flunders); code != 503 || !strings.HasPrefix(body, "error trying to reach service: ") {
		t.Errorf("just gone: %d %s", code, body)
	}
	_, err = endpoints.Patch(ctx, "wardle-1", "application/merge-patch+json", []byte(`{"metadata":{"annotations":{"a":"b"}}}`), metav1.PatchOptions{})
	must(err)
	r.until("False FailedDiscoveryCheck", func() string {
		if c := r.get("v1.wardle.example.com").Status.Conditions[0]; strings.HasPrefix(c.Message, "failing or missing response from https://"+podAddress+"/apis/wardle.example.com/v1: ") {
			return fmt.Sprint(c.Status, " ", c.Reason)
		}
		return r.condition()
	})
	r.until("503", func() string { c, _ := r.ask("GET", flunders); return fmt.Sprint(c) })
	if _, metrics := r.ask("GET", "/metrics"); !strings.Contains(metrics, `aggregator_unavailable_apiservice{name="v1.wardle.example.com"} 1`) ||
		!strings.Contains(metrics, `aggregator_unavailable_apiservice_total{name="v1.wardle.example.com",reason="FailedDiscoveryCheck"} 1`) ||
		!strings.Contains(metrics, `aggregator_unavailable_apiservice{name="v1.apps"} 0`) {
		t.Error("the metrics do not tell that it is unavailable")
	}
	r.ext.start(r.assets, r.ext.address)
	check("Available True Passed: all checks passed")

	must(r.dyn.Resource(gvr).Delete(ctx, "v1.wardle.example.com", metav1.DeleteOptions{}))
	r.until("404", func() string { c, _ := r.ask("GET", flunders); return fmt.Sprint(c) })
}

// TestTrust: an extension whose certificate the bundle does not vouch for gets no request.
func TestTrust(t *testing.T) {
	r := newRig(t)
	wrong := r.wardle()
	wrong.Spec.CABundle = pki(t).CA.CertPEM()
	for _, err := range []error{
		r.create(wrong), func() error {
			_, err := r.kube.CoreV1().Services("kube-system").Create(t.Context(), r.service(), metav1.CreateOptions{})
			return err
		}(), func() error {
			_, err := r.kube.DiscoveryV1().EndpointSlices("kube-system").Create(t.Context(), r.slice(true), metav1.CreateOptions{})
			return err
		}(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.until("yes", func() string {
		if c := r.condition(); !strings.Contains(c, "FailedDiscoveryCheck") || !strings.Contains(c, "x509: certificate signed by unknown authority") {
			return c
		}
		return "yes"
	})
	if n := r.ext.served.Load(); n != 0 {
		t.Errorf("the extension served %d requests", n)
	}
	patch := []byte(`{"spec":{"caBundle":null,"insecureSkipTLSVerify":true}}`)
	if _, err := r.dyn.Resource(gvr).Patch(t.Context(), wrong.Name, "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("Available True Passed: all checks passed", r.condition)
}

// TestIdentity: the extension is told who the user is; what the user says about that counts for nothing.
func TestIdentity(t *testing.T) {
	r := newRig(t)
	r.up()
	resp, body := r.send("GET", flunders+"?limit=5&b=c%2Fd", "X-Remote-User", "root", "X-Remote-Group", "system:masters", "X-Remote-Extra-Scope", "all", "X-Remote-Uid", "0", "Audit-Id", "audit-1")
	if resp.StatusCode != 200 || !strings.Contains(body, "FlunderList") {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if got := resp.Header.Values("Audit-Id"); !slices.Equal(got, []string{"audit-1"}) {
		t.Errorf("Audit-Id %v", got)
	}
	u, _ := json.Marshal(r.ext.lastUser.Load())
	want, _ := json.Marshal(auth.User{Name: "ann", UID: "7", Groups: []string{"dev", auth.GroupAuthenticated}, Extra: map[string][]string{"example.com/team": {"a", "b"}}})
	if string(u) != string(want) {
		t.Errorf("the extension sees\n%s\nwant\n%s", u, want)
	}
	if got := *r.ext.lastPath.Load(); got != flunders+"?b=c%2Fd&limit=5" {
		t.Errorf("path %s", got)
	}
	if resp, body := r.send("GET", flunders+"/elsewhere"); resp.StatusCode != 502 || body != "the backend attempted to redirect this request, which is not permitted" {
		t.Errorf("redirect: %s %s", resp.Status, body)
	}
	// Without the front proxy's certificate the headers make nobody.
	direct := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // a test
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+r.ext.address+flunders, nil)
	req.Header.Set("X-Remote-User", "root")
	got, err := direct.Do(req)
	if err != nil || got.StatusCode != 401 {
		t.Errorf("forged: %v %v", got, err)
	}
	got.Body.Close()
}

// TestStreams: watches flow as they come and end with the server; protocol upgrades pass.
func TestStreams(t *testing.T) {
	r := newRig(t)
	r.up()
	wardle := r.dyn.Resource(schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1", Resource: "flunders"}).Namespace("default")
	w, err := wardle.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	select {
	case ev := <-w.ResultChan():
		if ev.Type != watch.Added || ev.Object.(*unstructured.Unstructured).GetName() != "a" {
			t.Errorf("event %v", ev)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(r.cfg.Host, "https://"), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET %s/upgrade HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nX-Remote-User: root\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", flunders)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v %v", resp, err)
	}
	fmt.Fprintf(conn, "hello\n")
	if line, err := br.ReadString('\n'); line != "ann says hello\n" {
		t.Errorf("echo %q %v", line, err)
	}
}

// TestDiscoveryAndOpenAPI: what an extension has is shown among the rest, as
// it says or converted, and Stale once it cannot be asked.
func TestDiscoveryAndOpenAPI(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprint("plain=", plain), func(t *testing.T) {
			r := newRig(t)
			r.ext.plain.Store(plain)
			r.up()
			r.until("Current flunders", func() string { return r.aggregated() })
			_, groups := r.ask("GET", "/apis")
			var list metav1.APIGroupList
			if err := json.Unmarshal([]byte(groups), &list); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, g := range list.Groups {
				names = append(names, g.Name)
			}
			if names[0] != apiregistration.Group || names[len(names)-1] != "wardle.example.com" {
				t.Errorf("groups %v", names)
			}
			if code, body := r.ask("GET", "/apis/wardle.example.com"); code != 200 || !strings.Contains(body, `"preferredVersion":{"groupVersion":"wardle.example.com/v1"`) {
				t.Errorf("group: %d %s", code, body)
			}
			preferred, err := r.kube.Discovery().ServerPreferredResources()
			if err != nil || !slices.ContainsFunc(preferred, func(l *metav1.APIResourceList) bool { return l.GroupVersion == "wardle.example.com/v1" }) {
				t.Errorf("client: %v", err)
			}
			_, v2 := r.ask("GET", "/openapi/v2", "Accept", "application/json")
			if !strings.Contains(v2, "com.example.Flunder") || !strings.Contains(v2, "io.k8s.api.core.v1.Pod") || strings.Contains(v2, "/apis/other/v1/") {
				t.Errorf("version 2 has not what it should have: %d bytes", len(v2))
			}
			_, index := r.ask("GET", "/openapi/v3")
			if !strings.Contains(index, `"apis/wardle.example.com/v1":{"serverRelativeURL":"/openapi/v3/apis/wardle.example.com/v1?hash=`) || strings.Contains(index, `"/x"`) {
				t.Errorf("version 3's index: %.300s", index)
			}
			want := `"title":"theirs"`
			if plain {
				want = `a flunder`
			}
			if code, doc := r.ask("GET", "/openapi/v3/apis/wardle.example.com/v1", "Accept", "application/json"); code != 200 || !strings.Contains(doc, want) {
				t.Errorf("version 3: %d %s", code, doc)
			}
			r.ext.srv.Close()
			if _, err := r.kube.DiscoveryV1().EndpointSlices("kube-system").Update(t.Context(), r.slice(false), metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			r.until("Stale ", func() string { return r.aggregated() })
			if _, err := r.kube.Discovery().ServerPreferredResources(); !clientdiscovery.IsGroupDiscoveryFailedError(err) {
				t.Errorf("a client is told %v", err)
			}
			if _, v2 := r.ask("GET", "/openapi/v2", "Accept", "application/json"); !strings.Contains(v2, "com.example.Flunder") {
				t.Error("the last version 2 is lost")
			}
		})
	}
}

// aggregated is what the aggregated document says of the extension.
func (r *rig) aggregated() string {
	_, body := r.ask("GET", "/apis", "Accept", clientdiscovery.AcceptV2)
	var list struct {
		Items []struct {
			Metadata metav1.ObjectMeta
			Versions []struct {
				Freshness string
				Resources []struct{ Resource string }
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		r.t.Fatal(err)
	}
	for _, g := range list.Items {
		if g.Metadata.Name == "wardle.example.com" {
			out := g.Versions[0].Freshness + " "
			for _, res := range g.Versions[0].Resources {
				out += res.Resource
			}
			return out
		}
	}
	return "none"
}

// TestOwnAPIServices: what the server serves itself has APIServices, those of definitions come and go with them.
func TestOwnAPIServices(t *testing.T) {
	r := newRig(t)
	apps := r.get("v1.apps")
	if apps == nil || apps.Spec.GroupPriorityMinimum != 17800 || apps.Spec.VersionPriority != 15 || apps.Labels["kube-aggregator.kubernetes.io/automanaged"] != "onstart" {
		t.Fatalf("v1.apps: %+v", apps)
	}
	if c := apps.Status.Conditions; len(c) != 1 || c[0].Reason != "Local" || c[0].Message != "Local APIServices are always available" || c[0].LastTransitionTime.IsZero() {
		t.Errorf("conditions %+v", c)
	}
	crds := r.dyn.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	crd := &unstructured.Unstructured{}
	if err := crd.UnmarshalJSON([]byte(`{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"cogs.gears.example.com"},
		"spec":{"group":"gears.example.com","scope":"Namespaced","names":{"plural":"cogs","singular":"cog","kind":"Cog"},
		"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}},{"name":"v2","served":false,"storage":false,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := crds.Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	is := func() string {
		s := r.get("v1.gears.example.com")
		if s == nil {
			return "none"
		}
		return fmt.Sprint(s.Spec.GroupPriorityMinimum, " ", s.Spec.VersionPriority, " ", s.Labels["kube-aggregator.kubernetes.io/automanaged"])
	}
	r.until("1000 100 true", is)
	if r.get("v2.gears.example.com") != nil {
		t.Error("a version that is not served has an APIService")
	}
	if err := r.dyn.Resource(gvr).Delete(t.Context(), "v1.gears.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("1000 100 true", is) // it is kept
	if err := crds.Delete(t.Context(), "cogs.gears.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("none", is)
}

// TestHangingExtension: one that takes requests and never answers holds up
// only those, and not for longer than they may last.
func TestHangingExtension(t *testing.T) {
	r := newRig(t)
	r.up()
	r.ask("GET", "/openapi/v2", "Accept", "application/json")
	r.ext.hangs.Store(true)
	watches, end := context.WithCancel(t.Context())
	defer end()
	client, err := rest.HTTPClientFor(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	before := r.ext.served.Load()
	for range 700 { // more than may be in flight
		go func() {
			req, err := http.NewRequestWithContext(watches, "GET", r.cfg.Host+flunders+"?watch=true", nil)
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
			}
		}()
	}
	r.until("700", func() string { return fmt.Sprint(min(700, r.ext.served.Load()-before)) })
	began := time.Now()
	if code, body := r.ask("GET", flunders+"?timeout=1s"); code != 504 || !strings.Contains(body, `"reason":"Timeout"`) {
		t.Errorf("a list: %d %s", code, body)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a request of at most a second took %v", took)
	}
	if _, err := r.kube.DiscoveryV1().EndpointSlices("kube-system").Update(t.Context(), r.slice(true), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"metadata":{"annotations":{"a":"b"}}}`)
	if _, err := r.kube.CoreV1().Services("kube-system").Patch(t.Context(), "wardle", "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("FailedDiscoveryCheck", func() string { return r.get("v1.wardle.example.com").Status.Conditions[0].Reason })
	for _, path := range []string{"/apis", "/openapi/v3", "/api/v1/nodes"} {
		began := time.Now()
		if code, _ := r.ask("GET", path); code != 200 || time.Since(began) > time.Second {
			t.Errorf("%s: %d after %v", path, code, time.Since(began))
		}
	}
}

// TestTakenBack: a version that another server answered may become this one's again.
func TestTakenBack(t *testing.T) {
	r := newRig(t)
	patch := func(body string) {
		t.Helper()
		if _, err := r.dyn.Resource(gvr).Patch(t.Context(), "v1.apps", "application/merge-patch+json", []byte(body), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	deployments := func() string { code, _ := r.ask("GET", "/apis/apps/v1/deployments"); return fmt.Sprint(code) }
	patch(`{"spec":{"insecureSkipTLSVerify":true,"service":{"namespace":"kube-system","name":"wardle"}}}`)
	r.until("503", deployments)
	r.until("False", func() string { return string(r.get("v1.apps").Status.Conditions[0].Status) })
	patch(`{"spec":{"insecureSkipTLSVerify":null,"service":null}}`)
	r.until("200", deployments)
	r.until("Local", func() string { return r.get("v1.apps").Status.Conditions[0].Reason })
}

// TestValidation has upstream's texts.
func TestValidation(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		edit func(*v1.APIService)
		want string
	}{
		{func(s *v1.APIService) { s.Name = "v2.wardle.example.com" }, "metadata.name: Invalid value: \"v2.wardle.example.com\": must be `spec.version+\".\"+spec.group`: \"v1.wardle.example.com\""},
		{func(s *v1.APIService) { s.Spec.GroupPriorityMinimum = 0 }, "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000"},
		{func(s *v1.APIService) { s.Spec.VersionPriority = 1001 }, "spec.versionPriority: Invalid value: 1001: must be positive and less than 1000"},
		{func(s *v1.APIService) { s.Spec.InsecureSkipTLSVerify = true }, "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"},
		{func(s *v1.APIService) { s.Spec.Service = nil }, "local APIServices may not have a caBundle"},
		{func(s *v1.APIService) { s.Spec.Service.Name = "" }, "spec.service.name: Required value"},
	} {
		s := r.wardle()
		tt.edit(s)
		if err := r.create(s); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v\nwant %s", err, tt.want)
		}
	}
}
