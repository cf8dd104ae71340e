package authconfig

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/apiserver/authwebhook"
	"github.com/skiff-project/skiff/apiserver/oidc/oidctest"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/config"
	"github.com/skiff-project/skiff/auth/rbac"
	"github.com/skiff-project/skiff/auth/serviceaccount"
)

const (
	authnHead = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"
	authzHead = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n"
)

// roles lets members of dev get pods.
type roles struct{ rbac.Source }

func (roles) ClusterRoleBindings() ([]*rbacv1.ClusterRoleBinding, error) {
	return []*rbacv1.ClusterRoleBinding{{Subjects: []rbacv1.Subject{{Kind: "Group", Name: "dev"}}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "reader"}}}, nil
}
func (roles) ClusterRole(string) (*rbacv1.ClusterRole, error) {
	return &rbacv1.ClusterRole{Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}}, nil
}
func (roles) RoleBindings(string) ([]*rbacv1.RoleBinding, error) { return nil, nil }

// nobody implements what the server has of its own and is not asked here.
type nobody struct{ serviceaccount.Getter }

func (nobody) AuthenticateToken(context.Context, string, []string) (auth.Identity, bool, error) {
	return auth.Identity{}, false, nil
}
func (nobody) Authorize(context.Context, auth.Attributes) (auth.Decision, string, error) {
	return auth.NoOpinion, "", nil
}

func own(t *testing.T) Own {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := serviceaccount.New(serviceaccount.Config{SigningKey: key, Getter: nobody{}})
	if err != nil {
		t.Fatal(err)
	}
	return Own{Accounts: accounts, Bootstrap: nobody{}, Node: nobody{}, RBAC: rbac.New(roles{})}
}

// running is an Auth that runs until the test ends.
func running(t *testing.T, o Options) *Auth {
	t.Helper()
	a, err := New(o, own(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { a.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return a
}

// eventually waits until what is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "config")
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func jwtOf(i *oidctest.Issuer, prefix string) string {
	ca, _ := json.Marshal(i.CA)
	return fmt.Sprintf("- issuer: {url: %s, audiences: [api], certificateAuthority: %s}\n  claimMappings: {username: {claim: sub, prefix: %q}}\n", i.URL, ca, prefix)
}

// metric is the value of the series with that name and all the label values, 0 for none.
func metric(t *testing.T, a *Auth, name string, values ...string) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(a)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			missing := len(values)
			for _, l := range m.Label {
				if slices.Contains(values, l.GetValue()) {
					missing--
				}
			}
			if missing == 0 {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func TestTheAuthenticationFileIsFollowed(t *testing.T) {
	one, two := oidctest.Start(t), oidctest.Start(t)
	file := write(t, "", authnHead+"jwt:\n"+jwtOf(one, "one:"))
	var log syncBuffer
	a := running(t, Options{AuthenticationFile: file, Log: slog.New(slog.NewTextHandler(&log, nil))})
	who := func(i *oidctest.Issuer) string {
		id, ok, err := a.AuthenticateToken(t.Context(), i.Sign(i.Claims("api", map[string]any{"jti": time.Now().String()})), nil)
		if err != nil || !ok {
			return fmt.Sprint(ok, err)
		}
		if want := []string{serviceaccount.DefaultIssuer}; !reflect.DeepEqual(id.Audiences, want) {
			t.Fatalf("audiences %q", id.Audiences)
		}
		return id.User.Name
	}
	reloads := func(status string) float64 {
		return metric(t, a, "apiserver_authentication_config_controller_automatic_reloads_total", status)
	}
	eventually(t, "the first issuer's tokens are good", func() bool { return who(one) == "one:jane" })
	if got := who(two); got != "false <nil>" {
		t.Errorf("another issuer's: %s", got)
	}
	if _, ok, err := a.AuthenticateToken(t.Context(), one.Sign(one.Claims("api", nil)), []string{"vault"}); ok || err != nil {
		t.Error("for an audience that is not the server's:", ok, err)
	}

	// What is not valid changes nothing.
	write(t, file, authnHead+"jwt:\n"+jwtOf(two, "two:")+"  nonsense: true\n")
	eventually(t, "the broken file is seen", func() bool { return reloads("failure") == 1 })
	if got := who(one); got != "one:jane" || !strings.Contains(log.String(), `unknown field \"jwt[0].nonsense\"`) {
		t.Errorf("%s; log %s", got, log.String())
	}
	write(t, file, authnHead+"anonymous: {enabled: true}\njwt:\n"+jwtOf(two, "two:"))
	eventually(t, "who is anonymous cannot change", func() bool {
		return strings.Contains(log.String(), "anonymous: Forbidden: changed from initial configuration file")
	})

	// A new version: another prefix, and an issuer more.
	write(t, file, authnHead+"jwt:\n"+jwtOf(one, "1:")+jwtOf(two, "2:"))
	eventually(t, "both issuers' tokens are good", func() bool { return who(one) == "1:jane" && who(two) == "2:jane" })
	if reloads("success") != 1 {
		t.Error("reloads:", reloads("success"))
	}
	// The first one goes.
	write(t, file, authnHead+"jwt:\n"+jwtOf(two, "2:"))
	eventually(t, "the first issuer's tokens are no longer good", func() bool { return who(one) == "false <nil>" && who(two) == "2:jane" })
}

// Until a new issuer answers, what was configured before serves.
func TestAnIssuerThatDoesNotAnswerIsWaitedFor(t *testing.T) {
	one, two := oidctest.Start(t), oidctest.Start(t)
	file := write(t, "", authnHead+"jwt:\n"+jwtOf(one, "one:"))
	c := clocktesting.NewFakeClock(time.Now())
	a := running(t, Options{AuthenticationFile: file, Clock: c})
	good := func(i *oidctest.Issuer) bool {
		_, ok, _ := a.AuthenticateToken(t.Context(), i.Sign(i.Claims("api", nil)), nil)
		return ok
	}
	eventually(t, "the first issuer's tokens are good", func() bool { return good(one) })
	asked := make(chan struct{}, 1000)
	two.Down(true)
	two.OnRequest(func() { asked <- struct{}{} })
	write(t, file, authnHead+"jwt:\n"+jwtOf(two, "two:"))
	<-asked
	if !good(one) {
		t.Error("the old issuer went before the new one was there")
	}
	two.Down(false)
	eventually(t, "the new issuer's tokens are good", func() bool {
		c.Step(10 * time.Second) // to its next try
		return good(two) && !good(one)
	})
}

func TestAuthenticationFilesThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":        "failed to load authentication configuration from file",
		authzHead: "expected AuthenticationConfiguration, got AuthorizationConfiguration",
		authnHead + "jwt: [{issuer: {url: https://x, audiences: [a]}, claimMappings: {username: {claim: sub}}}]":                                        "invalid authentication configuration: jwt[0].claimMappings.username.prefix: Required value",
		authnHead + "jwt: [{issuer: {url: " + serviceaccount.DefaultIssuer + ", audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}]": "URL must not overlap with disallowed issuers",
		authnHead + "anonymous: {enabled: true}": "--anonymous-auth flag cannot be set when anonymous field is configured",
	} {
		_, err := New(Options{AuthenticationFile: write(t, "", text), Anonymous: &config.Anonymous{}, AnonymousFlag: true}, own(t))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %s", text, err, want)
		}
	}
	if _, err := New(Options{AuthenticationFile: "/none"}, own(t)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestWhoIsAnonymous(t *testing.T) {
	for _, c := range []struct {
		file string
		flag *config.Anonymous
		want string // paths that are
	}{
		{"", nil, "/livez"},
		{"", &config.Anonymous{Enabled: true}, "/livez /version"},
		{"", &config.Anonymous{}, ""},
		{authnHead, &config.Anonymous{}, ""},
		{authnHead, nil, "/livez"},
		{authnHead + "anonymous: {enabled: true}", nil, "/livez /version"},
		{authnHead + "anonymous: {enabled: false}", nil, ""},
		{authnHead + "anonymous: {enabled: true, conditions: [{path: /version}]}", nil, "/version"},
	} {
		o := Options{Anonymous: c.flag, AnonymousFlag: c.flag != nil}
		if c.file != "" {
			o.AuthenticationFile = write(t, "", c.file)
		}
		a, err := New(o, own(t))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, path := range []string{"/livez", "/version"} {
			id, ok, err := a.Server().Authenticate(httptest.NewRequest("GET", path, nil))
			if err != nil || ok && id.User.Name != auth.UserAnonymous {
				t.Fatal(id, ok, err)
			}
			if ok {
				got = append(got, path)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// hook is a webhook that answers with body; it counts and keeps what it is sent.
type hook struct {
	body  string
	code  int
	asked atomic.Int32
}

func (h *hook) serve(t *testing.T) (kubeconfig string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if h.code != 0 {
			w.WriteHeader(h.code)
		}
		io.WriteString(w, h.body) //nolint:errcheck // the client looks
	}))
	t.Cleanup(srv.Close)
	return write(t, "", `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"s","user":"u"}}],`+
		`"users":[{"name":"u","user":{}}],"clusters":[{"name":"s","cluster":{"server":"`+srv.URL+`"}}]}`)
}

const (
	deny  = `{"status":{"denied":true,"reason":"no"}}`
	allow = `{"status":{"allowed":true,"reason":"yes"}}`
)

func webhookOf(name, kubeconfig, more string) string {
	return fmt.Sprintf("- {type: Webhook, name: %s, webhook: {timeout: 30s, subjectAccessReviewVersion: v1, matchConditionSubjectAccessReviewVersion: v1, "+
		"connectionInfo: {type: KubeConfigFile, kubeConfigFile: %s}, %s}}\n", name, kubeconfig, more)
}

func TestTheOrderOfAuthorizers(t *testing.T) {
	no, yes, broken := &hook{body: deny}, &hook{body: allow}, &hook{code: 403}
	noFile, yesFile, brokenFile := no.serve(t), yes.serve(t), broken.serve(t)
	const rbacText, nodeText = "- {type: RBAC, name: rbac}\n", "- {type: Node, name: node}\n"
	for _, c := range []struct {
		what, text, group string
		want              auth.Decision
		reason, err       string
	}{
		{"a role allows", rbacText + webhookOf("w", noFile, "failurePolicy: Deny"), "dev", auth.Allow, "RBAC: allowed", ""},
		{"the webhook comes first", webhookOf("w", noFile, "failurePolicy: Deny") + rbacText, "dev", auth.Deny, "no", ""},
		{"masters come before all", webhookOf("w", noFile, "failurePolicy: Deny") + rbacText, auth.GroupMasters, auth.Allow, "", ""},
		{"the condition leaves it out", webhookOf("w", noFile, "failurePolicy: Deny, matchConditions: [{expression: \"request.user == 'x'\"}]") + rbacText, "dev", auth.Allow, "RBAC: allowed", ""},
		{"the condition takes it in", webhookOf("w", noFile, "failurePolicy: Deny, matchConditions: [{expression: \"'dev' in request.groups\"}]") + rbacText, "dev", auth.Deny, "no", ""},
		{"a condition that fails denies", webhookOf("w", noFile, "failurePolicy: Deny, matchConditions: [{expression: \"request.nonResourceAttributes.path == 'x'\"}]") + rbacText, "dev", auth.Deny, "", "no such key"},
		{"or is passed over", webhookOf("w", noFile, "failurePolicy: NoOpinion, matchConditions: [{expression: \"request.nonResourceAttributes.path == 'x'\"}]") + rbacText, "dev", auth.Allow, "RBAC: allowed", ""},
		{"a webhook that fails denies", webhookOf("w", brokenFile, "failurePolicy: Deny") + rbacText, "dev", auth.Deny, "", "403"},
		{"or is passed over", webhookOf("w", brokenFile, "failurePolicy: NoOpinion") + rbacText, "dev", auth.Allow, "RBAC: allowed", ""},
		{"two webhooks", webhookOf("w", brokenFile, "failurePolicy: NoOpinion") + webhookOf("v", yesFile, "failurePolicy: Deny"), "", auth.Allow, "yes", ""},
		{"everything is allowed", "- {type: AlwaysAllow, name: alwaysallow}\n", "", auth.Allow, "", ""},
		{"everything is forbidden", nodeText + "- {type: AlwaysDeny, name: alwaysdeny}\n", "dev", auth.NoOpinion, "alwaysdeny: Everything is forbidden.", ""},
		{"nobody decides", nodeText + rbacText, "", auth.NoOpinion, "", ""},
	} {
		a, err := New(Options{AuthorizationFile: write(t, "", authzHead+c.text)}, own(t))
		if err != nil {
			t.Fatal(err)
		}
		d, reason, err := a.Authorize(t.Context(), auth.Attributes{User: auth.User{Name: "jane", Groups: []string{c.group}}, Verb: "get", Resource: "pods", ResourceRequest: true})
		if d != c.want || !strings.HasPrefix(reason, c.reason) || reason != "" && c.reason == "" || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v %q %v", c.what, d, reason, err)
		}
	}
	if n := yes.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestWhatIsCountedOfWebhooks(t *testing.T) {
	broken := &hook{code: 403}
	file := broken.serve(t)
	a, err := New(Options{AuthorizationFile: write(t, "", authzHead+webhookOf("open", file, "failurePolicy: NoOpinion")+
		webhookOf("never", file, "failurePolicy: NoOpinion, matchConditions: [{expression: 'false'}]")+webhookOf("closed", file, "failurePolicy: Deny"))}, own(t))
	if err != nil {
		t.Fatal(err)
	}
	if d, _, _ := a.Authorize(t.Context(), auth.Attributes{Verb: "get", Path: "/"}); d != auth.Deny {
		t.Fatal(d)
	}
	for _, c := range []struct {
		name, hook, label string
		want              float64
	}{
		{"webhook_evaluations_total", "open", "error", 1}, {"webhook_evaluations_total", "never", "error", 0},
		{"webhook_evaluations_fail_open_total", "open", "error", 1}, {"webhook_evaluations_fail_open_total", "closed", "error", 0},
		{"match_condition_exclusions_total", "never", "Webhook", 1}, {"match_condition_evaluation_errors_total", "never", "Webhook", 0},
		{"decisions_total", "closed", "denied", 1}, {"decisions_total", "open", "denied", 0},
	} {
		if got := metric(t, a, "apiserver_authorization_"+c.name, c.hook, c.label); got != c.want {
			t.Errorf("%s of %s, %s: %v, want %v", c.name, c.hook, c.label, got, c.want)
		}
	}
}

func TestTheAuthorizationFileIsFollowed(t *testing.T) {
	no := &hook{body: deny}
	kubeconfig := no.serve(t)
	const rbacText = "- {type: RBAC, name: rbac}\n"
	file := write(t, "", authzHead+rbacText)
	var log syncBuffer
	a := running(t, Options{AuthorizationFile: file, Log: slog.New(slog.NewTextHandler(&log, nil))})
	ask := func() auth.Decision {
		d, _, _ := a.Authorize(t.Context(), auth.Attributes{User: auth.User{Name: "jane", Groups: []string{"dev"}}, Verb: "get", Resource: "pods", ResourceRequest: true})
		return d
	}
	if ask() != auth.Allow {
		t.Fatal("the role does not allow")
	}
	for text, why := range map[string]string{
		authzHead + webhookOf("w", kubeconfig, "failurePolicy: Deny"): "missing required types: [RBAC]",
		authzHead + rbacText + "- {type: Node, name: node}\n":         "authorizer type Node is not allowed if it was not enabled at initial server startup",
		authzHead + "- {type: RBAC}\n":                                "authorizers[0].name: Required value",
	} {
		write(t, file, text)
		eventually(t, "the log says: "+why, func() bool { return strings.Contains(log.String(), why) })
		if ask() != auth.Allow {
			t.Errorf("%s changed something", text)
		}
	}
	write(t, file, authzHead+webhookOf("w", kubeconfig, "failurePolicy: Deny")+rbacText)
	eventually(t, "the webhook denies", func() bool { return ask() == auth.Deny })
	// As an editor does it: a new file in the place of the old one.
	next := write(t, file+".new", authzHead+rbacText)
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the role allows again", func() bool { return ask() == auth.Allow })
	eventually(t, "it is counted", func() bool {
		return metric(t, a, "apiserver_authorization_config_controller_automatic_reloads_total", "success") >= 2
	})
}

func TestRulesOfAUser(t *testing.T) {
	file := (&hook{body: deny}).serve(t)
	hooked := config.Authorizer{Type: config.Webhook, Name: "w", Webhook: &config.AccessWebhook{SubjectAccessReviewVersion: "v1",
		CacheAuthorizedRequests: new(bool), CacheUnauthorizedRequests: new(bool), ConnectionInfo: config.ConnectionInfo{KubeConfigFile: &file}}}
	everything := []authorizationv1.ResourceRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}}
	pods := []authorizationv1.ResourceRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}
	for _, c := range []struct {
		list       []config.Authorizer
		groups     string
		rules      []authorizationv1.ResourceRule
		incomplete bool
		err        string
	}{
		{nil, "dev", pods, false, ""},
		{nil, auth.GroupNodes, []authorizationv1.ResourceRule{}, true, "node authorizer does not support user rule resolution"},
		{[]config.Authorizer{{Type: config.RBAC}, hooked}, "dev", pods, true, "webhook authorizer does not support user rule resolution"},
		{[]config.Authorizer{{Type: config.AlwaysAllow}}, "", everything, false, ""},
	} {
		a, err := New(Options{Authorizers: c.list}, own(t))
		if err != nil {
			t.Fatal(err)
		}
		got := a.ReviewRules(auth.User{Name: "jane", Groups: []string{c.groups}}, "x")
		if !reflect.DeepEqual(got.ResourceRules, c.rules) || got.Incomplete != c.incomplete || got.EvaluationError != c.err {
			t.Errorf("%v for %s: %+v", c.list, c.groups, got)
		}
	}
}

// The server's own authenticators are asked before issuers, those before the webhook.
func TestTheOrderOfAuthenticators(t *testing.T) {
	h := &hook{body: `{"status":{"authenticated":true,"user":{"username":"webhook's"}}}`}
	i := oidctest.Start(t)
	a := running(t, Options{AuthenticationFile: write(t, "", authnHead+"jwt:\n"+jwtOf(i, "")), Tokens: &authwebhook.TokenConfig{Kubeconfig: h.serve(t), Version: "v1"}})
	token := i.Sign(i.Claims("api", nil))
	eventually(t, "the issuer's token is good", func() bool {
		id, _, _ := a.issuers.AuthenticateToken(t.Context(), token, nil)
		return id.User.Name == "jane"
	})
	for token, want := range map[string]string{token: "jane", "other": "webhook's"} {
		if id, ok, err := a.AuthenticateToken(t.Context(), token, nil); !ok || err != nil || id.User.Name != want {
			t.Errorf("%v %v %v, want %s", id, ok, err, want)
		}
	}
	if n := h.asked.Load(); n != 1 {
		t.Errorf("the webhook saw %d tokens", n)
	}
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// bootstrapper knows one token.
type bootstrapper struct{}

func (bootstrapper) AuthenticateToken(_ context.Context, token string, _ []string) (auth.Identity, bool, error) {
	return auth.Identity{User: auth.User{Name: "system:bootstrap:x"}}, token == "x.y", nil
}

// Tokens of a file come first; those of Secrets can be left out.
func TestTokenFileAndBootstrapTokens(t *testing.T) {
	file := write(t, "", "secret,jane,7,\"dev,ops\"\n")
	who := func(o Options, token string) string {
		t.Helper()
		mine := own(t)
		mine.Bootstrap = bootstrapper{}
		a, err := New(o, mine)
		if err != nil {
			t.Fatal(err)
		}
		id, _, err := a.AuthenticateToken(t.Context(), token, nil)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(id.User.Name, id.User.Groups)
	}
	for _, c := range []struct {
		o           Options
		token, want string
	}{
		{Options{TokenFile: file}, "secret", "jane[dev ops]"},
		{Options{TokenFile: file}, "x.y", "system:bootstrap:x[]"},
		{Options{TokenFile: file}, "other", "[]"},
		{Options{}, "secret", "[]"},
		{Options{NoBootstrapTokens: true}, "x.y", "[]"},
	} {
		if got := who(c.o, c.token); got != c.want {
			t.Errorf("%+v %s: %s", c.o, c.token, got)
		}
	}
	for text, want := range map[string]string{"secret,jane": "must have at least 3 columns"} {
		if _, err := New(Options{TokenFile: write(t, "", text)}, own(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
