package authwebhook

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/fields"

	"github.com/skiff-project/skiff/auth"
)

// hook answers with what answer returns, and tells what it was sent.
type hook struct {
	answer func(n int) (code int, body string)
	bodies []string
}

func (h *hook) serve(t *testing.T) (kubeconfig string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		h.bodies = append(h.bodies, string(data))
		code, body := h.answer(len(h.bodies))
		w.WriteHeader(code)
		io.WriteString(w, body) //nolint:errcheck // the client looks
	}))
	t.Cleanup(srv.Close)
	path := filepath.Join(t.TempDir(), "conf")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"s","user":"u"}}],` +
		`"users":[{"name":"u","user":{}}],"clusters":[{"name":"s","cluster":{"server":"` + srv.URL + `/ask"}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func always(body string) func(int) (int, string) { return func(int) (int, string) { return 200, body } }

// asking is a token authenticator that remembers nothing and does not wait long.
func asking(t *testing.T, h *hook) *tokens {
	t.Helper()
	s, err := newServer(h.serve(t), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	s.wait = time.Millisecond
	return &tokens{TokenConfig{Version: "v1beta1", Audiences: []string{"api"}}, s}
}

func TestTokensAreReviewed(t *testing.T) {
	h := &hook{answer: always(`{"status":{"authenticated":true,"user":{"username":"jane","uid":"1","groups":["dev"],"extra":{"k":["v"]}}}}`)}
	z, err := NewTokens(TokenConfig{Kubeconfig: h.serve(t), Version: "v1beta1", CacheTTL: time.Hour, Audiences: []string{"api"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		id, ok, err := z.AuthenticateToken(t.Context(), "secret", nil)
		if err != nil || !ok || id.User.Name != "jane" || id.User.Groups[0] != "dev" || id.User.Extra["k"][0] != "v" || id.Audiences[0] != "api" {
			t.Fatalf("%+v %v %v", id, ok, err)
		}
	}
	if want := `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1beta1","metadata":{},"spec":{"token":"secret","audiences":["api"]},"status":{"user":{}}}`; len(h.bodies) != 1 || h.bodies[0] != want {
		t.Errorf("sent %s\nwant %s once", h.bodies, want)
	}
}

func TestTokensThatAreNotGood(t *testing.T) {
	for _, c := range []struct {
		what, answer string
		audiences    []string
		err          string
	}{
		{"unknown", `{"status":{"authenticated":false}}`, nil, ""},
		{"an error", `{"status":{"authenticated":false,"error":"expired"}}`, nil, "expired"},
		{"of another audience", `{"status":{"authenticated":true,"audiences":["vault"],"user":{"username":"x"}}}`, nil, ""},
		{"the webhook knows no audiences, and another is wanted", `{"status":{"authenticated":true,"user":{"username":"x"}}}`, []string{"vault"}, ""},
		{"no answer", `what`, nil, "invalid character"},
	} {
		z := asking(t, &hook{answer: always(c.answer)})
		_, ok, err := z.AuthenticateToken(t.Context(), "t", c.audiences)
		if ok || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", c.what, ok, err)
		}
	}
}

func TestAServerThatFailsIsAskedAgain(t *testing.T) {
	h := &hook{answer: func(n int) (int, string) {
		if n < 3 {
			return 503, ""
		}
		return 200, `{"status":{"authenticated":true,"user":{"username":"jane"}}}`
	}}
	z := asking(t, h)
	if id, ok, err := z.AuthenticateToken(t.Context(), "t", nil); !ok || id.User.Name != "jane" || len(h.bodies) != 3 {
		t.Error(id, ok, err, len(h.bodies))
	}
	h = &hook{answer: func(int) (int, string) { return 403, "" }}
	z = asking(t, h)
	if _, ok, err := z.AuthenticateToken(t.Context(), "t", nil); ok || err == nil || len(h.bodies) != 1 {
		t.Error("403 is an answer:", ok, err, len(h.bodies))
	}
}

func TestAccessIsReviewed(t *testing.T) {
	sel, _ := fields.ParseSelector("spec.nodeName=n,status.phase!=Failed")
	pods := auth.Attributes{User: auth.User{Name: "jane", Groups: []string{"dev"}}, Verb: "list", Namespace: "a", APIVersion: "v1", Resource: "pods", ResourceRequest: true, FieldSelector: sel.Requirements()}
	path := auth.Attributes{User: auth.User{Name: "jane"}, Verb: "get", Path: "/metrics"}
	for _, c := range []struct {
		version string
		a       auth.Attributes
		sent    string
	}{
		{"v1beta1", path, `{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1beta1","metadata":{},"spec":{"nonResourceAttributes":{"path":"/metrics","verb":"get"},"user":"jane"},"status":{"allowed":false}}`},
		{"v1beta1", pods, `"user":"jane","group":["dev"]`},
		{"v1", pods, `"user":"jane","groups":["dev"]`},
		{"v1", pods, `"fieldSelector":{"requirements":[{"key":"spec.nodeName","operator":"In","values":["n"]},{"key":"status.phase","operator":"NotIn","values":["Failed"]}]}`},
	} {
		h := &hook{answer: always(`{"status":{"allowed":true,"reason":"why not"}}`)}
		z, err := NewAccess(AccessConfig{Kubeconfig: h.serve(t), Version: c.version, AllowedTTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if d, reason, err := z.Authorize(t.Context(), c.a); d != auth.Allow || reason != "why not" || err != nil {
				t.Fatal(d, reason, err)
			}
		}
		if len(h.bodies) != 1 || !strings.Contains(h.bodies[0], c.sent) || !json.Valid([]byte(h.bodies[0])) {
			t.Errorf("sent %s\nwant %s once", h.bodies, c.sent)
		}
	}
}

func TestWhatAWebhookSaysOfAccess(t *testing.T) {
	for answer, want := range map[string]auth.Decision{
		`{"status":{"allowed":false}}`:               auth.NoOpinion,
		`{"status":{"allowed":false,"denied":true}}`: auth.Deny,
		`{"status":{"allowed":true,"denied":true}}`:  auth.Deny,
		`broken`: auth.NoOpinion,
	} {
		z, err := NewAccess(AccessConfig{Kubeconfig: (&hook{answer: always(answer)}).serve(t), Version: "v1"})
		if err != nil {
			t.Fatal(err)
		}
		if d, _, err := z.Authorize(t.Context(), auth.Attributes{Verb: "get", Path: "/"}); d != want || (err != nil) != (answer == "broken" || want == auth.Deny && strings.Contains(answer, `"allowed":true`)) {
			t.Errorf("%s: %v, %v", answer, d, err)
		}
	}
}
