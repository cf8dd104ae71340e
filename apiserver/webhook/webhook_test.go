package webhook_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	v1 "k8s.io/api/admissionregistration/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/webhook"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/store/embedded"
)

type allowAll struct{}

func (allowAll) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	if a.User.Name == "stranger" {
		return auth.NoOpinion, "", nil
	}
	return auth.Allow, "", nil
}

// world is an API server and the webhooks it asks, which are handlers by path.
type world struct {
	t       testing.TB
	server  *apiserver.Server
	hooks   *httptest.Server
	mux     *http.ServeMux
	client  *kubernetes.Clientset
	warned  []string
	mu      sync.Mutex
	asked   []string // paths, in turn
	conns   map[string]bool
	ca      []byte
	plugins []admission.Plugin
	names   []string // of servers, as TLS clients said
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, mux: http.NewServeMux(), conns: map[string]bool{}}
	w.hooks = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		w.mu.Lock()
		w.asked = append(w.asked, req.URL.Path)
		w.conns[req.RemoteAddr] = true
		w.names = append(w.names, req.TLS.ServerName)
		w.mu.Unlock()
		w.mux.ServeHTTP(rw, req)
	}))
	w.hooks.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	certPEM, keyPEM, err := cert.GenerateSelfSignedCertKey("127.0.0.1", nil, []string{"there.ns.svc"})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	w.ca, w.hooks.TLS = certPEM, &tls.Config{Certificates: []tls.Certificate{pair}}
	w.hooks.StartTLS()
	t.Cleanup(w.hooks.Close)
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	reader, err := apiserver.NewReader(st, all.Resources(), nil)
	if err != nil {
		t.Fatal(err)
	}
	mutate, validate := webhook.New(webhook.Config{Reader: reader, Authorizer: allowAll{}, Host: func(namespace, service, port string) (string, error) {
		if service == "elsewhere" || port != "8443" {
			return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", service))
		}
		return w.hooks.Listener.Addr().String(), nil
	}})
	w.plugins = []admission.Plugin{mutate, validate}
	w.server, err = apiserver.New(apiserver.Config{
		Store: st, Resources: all.Resources(), Authorizer: allowAll{}, Log: slog.New(slog.DiscardHandler),
		Admission: admission.New(admission.Config{Reader: reader, Last: w.plugins}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		st.Close()
	})
	w.client = w.as("admin")
	for i := 0; ; i++ {
		if _, err := w.client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err == nil {
			break
		} else if i == 500 {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return w
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *world) HandleWarningHeader(_ int, _, text string) { w.warned = append(w.warned, text) }

func (w *world) as(name string) *kubernetes.Clientset {
	cfg := w.server.InProcess(auth.User{Name: name, Groups: []string{auth.GroupAuthenticated}, Extra: map[string][]string{"scope": {"a"}}})
	cfg.WarningHandler = w
	return kubernetes.NewForConfigOrDie(cfg)
}

// answers serves a webhook at a path; allowed by default.
func (w *world) answers(path string, f func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse)) {
	w.mux.HandleFunc(path, func(rw http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		review := admissionv1.AdmissionReview{}
		if err == nil {
			err = json.Unmarshal(body, &review)
		}
		if err != nil || review.Request == nil {
			http.Error(rw, fmt.Sprintf("bad review: %v %s", err, body), http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		f(review.Request, review.Response)
		review.Request = nil
		json.NewEncoder(rw).Encode(&review) //nolint:errcheck // the test's own connection
	})
}

// patches serves a webhook that patches what it is asked about.
func (w *world) patches(path string, patch string) {
	w.answers(path, func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		kind := admissionv1.PatchTypeJSONPatch
		r.Patch, r.PatchType = []byte(patch), &kind
	})
}

// hook is a webhook at a path for "VERB group/version/resource".
func (w *world) hook(path, rule string) v1.ValidatingWebhook {
	op, res, _ := strings.Cut(rule, " ")
	p := strings.SplitN(res, "/", 3)
	return v1.ValidatingWebhook{
		Name: strings.ReplaceAll(strings.Trim(path, "/"), "/", "-") + ".example.com", SideEffects: ptr.To(v1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		ClientConfig: v1.WebhookClientConfig{URL: ptr.To(w.hooks.URL + path), CABundle: w.ca},
		Rules: []v1.RuleWithOperations{{
			Operations: []v1.OperationType{v1.OperationType(op)},
			Rule:       v1.Rule{APIGroups: []string{p[0]}, APIVersions: []string{p[1]}, Resources: []string{p[2]}},
		}},
		// The server's own parts must not be asked about.
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "default"}},
	}
}

func mutatingHook(h v1.ValidatingWebhook) v1.MutatingWebhook {
	return v1.MutatingWebhook{
		Name: h.Name, ClientConfig: h.ClientConfig, Rules: h.Rules, FailurePolicy: h.FailurePolicy, MatchPolicy: h.MatchPolicy,
		NamespaceSelector: h.NamespaceSelector, ObjectSelector: h.ObjectSelector, SideEffects: h.SideEffects,
		TimeoutSeconds: h.TimeoutSeconds, AdmissionReviewVersions: h.AdmissionReviewVersions, MatchConditions: h.MatchConditions,
	}
}

func (w *world) validate(name string, hooks ...v1.ValidatingWebhook) {
	w.t.Helper()
	_, err := w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(w.t.Context(),
		&v1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) mutate(name string, hooks ...v1.MutatingWebhook) {
	w.t.Helper()
	_, err := w.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(w.t.Context(),
		&v1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"a": "1"}}
}

// create creates a ConfigMap and returns what the client sees of it.
func (w *world) create(name string, o metav1.CreateOptions) (map[string]string, error) {
	got, err := w.client.CoreV1().ConfigMaps("default").Create(w.t.Context(), configMap(name), o)
	if err != nil {
		return nil, err
	}
	return got.Data, nil
}

func deny(status *metav1.Status) func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) {
	return func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		r.Allowed, r.Result = false, status
	}
}

func wantError(t *testing.T, err error, code int32, text string) {
	t.Helper()
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Code != code || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %d %q", err, code, text)
	}
}

// What a webhook is told, byte for byte but for what differs each time.
func TestReview(t *testing.T) {
	w := newWorld(t)
	var seen []string
	w.mux.HandleFunc("/hook", func(rw http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		review := &admissionv1.AdmissionReview{}
		if err := json.Unmarshal(body, review); err != nil {
			t.Error(err)
		}
		text := strings.ReplaceAll(string(body), string(review.Request.UID), "UID")
		for _, raw := range [][]byte{review.Request.Object.Raw, review.Request.OldObject.Raw} {
			meta := &metav1.PartialObjectMetadata{}
			if len(raw) > 4 && json.Unmarshal(raw, meta) == nil {
				managed, _ := json.Marshal(meta.ManagedFields)
				stamp, _ := json.Marshal(meta.CreationTimestamp)
				text = strings.NewReplacer(`"uid":"`+string(meta.UID)+`",`, "", `"managedFields":`+string(managed), `"managedFields":[]`,
					`"creationTimestamp":`+string(stamp), `"creationTimestamp":T`, `"resourceVersion":"`+meta.ResourceVersion+`",`, "").Replace(text)
			}
		}
		seen = append(seen, req.Method+" "+req.URL.RawQuery+" "+req.Header.Get("Content-Type")+" "+text)
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		json.NewEncoder(rw).Encode(review) //nolint:errcheck // the test's own connection
	})
	w.validate("all", w.hook("/hook", "* /v1/configmaps"))
	cms := w.client.CoreV1().ConfigMaps("default")
	ctx := t.Context()
	if _, err := cms.Create(ctx, configMap("a"), metav1.CreateOptions{FieldManager: "m", DryRun: []string{"All"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Create(ctx, configMap("a"), metav1.CreateOptions{FieldManager: "m"}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Patch(ctx, "a", types.MergePatchType, []byte(`{"data":{"a":"2"}}`), metav1.PatchOptions{FieldManager: "m"}); err != nil {
		t.Fatal(err)
	}
	if err := cms.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.name=a"}); err != nil {
		t.Fatal(err)
	}
	request := func(name, operation, object, old, dryRun, options string) string {
		if name != "" {
			name = `"name":"` + name + `",`
		}
		return `POST timeout=10s application/json {"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"UID",` +
			`"kind":{"group":"","version":"v1","kind":"ConfigMap"},"resource":{"group":"","version":"v1","resource":"configmaps"},` +
			`"requestKind":{"group":"","version":"v1","kind":"ConfigMap"},"requestResource":{"group":"","version":"v1","resource":"configmaps"},` +
			name + `"namespace":"default","operation":"` + operation + `","userInfo":{"username":"admin","groups":["system:authenticated"],"extra":{"scope":["a"]}},` +
			`"object":` + object + `,"oldObject":` + old + `,"dryRun":` + dryRun + `,"options":` + options + `}}`
	}
	object := func(data string) string {
		return `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","creationTimestamp":T,"managedFields":[]},"data":{"a":"` + data + `"}}`
	}
	want := []string{
		request("a", "CREATE", object("1"), "null", "true", `{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1","dryRun":["All"],"fieldManager":"m"}`),
		request("a", "CREATE", object("1"), "null", "false", `{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1","fieldManager":"m"}`),
		request("a", "UPDATE", object("2"), object("1"), "false", `{"kind":"UpdateOptions","apiVersion":"meta.k8s.io/v1","fieldManager":"m"}`),
		request("", "DELETE", "null", object("2"), "false", `{"kind":"DeleteOptions","apiVersion":"meta.k8s.io/v1"}`),
	}
	for i := range max(len(seen), len(want)) {
		if i >= len(seen) || i >= len(want) || seen[i] != want[i] {
			t.Fatalf("request %d was\n%q\nwant\n%q", i, seen[min(i, len(seen)):], want[min(i, len(want)):])
		}
	}
}

func TestValidatingWebhooks(t *testing.T) {
	w := newWorld(t)
	w.answers("/warn", func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		r.Warnings, r.AuditAnnotations = []string{"careful"}, map[string]string{"seen": "yes"}
	})
	w.answers("/deny", deny(nil))
	w.answers("/reason", deny(&metav1.Status{Reason: "Because"}))
	w.answers("/code", deny(&metav1.Status{Code: 418, Message: "teapot", Reason: "Tea"}))
	w.patches("/patch", `[]`)
	w.answers("/uid", func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) { r.UID = "mine" })
	w.mux.HandleFunc("/none", func(rw http.ResponseWriter, _ *http.Request) {
		io.WriteString(rw, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`) //nolint:errcheck // the test's own connection
	})
	w.mux.HandleFunc("/junk", func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, `<html>`) }) //nolint:errcheck // the test's own connection
	w.mux.HandleFunc("/500", func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "down", http.StatusInternalServerError) })
	w.mux.HandleFunc("/slow", func(_ http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body) //nolint:errcheck // the context is over, sooner or later
		<-req.Context().Done()
	})
	w.mux.HandleFunc("/half", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "1000")
		io.WriteString(rw, `{"kind":"AdmissionReview"`) //nolint:errcheck // the test's own connection
	})
	w.mux.HandleFunc("/huge", func(rw http.ResponseWriter, _ *http.Request) {
		for range 16 {
			rw.Write(bytes.Repeat([]byte(" "), 1<<20)) //nolint:errcheck // the client hangs up
		}
	})
	w.mux.Handle("/moved", http.RedirectHandler("/warn", http.StatusTemporaryRedirect))
	ignore := v1.Ignore
	for _, c := range []struct {
		path   string
		edit   func(*v1.ValidatingWebhook)
		dryRun bool
		code   int32 // 0: goes through
		text   string
	}{
		{path: "/warn"},
		{path: "/deny", code: 400, text: `admission webhook "deny.example.com" denied the request without explanation`},
		{path: "/reason", code: 400, text: `admission webhook "reason.example.com" denied the request: Because`},
		{path: "/code", code: 418, text: `admission webhook "code.example.com" denied the request: teapot`},
		{path: "/code", code: 418, text: `teapot`, edit: func(h *v1.ValidatingWebhook) { h.FailurePolicy = &ignore }},
		{path: "/patch", code: 500, text: `Internal error occurred: failed calling webhook "patch.example.com": received invalid webhook response: validating webhook may not return response.patch`},
		{path: "/uid", code: 500, text: `received invalid webhook response: expected response.uid="`},
		{path: "/none", code: 500, text: `received invalid webhook response: webhook response was absent`},
		{path: "/none", edit: func(h *v1.ValidatingWebhook) { h.FailurePolicy = &ignore }},
		{path: "/junk", code: 500, text: `failed calling webhook "junk.example.com": failed to call webhook: couldn't get version/kind; json parse error`},
		{path: "/500", code: 500, text: `failed to call webhook: an error on the server ("down") has prevented the request from succeeding`},
		{path: "/404", code: 500, text: `failed to call webhook: the server could not find the requested resource`},
		{path: "/half", code: 500, text: `failed to call webhook: unexpected error when reading response body. Please retry. Original error: unexpected EOF`},
		{path: "/huge", code: 500, text: `the webhook's answer is too large`},
		{path: "/moved", code: 500, text: `failed to call webhook: `},
		{path: "/slow", code: 500, text: `/slow?timeout=1s": context deadline exceeded`, edit: func(h *v1.ValidatingWebhook) { h.TimeoutSeconds = ptr.To[int32](1) }},
		{path: "/slow", edit: func(h *v1.ValidatingWebhook) { h.TimeoutSeconds, h.FailurePolicy = ptr.To[int32](1), &ignore }},
		{path: "/warn", code: 500, text: `x509: certificate signed by unknown authority`, edit: func(h *v1.ValidatingWebhook) { h.ClientConfig.CABundle = nil }},
		{path: "/warn", code: 500, text: `connect: connection refused`, edit: func(h *v1.ValidatingWebhook) { h.ClientConfig.URL = ptr.To("https://127.0.0.1:1/") }},
		{path: "/warn", dryRun: true},
		{path: "/deny", edit: func(h *v1.ValidatingWebhook) { h.AdmissionReviewVersions = []string{"v9", "v1beta1"} }, code: 400, text: "without explanation"},
		// conditions
		{path: "/deny", edit: conditions(`object.data.a == '2'`)},
		{path: "/deny", edit: conditions(`object.data.a == '1'`, `request.name == 'x' && request.userInfo.username == 'admin'`), code: 400, text: "without explanation"},
		{path: "/deny", edit: conditions(`authorizer.requestResource.check('create').allowed()`), code: 400, text: "without explanation"},
		{path: "/deny", edit: conditions(`object.data.b == '1'`), code: 403, text: `configmaps "x" is forbidden: expression 'object.data.b == '1'' resulted in error: no such key: b`},
		{path: "/deny", edit: conditions(`object.data.b == '1'`, `false`)},
		{path: "/deny", edit: func(h *v1.ValidatingWebhook) { conditions(`object.data.b == '1'`)(h); h.FailurePolicy = &ignore }},
		{path: "/deny", edit: func(h *v1.ValidatingWebhook) {
			h.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}},
	} {
		t.Run(strings.Trim(c.path, "/"), func(t *testing.T) {
			h := w.hook(c.path, "CREATE /v1/configmaps")
			if c.edit != nil {
				c.edit(&h)
			}
			w.validate("one", h)
			w.warned = nil
			o := metav1.CreateOptions{}
			if c.dryRun {
				o.DryRun = []string{"All"}
			}
			_, err := w.create("x", o)
			if c.code != 0 {
				wantError(t, err, c.code, c.text)
			} else if err != nil {
				t.Error(err)
			}
			if c.path == "/warn" && err == nil && !slices.Equal(w.warned, []string{"careful"}) {
				t.Errorf("warnings %q", w.warned)
			}
			w.client.CoreV1().ConfigMaps("default").Delete(t.Context(), "x", metav1.DeleteOptions{})                                //nolint:errcheck // may not be there
			w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "one", metav1.DeleteOptions{}) //nolint:errcheck // the next case would say
		})
	}
}

func conditions(expressions ...string) func(*v1.ValidatingWebhook) {
	return func(h *v1.ValidatingWebhook) {
		for i, e := range expressions {
			h.MatchConditions = append(h.MatchConditions, v1.MatchCondition{Name: fmt.Sprintf("c%d", i), Expression: e})
		}
	}
}

func TestMutatingWebhooks(t *testing.T) {
	add := func(key string) string { return fmt.Sprintf(`[{"op":"add","path":"/data/%s","value":"yes"}]`, key) }
	t.Run("in order", func(t *testing.T) {
		w := newWorld(t)
		for _, p := range []string{"/a", "/b", "/c"} {
			w.patches(p, add(p[1:]))
		}
		// Configurations by name, their webhooks in turn.
		w.mutate("z", mutatingHook(w.hook("/a", "CREATE /v1/configmaps")))
		w.mutate("y", mutatingHook(w.hook("/c", "CREATE /v1/configmaps")), mutatingHook(w.hook("/b", "CREATE /v1/configmaps")))
		got, err := w.create("x", metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != "map[a:yes b:yes c:yes]" || fmt.Sprint(w.asked) != "[/c /b /a]" {
			t.Errorf("made %v by asking %v", got, w.asked)
		}
		if len(w.conns) != 1 {
			t.Errorf("%d connections for three calls in a row, want 1", len(w.conns))
		}
	})
	t.Run("again if needed", func(t *testing.T) {
		w := newWorld(t)
		w.answers("/first", func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) {})
		w.answers("/never", func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) {})
		w.patches("/second", add("second"))
		w.answers("/last", func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) {})
		var hooks []v1.MutatingWebhook
		for _, p := range []string{"/first", "/never", "/second", "/last"} {
			h := mutatingHook(w.hook(p, "CREATE /v1/configmaps"))
			if p != "/never" {
				h.ReinvocationPolicy = ptr.To(v1.IfNeededReinvocationPolicy)
			}
			hooks = append(hooks, h)
		}
		w.mutate("m", hooks...)
		if _, err := w.create("x", metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(w.asked), "[/first /never /second /last /first]"; got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
	})
	t.Run("a loop ends", func(t *testing.T) {
		w := newWorld(t)
		var hooks []v1.MutatingWebhook
		for _, p := range []string{"/tick", "/tock"} { // each undoes what the other does
			w.patches(p, fmt.Sprintf(`[{"op":"add","path":"/data/said","value":%q}]`, p))
			h := mutatingHook(w.hook(p, "CREATE /v1/configmaps"))
			h.ReinvocationPolicy = ptr.To(v1.IfNeededReinvocationPolicy)
			hooks = append(hooks, h)
		}
		w.mutate("m", hooks...)
		got, err := w.create("x", metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if said, want := fmt.Sprint(got, w.asked), "map[a:1 said:/tock] [/tick /tock /tick /tock]"; said != want {
			t.Errorf("%s, want %s", said, want)
		}
	})
	for _, c := range []struct {
		name, patch string
		code        int32
		text        string
	}{
		{"undecodable", `{"op":"x"}`, 500, `failed calling webhook "p.example.com": received undecodable patch in webhook response: `},
		{"inapplicable", `[{"op":"remove","path":"/nope"}]`, 500, `Internal error occurred: `},
		{"another kind", `[{"op":"replace","path":"/kind","value":"Secret"}]`, 500, `Internal error occurred: `},
		{"another name", `[{"op":"replace","path":"/metadata/name","value":"Bad_Name"}]`, 422, `metadata.name: Invalid value: "Bad_Name"`},
		{"not an object", `[{"op":"replace","path":"/data","value":[1]}]`, 500, `Internal error occurred: `},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.patches("/p", c.patch)
			w.mutate("m", mutatingHook(w.hook("/p", "CREATE /v1/configmaps")))
			_, err := w.create("x", metav1.CreateOptions{})
			wantError(t, err, c.code, c.text)
		})
	}
	t.Run("defaults after mutation", func(t *testing.T) {
		w := newWorld(t)
		w.patches("/q", `[{"op":"add","path":"/template/spec/initContainers","value":[{"name":"i","image":"i"}]}]`)
		w.mutate("m", mutatingHook(w.hook("/q", "CREATE /v1/podtemplates")))
		got, err := w.client.CoreV1().PodTemplates("default").Create(t.Context(), &corev1.PodTemplate{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "p-"},
			Template:   corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if c := got.Template.Spec.InitContainers; len(c) != 1 || c[0].ImagePullPolicy != corev1.PullAlways || c[0].TerminationMessagePolicy != corev1.TerminationMessageReadFile {
			t.Errorf("the container a webhook added has no defaults: %+v", c)
		}
	})
	t.Run("bad managed fields", func(t *testing.T) {
		w := newWorld(t)
		w.patches("/p", `[{"op":"replace","path":"/metadata/managedFields/0/fieldsType","value":"Odd"}]`)
		w.mutate("m", mutatingHook(w.hook("/p", "CREATE /v1/configmaps")))
		cm, err := w.client.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("x"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if cm.ManagedFields[0].FieldsType != "FieldsV1" || len(w.warned) != 1 || !strings.Contains(w.warned[0], "managedFields was in an invalid state after admission") {
			t.Errorf("%v, warnings %q", cm.ManagedFields, w.warned)
		}
	})
}

// What webhooks say and do is for the audit log; patches only with bodies.
func TestAuditAnnotations(t *testing.T) {
	w := newWorld(t)
	w.answers("/p", func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		kind := admissionv1.PatchTypeJSONPatch
		r.Patch, r.PatchType, r.AuditAnnotations = []byte(`[{"op":"add","path":"/data/b","value":"2"}]`), &kind, map[string]string{"k": "v"}
	})
	dead := w.hook("/dead", "CREATE /v1/configmaps")
	dead.FailurePolicy = ptr.To(v1.Ignore)
	w.mutate("m", mutatingHook(dead), mutatingHook(w.hook("/p", "CREATE /v1/configmaps")))
	w.validate("v", dead)
	var got []string
	ctx := admission.WithAnnotator(t.Context(), func(key, value string, body bool) { got = append(got, fmt.Sprint(key, " = ", value, " ", body)) })
	r := &admission.Request{Attributes: auth.Attributes{ResourceRequest: true, Verb: "create", APIVersion: "v1", Resource: "configmaps", Namespace: "default"}, Object: configMap("x")}
	r.Kind.Version, r.Kind.Kind = "v1", "ConfigMap"
	if err := admission.NewChain(w.plugins).Admit(ctx, r); err != nil {
		t.Fatal(err)
	}
	if err := admission.NewChain(w.plugins).Validate(ctx, r); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`mutation.webhook.admission.k8s.io/round_0_index_0 = {"configuration":"m","webhook":"dead.example.com","mutated":false} false`,
		`failed-open.mutation.webhook.admission.k8s.io/round_0_index_0 = dead.example.com false`,
		`p.example.com/k = v false`,
		`mutation.webhook.admission.k8s.io/round_0_index_1 = {"configuration":"m","webhook":"p.example.com","mutated":true} false`,
		`patch.webhook.admission.k8s.io/round_0_index_1 = {"configuration":"m","webhook":"p.example.com","patch":[{"op":"add","path":"/data/b","value":"2"}],"patchType":"JSONPatch"} true`,
		`failed-open.validating.webhook.admission.k8s.io/round_0_index_0 = dead.example.com false`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("annotations are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Calls are counted under upstream's names.
func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.answers("/deny", deny(&metav1.Status{Code: 418}))
	dead := w.hook("/dead", "CREATE /v1/configmaps")
	dead.FailurePolicy = ptr.To(v1.Ignore)
	w.validate("v", w.hook("/deny", "CREATE /v1/configmaps"), dead)
	if _, err := w.create("x", metav1.CreateOptions{}); err == nil {
		t.Error("not denied")
	}
	data, err := w.client.RESTClient().Get().AbsPath("/metrics").SetHeader("Accept", "text/plain").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.SplitSeq(string(data), "\n") {
		if strings.HasPrefix(line, "apiserver_admission_webhook_") && !strings.Contains(line, "_bucket") && !strings.Contains(line, "_sum") {
			got = append(got, strings.TrimPrefix(line, "apiserver_admission_webhook_"))
		}
	}
	want := []string{
		`admission_duration_seconds_count{name="dead.example.com",operation="CREATE",rejected="false",type="validating"} 1`,
		`admission_duration_seconds_count{name="deny.example.com",operation="CREATE",rejected="true",type="validating"} 1`,
		`fail_open_count{name="dead.example.com",type="validating"} 1`,
		`rejection_count{error_type="no_error",name="deny.example.com",operation="CREATE",rejection_code="418",type="validating"} 1`,
		`request_total{code="404",name="dead.example.com",operation="CREATE",rejected="false",type="validating"} 1`,
		`request_total{code="418",name="deny.example.com",operation="CREATE",rejected="true",type="validating"} 1`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("metrics are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// An object is shown in the version a rule asks for, and changed through it.
func TestEquivalentVersions(t *testing.T) {
	w := newWorld(t)
	var kinds []string
	w.answers("/v1", func(q *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		hpa := &autoscalingv1.HorizontalPodAutoscaler{}
		if err := json.Unmarshal(q.Object.Raw, hpa); err != nil {
			t.Error(err)
		}
		kinds = append(kinds, fmt.Sprintf("%s %s asked as %s, max %d", hpa.APIVersion, q.Kind.Version, q.RequestKind.Version, hpa.Spec.MaxReplicas))
		kind := admissionv1.PatchTypeJSONPatch
		r.Patch, r.PatchType = []byte(`[{"op":"replace","path":"/spec/maxReplicas","value":9}]`), &kind
	})
	h := w.hook("/v1", "CREATE autoscaling/v1/horizontalpodautoscalers")
	w.mutate("m", mutatingHook(h))
	exact := w.hook("/deny", "CREATE autoscaling/v1/horizontalpodautoscalers")
	exact.MatchPolicy = ptr.To(v1.Exact)
	w.answers("/deny", deny(nil))
	w.validate("exact", exact)
	body := `{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"a"},"spec":{"maxReplicas":3,"scaleTargetRef":{"kind":"Deployment","name":"d","apiVersion":"apps/v1"}}}`
	got := &autoscalingv1.HorizontalPodAutoscaler{}
	err := w.client.RESTClient().Post().AbsPath("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers").SetHeader("Content-Type", "application/json").
		Body([]byte(body)).Do(t.Context()).Error()
	if err == nil {
		got, err = w.client.AutoscalingV1().HorizontalPodAutoscalers("default").Get(t.Context(), "a", metav1.GetOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if want := "[autoscaling/v1 v1 asked as v2, max 3]"; fmt.Sprint(kinds) != want || got.Spec.MaxReplicas != 9 {
		t.Errorf("the webhook saw %v, want %s; maxReplicas is %d", kinds, want, got.Spec.MaxReplicas)
	}
}

// A Service is reached at an endpoint, under the name <service>.<namespace>.svc.
func TestByService(t *testing.T) {
	w := newWorld(t)
	w.answers("/deny", deny(nil))
	for _, c := range []struct{ service, want string }{
		{"there", `admission webhook "deny.example.com" denied the request without explanation`},
		{"elsewhere", `Post "https://elsewhere.ns.svc:8443/deny?timeout=10s": no endpoints available for service "elsewhere"`},
		{"imposter", `Post "https://imposter.ns.svc:8443/deny?timeout=10s": tls: failed to verify certificate: x509: certificate is valid for`},
	} {
		h := w.hook("/deny", "CREATE /v1/configmaps")
		h.ClientConfig.URL = nil
		h.ClientConfig.Service = &v1.ServiceReference{Namespace: "ns", Name: c.service, Port: ptr.To[int32](8443), Path: ptr.To("/deny")}
		w.validate("one", h)
		if _, err := w.create("x", metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.service, err, c.want)
		}
		w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "one", metav1.DeleteOptions{}) //nolint:errcheck // the next request would say
	}
	if !slices.Equal(w.names, []string{"there.ns.svc"}) {
		t.Errorf("the webhook was called %q", w.names)
	}
}

// A webhook that is dead, or denies everything, cannot keep anybody from
// removing it.
func TestWebhooksNeverTouchThemselves(t *testing.T) {
	w := newWorld(t)
	dead := w.hook("/dead", "* */*/*/*")
	dead.Rules = []v1.RuleWithOperations{{Operations: []v1.OperationType{"*"}, Rule: v1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}}}}
	dead.NamespaceSelector = nil
	dead.ClientConfig.URL = ptr.To("https://127.0.0.1:1/")
	w.mutate("dead", mutatingHook(dead))
	w.validate("dead", dead)
	ctx := t.Context()
	_, err := w.create("x", metav1.CreateOptions{})
	wantError(t, err, 500, `failed calling webhook "dead.example.com"`)
	_, err = w.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{})
	wantError(t, err, 500, `failed calling webhook "dead.example.com"`)
	configs := w.client.AdmissionregistrationV1()
	if _, err := configs.ValidatingWebhookConfigurations().Patch(ctx, "dead", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
	if err := configs.ValidatingWebhookConfigurations().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if err := configs.MutatingWebhookConfigurations().Delete(ctx, "dead", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := w.create("x", metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}

// What a connect asks for is shown as its options.
func TestConnect(t *testing.T) {
	w := newWorld(t)
	w.answers("/attach", func(q *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		r.Allowed, r.Result = false, &metav1.Status{Message: fmt.Sprintf("%s %s %s %s %s", q.Operation, q.SubResource, q.Name, q.Object.Raw, q.Options.Raw)}
	})
	w.validate("one", w.hook("/attach", "CONNECT /v1/pods/attach"))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{
		ServiceAccountName: "s", AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{Name: "c", Image: "i"}},
	}}
	_, err := w.client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, metav1.CreateOptions{})
	if err == nil {
		_, err = w.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	err = w.client.CoreV1().RESTClient().Post().Namespace("default").Resource("pods").Name("p").SubResource("attach").Param("container", "c").Do(t.Context()).Error()
	wantError(t, err, 400, `denied the request: CONNECT attach p {"kind":"PodAttachOptions","apiVersion":"v1","container":"c"} `)
}

// raw sends a request as it is.
func (w *world) raw(verb, path, body string) (string, error) {
	kind := "application/yaml"
	if verb == "PATCH" {
		kind = "application/merge-patch+json"
	}
	data, err := w.client.RESTClient().Verb(verb).AbsPath(path).SetHeader("Content-Type", kind).SetHeader("Accept", "application/json").
		Body([]byte(body)).Do(w.t.Context()).Raw()
	if status := new(metav1.Status); err != nil && json.Unmarshal(data, status) == nil {
		err = &apierrors.StatusError{ErrStatus: *status}
	}
	return string(data), err
}

// define makes custom resources whose versions share one schema.
func (w *world) define(versions string) {
	w.t.Helper()
	_, err := w.raw("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, kind: Thing}
  versions:`+strings.ReplaceAll(versions, "SCHEMA", `{openAPIV3Schema: {type: object, properties: {data: {type: object, properties: {a: {type: string}, b: {type: string}, c: {type: string, default: yes!}}}}}}`))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; ; i++ {
		if _, err = w.raw("GET", things, ""); err == nil {
			return
		} else if i == 500 {
			w.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const things = "/apis/example.com/v1/namespaces/default/things"

func thing(data string) string {
	return `{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"name":"t"},"data":` + data + `}`
}

// Custom resources are denied, changed, defaulted and pruned like all others.
func TestCustomResources(t *testing.T) {
	w := newWorld(t)
	w.define("\n  - {name: v1, served: true, storage: true, schema: SCHEMA}")
	add := func(key string) func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) {
		return func(q *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
			kind := admissionv1.PatchTypeJSONPatch
			if q.Operation == admissionv1.Delete || strings.Contains(string(q.Object.Raw), `"`+key+`"`) {
				return
			}
			r.Patch, r.PatchType = fmt.Appendf(nil, `[{"op":"add","path":"/data/%s","value":"hook"}]`, key), &kind
		}
	}
	w.answers("/b", add("b"))
	w.answers("/unknown", add("unknown"))
	w.answers("/deny", func(q *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		if strings.Contains(string(q.Object.Raw)+string(q.OldObject.Raw), `"a":"bad"`) || strings.Contains(string(q.Object.Raw), "unknown") {
			r.Allowed, r.Result = false, &metav1.Status{Message: string(q.Operation)}
		}
	})
	w.mutate("m", mutatingHook(w.hook("/unknown", "* example.com/*/things")), mutatingHook(w.hook("/b", "* example.com/*/things")))
	w.validate("v", w.hook("/deny", "* example.com/*/things"))
	_, err := w.raw("POST", things, thing(`{"a":"bad"}`))
	wantError(t, err, 400, `admission webhook "deny.example.com" denied the request: CREATE`)
	body, err := w.raw("POST", things, thing(`{"a":"good"}`))
	if err != nil || !strings.Contains(body, `"data":{"a":"good","b":"hook","c":"yes!"}`) {
		t.Errorf("%v %s", err, body)
	}
	_, err = w.raw("PATCH", things+"/t", `{"data":{"a":"bad"}}`)
	wantError(t, err, 400, `denied the request: UPDATE`)
	w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "v", metav1.DeleteOptions{}) //nolint:errcheck // the next requests would say
	if _, err = w.raw("PATCH", things+"/t", `{"data":{"a":"bad"}}`); err != nil {
		t.Error(err)
	}
	w.validate("v", w.hook("/deny", "* example.com/*/things"))
	_, err = w.raw("DELETE", things+"/t", "")
	wantError(t, err, 400, `denied the request: DELETE`)
}

// A webhook that knows one version of a custom resource is asked in it,
// whichever is used and whichever is stored.
func TestCustomResourceVersions(t *testing.T) {
	w := newWorld(t)
	w.define("\n  - {name: v1, served: true, storage: true, schema: SCHEMA}\n  - {name: v2, served: true, storage: false, schema: SCHEMA}")
	var seen []string
	w.answers("/v2", func(q *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		obj, old := &metav1.PartialObjectMetadata{}, &metav1.PartialObjectMetadata{}
		if json.Unmarshal(q.Object.Raw, obj) != nil || q.OldObject.Raw != nil && json.Unmarshal(q.OldObject.Raw, old) != nil {
			t.Errorf("bad objects %s %s", q.Object.Raw, q.OldObject.Raw)
		}
		seen = append(seen, fmt.Sprint(q.Operation, " ", q.RequestKind.Version, " as ", q.Kind.Version, ": ", obj.APIVersion, " was ", old.APIVersion))
		kind := admissionv1.PatchTypeJSONPatch
		r.Patch, r.PatchType = []byte(`[{"op":"add","path":"/data/b","value":"hook"}]`), &kind
	})
	w.mutate("m", mutatingHook(w.hook("/v2", "* example.com/v2/things")))
	body, err := w.raw("POST", things, thing(`{"a":"good"}`))
	if err != nil || !strings.Contains(body, `"apiVersion":"example.com/v1"`) || !strings.Contains(body, `"b":"hook"`) {
		t.Errorf("%v %s", err, body)
	}
	crd := "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.example.com"
	_, err = w.raw("PATCH", crd, strings.ReplaceAll(`{"spec":{"versions":[{"name":"v1","served":true,"storage":false,"schema":SCHEMA},{"name":"v2","served":true,"storage":true,"schema":SCHEMA}]}}`,
		"SCHEMA", `{"openAPIV3Schema":{"type":"object","properties":{"data":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	body, err = w.raw("PATCH", things+"/t", `{"data":{"b":null,"a":"x"}}`)
	if err != nil || !strings.Contains(body, `"apiVersion":"example.com/v1"`) || !strings.Contains(body, `"b":"hook"`) {
		t.Errorf("%v %s", err, body)
	}
	if want := []string{"CREATE v1 as v2: example.com/v2 was ", "UPDATE v1 as v2: example.com/v2 was example.com/v2"}; !slices.Equal(seen, want) {
		t.Errorf("the webhook saw %q, want %q", seen, want)
	}
}

// What webhooks cost a request: none configured, one for other resources.
func BenchmarkCreate(b *testing.B) {
	for _, name := range []string{"none", "other"} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			if name == "other" {
				w.mutate("m", mutatingHook(w.hook("/no", "* apps/v1/deployments")))
				w.validate("v", w.hook("/no", "* apps/v1/deployments"))
			}
			chain := admission.NewChain(w.plugins)
			r := &admission.Request{Attributes: auth.Attributes{ResourceRequest: true, Verb: "create", APIVersion: "v1", Resource: "configmaps", Namespace: "default"}, Object: configMap("x")}
			for b.Loop() {
				r := *r
				if chain.Admit(b.Context(), &r) != nil || chain.Validate(b.Context(), &r) != nil {
					b.Fatal("denied")
				}
			}
		})
	}
}
