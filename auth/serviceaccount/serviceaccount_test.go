package serviceaccount

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/auth"
)

type world struct {
	sa     *corev1.ServiceAccount
	pod    *corev1.Pod
	secret *corev1.Secret
	node   *corev1.Node
}

func pick[T any](obj *T, resource, name string) (*T, error) {
	if obj == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name)
	}
	return obj, nil
}

func (w *world) ServiceAccount(_ context.Context, _, name string) (*corev1.ServiceAccount, error) {
	return pick(w.sa, "serviceaccounts", name)
}
func (w *world) Pod(_ context.Context, _, name string) (*corev1.Pod, error) {
	return pick(w.pod, "pods", name)
}
func (w *world) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	return pick(w.secret, "secrets", name)
}
func (w *world) Node(_ context.Context, name string) (*corev1.Node, error) {
	return pick(w.node, "nodes", name)
}

func meta(ns, name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(uid)}
}

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld() *world {
	return &world{
		sa:     &corev1.ServiceAccount{ObjectMeta: meta("a", "app", "sa-1")},
		pod:    &corev1.Pod{ObjectMeta: meta("a", "web", "pod-1"), Spec: corev1.PodSpec{ServiceAccountName: "app", NodeName: "n1"}},
		secret: &corev1.Secret{ObjectMeta: meta("a", "s", "secret-1")},
		node:   &corev1.Node{ObjectMeta: meta("", "n1", "node-1")},
	}
}

func newTokens(t *testing.T, w *world, change func(*Config)) (*Tokens, *clocktesting.FakePassiveClock) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	clock := clocktesting.NewFakePassiveClock(start)
	cfg := Config{SigningKey: key, Getter: w, Clock: clock}
	if change != nil {
		change(&cfg)
	}
	tokens, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tokens, clock
}

func boundRef(kind, name string) *authenticationv1.BoundObjectReference {
	return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name}
}

func issue(t *testing.T, tokens *Tokens, spec authenticationv1.TokenRequestSpec) string {
	t.Helper()
	out, _, err := tokens.Request(context.Background(), "a", "app", &authenticationv1.TokenRequest{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	return out.Status.Token
}

func TestPodBoundToken(t *testing.T) {
	w := newWorld()
	tokens, _ := newTokens(t, w, nil)
	out, warnings, err := tokens.Request(context.Background(), "a", "app", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: boundRef("Pod", "web")}})
	if err != nil || warnings != nil {
		t.Fatal(warnings, err)
	}
	if !out.Status.ExpirationTimestamp.Time.Equal(start.Add(time.Hour)) || out.Name != "app" || out.UID != "sa-1" || !reflect.DeepEqual(out.Spec.Audiences, []string{DefaultIssuer}) {
		t.Errorf("%+v", out)
	}
	var c map[string]any
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(out.Status.Token, ".")[1])
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	jti, _ := c["jti"].(string)
	if len(jti) != 36 {
		t.Errorf("jti %q", jti)
	}
	delete(c, "jti")
	at := float64(start.Unix())
	want := map[string]any{
		"iss": DefaultIssuer, "sub": "system:serviceaccount:a:app", "aud": []any{DefaultIssuer}, "iat": at, "nbf": at, "exp": at + 3600,
		"kubernetes.io": map[string]any{
			"namespace": "a", "serviceaccount": map[string]any{"name": "app", "uid": "sa-1"},
			"pod": map[string]any{"name": "web", "uid": "pod-1"}, "node": map[string]any{"name": "n1", "uid": "node-1"},
		},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("claims\n got %v\nwant %v", c, want)
	}
	id, ok, err := tokens.AuthenticateToken(context.Background(), out.Status.Token, nil)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	wantUser := auth.User{Name: "system:serviceaccount:a:app", UID: "sa-1", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:a"}, Extra: map[string][]string{
		"authentication.kubernetes.io/credential-id": {"JTI=" + jti},
		"authentication.kubernetes.io/pod-name":      {"web"}, "authentication.kubernetes.io/pod-uid": {"pod-1"},
		"authentication.kubernetes.io/node-name": {"n1"}, "authentication.kubernetes.io/node-uid": {"node-1"},
	}}
	if !reflect.DeepEqual(id.User, wantUser) || !reflect.DeepEqual(id.Audiences, []string{DefaultIssuer}) {
		t.Errorf("got %+v", id)
	}
}

func TestRequestErrors(t *testing.T) {
	long, short := int64(1<<33), int64(599)
	for _, c := range []struct {
		name string
		req  authenticationv1.TokenRequest
		want string
	}{
		{"too short", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}}, "may not specify a duration less than 10 minutes"},
		{"too long", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &long}}, "may not specify a duration larger than 2^32 seconds"},
		{"another account", authenticationv1.TokenRequest{ObjectMeta: meta("", "x", "")}, "must match the service account name if specified"},
		{"another namespace", authenticationv1.TokenRequest{ObjectMeta: meta("x", "", "")}, "must match the service account namespace if specified"},
		{"another uid", authenticationv1.TokenRequest{ObjectMeta: meta("", "", "x")}, "the UID in the token request (x) does not match the UID of the service account (sa-1)"},
		{"another kind", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: boundRef("ConfigMap", "x")}}, "cannot bind token to object of type /v1, Kind=ConfigMap"},
		{"another object", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "old"}}}, "the UID in the bound object reference (old) does not match the UID in record. The object might have been deleted and then recreated"},
	} {
		tokens, _ := newTokens(t, newWorld(), nil)
		_, _, err := tokens.Request(context.Background(), "a", "app", &c.req)
		if err == nil || !strings.Contains(err.Error(), c.want) || apierrors.ReasonForError(err) == metav1.StatusReasonUnknown {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	w := newWorld()
	w.pod.Spec.ServiceAccountName = "other"
	tokens, _ := newTokens(t, w, func(c *Config) { c.MaxExpirationSeconds = 700 })
	if _, _, err := tokens.Request(context.Background(), "a", "app", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: boundRef("Pod", "web")}}); !apierrors.IsBadRequest(err) {
		t.Errorf("a pod of another account: %v", err)
	}
	out, warnings, err := tokens.Request(context.Background(), "a", "app", &authenticationv1.TokenRequest{})
	if err != nil || *out.Spec.ExpirationSeconds != 700 || len(warnings) != 1 || warnings[0] != "requested expiration of 3600 seconds shortened to 700 seconds" {
		t.Errorf("%v %v %v", out, warnings, err)
	}
}

func TestTokenDiesWithWhatItIsBoundTo(t *testing.T) {
	deleted := &metav1.Time{Time: start.Add(-2 * time.Minute)}
	justNow := &metav1.Time{Time: start.Add(-30 * time.Second)}
	for _, c := range []struct {
		name, kind string
		change     func(*world, *clocktesting.FakePassiveClock)
		want       string
	}{
		{"nothing", "Pod", func(*world, *clocktesting.FakePassiveClock) {}, ""},
		{"expired", "", func(_ *world, c *clocktesting.FakePassiveClock) { c.SetTime(start.Add(62 * time.Minute)) }, "service account token has expired"},
		{"within leeway", "", func(_ *world, c *clocktesting.FakePassiveClock) { c.SetTime(start.Add(time.Hour + 30*time.Second)) }, ""},
		{"clock far behind", "", func(_ *world, c *clocktesting.FakePassiveClock) { c.SetTime(start.Add(-time.Hour)) }, "service account token is not valid yet"},
		{"no account", "", func(w *world, _ *clocktesting.FakePassiveClock) { w.sa = nil }, `serviceaccounts "app" not found`},
		{"account made anew", "", func(w *world, _ *clocktesting.FakePassiveClock) { w.sa.UID = "sa-2" }, "service account UID (sa-2) does not match claim (sa-1)"},
		{"account deleted", "", func(w *world, _ *clocktesting.FakePassiveClock) { w.sa.DeletionTimestamp = deleted }, "service account a/app has been deleted"},
		{"account deleted just now", "", func(w *world, _ *clocktesting.FakePassiveClock) { w.sa.DeletionTimestamp = justNow }, ""},
		{"no pod", "Pod", func(w *world, _ *clocktesting.FakePassiveClock) { w.pod = nil }, "service account token has been invalidated"},
		{"pod made anew", "Pod", func(w *world, _ *clocktesting.FakePassiveClock) { w.pod.UID = "pod-2" }, "pod UID (pod-2) does not match service account pod ref claim (pod-1)"},
		{"pod deleted", "Pod", func(w *world, _ *clocktesting.FakePassiveClock) { w.pod.DeletionTimestamp = deleted }, "service account token has been invalidated"},
		{"pod terminating", "Pod", func(w *world, _ *clocktesting.FakePassiveClock) {
			w.pod.DeletionTimestamp = &metav1.Time{Time: start.Add(time.Hour)}
		}, ""},
		{"a pod's node does not matter", "Pod", func(w *world, _ *clocktesting.FakePassiveClock) { w.node = nil }, ""},
		{"no secret", "Secret", func(w *world, _ *clocktesting.FakePassiveClock) { w.secret = nil }, "service account token has been invalidated"},
		{"no node", "Node", func(w *world, _ *clocktesting.FakePassiveClock) { w.node = nil }, "service account token has been invalidated"},
		{"node made anew", "Node", func(w *world, _ *clocktesting.FakePassiveClock) { w.node.UID = "node-2" }, "node UID (node-2) does not match service account node ref claim (node-1)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			tokens, clock := newTokens(t, w, nil)
			var spec authenticationv1.TokenRequestSpec
			if c.kind != "" {
				spec.BoundObjectRef = boundRef(c.kind, map[string]string{"Pod": "web", "Secret": "s", "Node": "n1"}[c.kind])
			}
			token := issue(t, tokens, spec)
			c.change(w, clock)
			for range 2 { // a remembered signature changes nothing
				_, ok, err := tokens.AuthenticateToken(context.Background(), token, nil)
				if ok != (c.want == "") || fmt.Sprint(err) != c.want && c.want != "" {
					t.Fatalf("got %v %v", ok, err)
				}
			}
		})
	}
}

func TestForeignAndForged(t *testing.T) {
	w := newWorld()
	tokens, _ := newTokens(t, w, nil)
	others, _ := newTokens(t, w, nil)
	elsewhere, _ := newTokens(t, w, func(c *Config) { c.Issuer = "https://elsewhere" })
	good := issue(t, tokens, authenticationv1.TokenRequestSpec{})
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	for _, c := range []struct {
		name, token, err string
		audiences        []string
		ok               bool
	}{
		{"good", good, "", nil, true},
		{"good for its audience", good, "", []string{"x", DefaultIssuer}, true},
		{"another audience", good, `token audiences ["` + DefaultIssuer + `"] is invalid for the target audiences ["vault"]`, []string{"vault"}, false},
		{"vault's token here", issue(t, tokens, authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}}), `token audiences ["vault"] is invalid for the target audiences ["` + DefaultIssuer + `"]`, nil, false},
		{"another key", issue(t, others, authenticationv1.TokenRequestSpec{}), "invalid signature, no keys found", nil, false},
		{"another issuer", issue(t, elsewhere, authenticationv1.TokenRequestSpec{}), "", nil, false},
		{"no algorithm", none, "", nil, false},
		{"changed", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+DefaultIssuer+`","sub":"system:serviceaccount:kube-system:x"}`)) + "." + parts[2], "go-jose/go-jose: error in cryptographic primitive", nil, false},
		{"not a token", "abcdef.0123456789abcdef", "", nil, false},
		{"empty", "", "", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ok, err := tokens.AuthenticateToken(context.Background(), c.token, c.audiences)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if ok != c.ok || got != c.err {
				t.Fatalf("got %v %v", ok, err)
			}
		})
	}
}

func TestKeyRotationAndRSA(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	old, _ := newTokens(t, w, func(c *Config) { c.SigningKey = rsaKey })
	token := issue(t, old, authenticationv1.TokenRequestSpec{})
	now, _ := newTokens(t, w, func(c *Config) { c.VerifyKeys = []crypto.PublicKey{rsaKey.Public()} })
	if _, ok, err := now.AuthenticateToken(context.Background(), token, nil); !ok {
		t.Fatal(err)
	}
	jwks, err := now.JWKS()
	if err != nil || strings.Count(string(jwks), `"kid"`) != 2 || strings.Contains(string(jwks), `"d"`) {
		t.Errorf("%s %v", jwks, err)
	}
	doc, err := now.OpenIDConfig("10.0.0.1:6443")
	want := `{"issuer":"` + DefaultIssuer + `","jwks_uri":"https://10.0.0.1:6443/openid/v1/jwks","response_types_supported":["id_token"],"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["ES256","RS256"]}`
	if err != nil || string(doc) != want {
		t.Errorf("%s %v", doc, err)
	}
}

func TestLegacyToken(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*world)
		want   string
	}{
		{"good", func(*world) {}, ""},
		{"no secret", func(w *world) { w.secret = nil }, "Token has been invalidated"},
		{"another token in the secret", func(w *world) { w.secret.Data["token"] = []byte("x") }, "Token does not match server's copy"},
		{"account made anew", func(w *world) { w.sa.UID = "sa-2" }, "ServiceAccount UID (sa-2) does not match claim (sa-1)"},
		{"marked invalid", func(w *world) { w.secret.Labels = map[string]string{invalidSinceLabel: "2026-01-01"} }, "the token in secret a/s for service account a/app has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the 'kubernetes.io/legacy-token-invalid-since' label from the secret to temporarily allow use of this token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			tokens, _ := newTokens(t, w, func(*Config) {})
			token, err := tokens.Legacy(w.sa, "s")
			if err != nil {
				t.Fatal(err)
			}
			w.secret.Data = map[string][]byte{"token": []byte(token)}
			c.change(w)
			id, ok, err := tokens.AuthenticateToken(context.Background(), token, nil)
			if ok != (c.want == "") || fmt.Sprint(err) != c.want && c.want != "" {
				t.Fatalf("got %v %v", ok, err)
			}
			if ok && (id.User.Name != "system:serviceaccount:a:app" || id.User.Extra != nil) {
				t.Errorf("%+v", id)
			}
		})
	}
}

// A pod's token that is asked for in the usual way is good for a year, says when it should have been read again, and is
// reported when it was not.
func TestExtendedTokens(t *testing.T) {
	const hour = 3607
	ask := func(tokens *Tokens, seconds int64, audience string, ref *authenticationv1.BoundObjectReference) (*claims, *authenticationv1.TokenRequest) {
		t.Helper()
		spec := authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: ref}
		if audience != "" {
			spec.Audiences = []string{audience}
		}
		out, _, err := tokens.Request(context.Background(), "a", "app", &authenticationv1.TokenRequest{Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		c, err := tokens.verified(out.Status.Token)
		if err != nil {
			t.Fatal(err)
		}
		return c, out
	}
	tokens, clock := newTokens(t, newWorld(), nil)
	pod := boundRef("Pod", "web")
	c, out := ask(tokens, hour, "", pod)
	if c.Expiry.Time().Sub(start) != 365*24*time.Hour || c.Kubernetes.WarnAfter.Time().Sub(start) != hour*time.Second ||
		out.Status.ExpirationTimestamp.Sub(start) != hour*time.Second || *out.Spec.ExpirationSeconds != hour {
		t.Errorf("claims %+v, answer %+v", c, out)
	}
	off, _ := newTokens(t, newWorld(), func(c *Config) { c.NoExtension = true })
	for name, c := range map[string]*claims{
		"another time":     first(ask(tokens, 3600, "", pod)),
		"another audience": first(ask(tokens, hour, "else", pod)),
		"no pod":           first(ask(tokens, hour, "", nil)),
		"off":              first(ask(off, hour, "", pod)),
	} {
		if c.Kubernetes.WarnAfter != nil || c.Expiry.Time().Sub(start) > hour*time.Second {
			t.Errorf("%s: %+v", name, c)
		}
	}
	use := func() map[string]string {
		id, ok, err := tokens.AuthenticateToken(context.Background(), out.Status.Token, nil)
		if !ok {
			t.Fatal(err)
		}
		if id.Remarks == nil {
			return nil
		}
		return id.Remarks.Annotations
	}
	clock.SetTime(start.Add(hour * time.Second))
	if got := use(); got != nil {
		t.Errorf("in time: %v", got)
	}
	clock.SetTime(start.Add((hour + 5) * time.Second))
	if got := use()["authentication.k8s.io/stale-token"]; got != "subject: system:serviceaccount:a:app, seconds after warning threshold: 5" {
		t.Errorf("late: %q", got)
	}
}

func first[A, B any](a A, _ B) A { return a }

// The day a legacy token was used is noted once, and who uses one that was made for the account is told.
func TestUseOfLegacyTokens(t *testing.T) {
	w := newWorld()
	tokens, clock := newTokens(t, w, func(*Config) {})
	token, err := tokens.Legacy(w.sa, "s")
	if err != nil {
		t.Fatal(err)
	}
	w.secret.Data = map[string][]byte{"token": []byte(token)}
	noted := []string{}
	tokens.NoteUse(func(_ context.Context, s *corev1.Secret, label, day string) {
		noted = append(noted, s.Name+" "+label+"="+day)
	})
	use := func() (auth.Identity, error) {
		id, _, err := tokens.AuthenticateToken(context.Background(), token, nil)
		return id, err
	}
	today, tomorrow := clock.Now().UTC().Format(time.DateOnly), clock.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly)
	id, err := use()
	if err != nil || id.Remarks.Warning != "" || id.Remarks.Annotations["authentication.k8s.io/legacy-token-manual-secret"] != "s" {
		t.Errorf("%+v %v", id.Remarks, err)
	}
	for _, have := range []string{today, tomorrow, "yesterday"} {
		w.secret.Labels = map[string]string{lastUsedLabel: have}
		if _, err := use(); err != nil {
			t.Error(err)
		}
	}
	w.sa.Secrets = []corev1.ObjectReference{{Name: "s"}}
	id, err = use()
	if err != nil || id.Remarks.Warning != autoGenerated || id.Remarks.Annotations["authentication.k8s.io/legacy-token-autogenerated-secret"] != "s" {
		t.Errorf("%+v %v", id.Remarks, err)
	}
	w.secret.Labels = map[string]string{invalidSinceLabel: today}
	_, err = use()
	if r := auth.RemarksOf(utilerrors.NewAggregate([]error{errors.New("x"), err})); r == nil || r.Annotations["authentication.k8s.io/legacy-token-invalidated"] != "s/a" {
		t.Errorf("%+v %v", r, err)
	}
	want := strings.Repeat("s kubernetes.io/legacy-token-last-used="+today+"\n", 4)
	if got := strings.Join(noted, "\n") + "\n"; got != want {
		t.Errorf("noted\n%s", got)
	}
}

func FuzzToken(f *testing.F) {
	w := newWorld()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	tokens, err := New(Config{SigningKey: key, Getter: w})
	if err != nil {
		f.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	foreign, err := New(Config{SigningKey: other, Getter: w})
	if err != nil {
		f.Fatal(err)
	}
	out, _, err := foreign.Request(context.Background(), "a", "app", &authenticationv1.TokenRequest{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(out.Status.Token)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		if _, ok, _ := tokens.AuthenticateToken(context.Background(), token, nil); ok {
			t.Fatalf("a token we never signed is good: %q", token)
		}
	})
}
