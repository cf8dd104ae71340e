package oidc

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/apiserver/oidc/oidctest"
	"github.com/skiff-project/skiff/auth/config"
)

// claims are the rules of an issuer that trusts from, whose audiences are those given.
func claims(t *testing.T, from *oidctest.Issuer, audiences ...string) *config.Claims {
	t.Helper()
	none := ""
	c := config.Authentication{JWT: []config.JWT{{
		Issuer: config.Issuer{URL: from.URL, CertificateAuthority: from.CA, Audiences: audiences, AudienceMatchPolicy: "MatchAny"},
		ClaimMappings: config.ClaimMappings{
			Username: config.PrefixedClaimOrExpression{Claim: "sub", Prefix: &none},
			Groups:   config.PrefixedClaimOrExpression{Claim: "groups", Prefix: &none},
		},
	}}}
	all, err := c.Compile(nil)
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// running returns an issuer that was reached.
func running(t *testing.T, c Config) *Issuer {
	t.Helper()
	c.Algorithms = Algorithms()
	i, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { i.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	select {
	case <-i.Ready():
	case <-time.After(time.Minute):
		t.Fatal(i.Health())
	}
	return i
}

func TestTokens(t *testing.T) {
	from := oidctest.Start(t)
	one, many := running(t, Config{Claims: claims(t, from, "api")}), running(t, Config{Claims: claims(t, from, "b", "a")})
	now := time.Now()
	good := from.Sign(from.Claims("api", nil))
	parts := strings.Split(good, ".")
	stranger := oidctest.Start(t)
	for _, c := range []struct {
		what, token, user, err string
		of                     *Issuer
	}{
		{"good", good, "jane", "", one},
		{"no token at all", "x", "", "", one},
		{"four parts", good + ".x", "", "", one},
		{"of another issuer", stranger.Sign(stranger.Claims("api", nil)), "", "", one},
		{"signed by somebody else", stranger.Sign(from.Claims("api", nil)), "", "oidc: verify token: failed to verify signature: failed to verify id token signature", one},
		{"claims exchanged", parts[0] + "." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iss":%q,"sub":"root"}`, from.URL)) + "." + parts[2], "",
			"failed to verify signature", one},
		{"no signature", strings.Join([]string{base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)), parts[1], ""}, "."), "",
			`oidc: id token signed with unsupported algorithm, expected ["ES256" "ES384" "ES512" "PS256" "PS384" "PS512" "RS256" "RS384" "RS512"] got "none"`, one},
		{"a shared secret", oidctest.Sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: make([]byte, 32)}, from.Claims("api", nil)), "", `got "HS256"`, one},
		{"expired", from.Sign(from.Claims("api", map[string]any{"exp": now.Add(-time.Minute).Unix()})), "", "oidc: verify token: oidc: token is expired (Token Expiry: ", one},
		{"without an end", from.Sign(from.Claims("api", map[string]any{"exp": nil})), "", "token is expired", one},
		{"a little before its time", from.Sign(from.Claims("api", map[string]any{"nbf": now.Add(30 * time.Second).Unix()})), "jane", "", one},
		{"before its time", from.Sign(from.Claims("api", map[string]any{"nbf": now.Add(3 * time.Minute).Unix()})), "", "before the nbf (not before) time", one},
		{"for somebody else", from.Sign(from.Claims("vault", nil)), "", `oidc: expected audience "api" got ["vault"]`, one},
		{"for several", from.Sign(from.Claims("", map[string]any{"aud": []string{"vault", "api"}})), "jane", "", one},
		{"for one of ours", from.Sign(from.Claims("a", nil)), "jane", "", many},
		{"for none of ours", from.Sign(from.Claims("api", nil)), "", `oidc: expected audience in ["a" "b"] got ["api"]`, many},
		{"without a name", from.Sign(from.Claims("api", map[string]any{"sub": nil})), "", `oidc: parse username claims "sub": claim not present`, one},
	} {
		id, ok, err := c.of.AuthenticateToken(t.Context(), c.token, nil)
		if ok != (c.user != "") || id.User.Name != c.user || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v %v %v", c.what, id, ok, err)
		}
	}
}

func TestKeysRotate(t *testing.T) {
	from := oidctest.Start(t)
	m := NewMetrics("me")
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.Collectors()...)
	i := running(t, Config{Claims: claims(t, from, "api"), Metrics: m})
	ask := func(token string) error {
		t.Helper()
		_, ok, err := i.AuthenticateToken(t.Context(), token, nil)
		if ok == (err != nil) {
			t.Fatal(ok, err)
		}
		return err
	}
	old := from.Sign(from.Claims("api", nil))
	for range 5 {
		if err := ask(old); err != nil {
			t.Fatal(err)
		}
	}
	if n := from.Fetches(); n != 1 {
		t.Errorf("the keys were asked for %d times", n)
	}
	first := keySet(t, registry)
	from.Rotate()
	if err := ask(from.Sign(from.Claims("api", nil))); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	if err := ask(old); err == nil {
		t.Error("a token of the old key is still good")
	}
	if now := keySet(t, registry); now == first || now == "" {
		t.Errorf("the metric of the key set is %q, and was %q", now, first)
	}
	from.Down(true)
	if err := ask(from.Sign(from.Claims("api", nil))); err != nil {
		t.Errorf("keys that are known need no issuer: %v", err)
	}
	from.Rotate()
	if err := ask(from.Sign(from.Claims("api", nil))); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a new key while the issuer is down: %v", err)
	}
}

// keySet is the hash of the last key set.
func keySet(t *testing.T, r *prometheus.Registry) (hash string) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info" {
			if len(f.Metric) != 1 {
				t.Fatal("not one set:", f.Metric)
			}
			for _, l := range f.Metric[0].Label {
				if l.GetName() == "hash" {
					hash = l.GetValue()
				}
			}
		}
	}
	return hash
}

func TestAnIssuerIsReachedLater(t *testing.T) {
	from := oidctest.Start(t)
	from.Down(true)
	c := clocktesting.NewFakeClock(time.Now())
	i, err := New(Config{Claims: claims(t, from, "api"), Algorithms: []string{"ES256"}, Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() { i.Run(ctx) })
	fails := func(why string) {
		t.Helper()
		for until := time.Now().Add(time.Minute); !c.HasWaiters(); time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("no try")
			}
		}
		if err := i.Health(); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("health: %v, want %s", err, why)
		}
		if _, ok, err := i.AuthenticateToken(t.Context(), from.Sign(from.Claims("api", nil)), nil); ok || err == nil || err.Error() != "oidc: authenticator not initialized" {
			t.Error(ok, err)
		}
	}
	fails("503 Service Unavailable")
	from.Down(false)
	from.CallItself("https://other")
	c.Step(discoverTime)
	fails(`oidc: issuer did not match the issuer returned by provider, expected "` + from.URL + `" got "https://other"`)
	from.CallItself("")
	c.Step(discoverTime)
	select {
	case <-i.Ready():
	case <-time.After(time.Minute):
		t.Fatal(i.Health())
	}
	if _, ok, err := i.AuthenticateToken(t.Context(), from.Sign(from.Claims("api", nil)), nil); !ok || err != nil || i.Health() != nil {
		t.Error(ok, err, i.Health())
	}
}

func TestDiscoveryElsewhere(t *testing.T) {
	from := oidctest.Start(t)
	from.CallItself("https://issuer.example")
	c := claims(t, from, "api")
	c.Issuer.URL, c.Issuer.DiscoveryURL = "https://issuer.example", from.URL+"/.well-known/openid-configuration"
	i := running(t, Config{Claims: c})
	token := from.Sign(from.Claims("api", map[string]any{"iss": "https://issuer.example"}))
	if id, ok, err := i.AuthenticateToken(t.Context(), token, nil); !ok || err != nil || id.User.Name != "jane" {
		t.Error(id, ok, err)
	}
}

func TestGooglesOldName(t *testing.T) {
	if got := issuerOf("x." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"accounts.google.com"}`)) + ".x"); got != "https://accounts.google.com" {
		t.Error(got)
	}
}

func TestDistributedClaims(t *testing.T) {
	from := oidctest.Start(t)
	i := running(t, Config{Claims: claims(t, from, "api")})
	var answer string
	from.Mux.HandleFunc("/groups", func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != "Bearer let-me" {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, answer)
	})
	sources := func(endpoint, token string) map[string]any {
		return map[string]any{"_claim_names": map[string]string{"groups": "src"}, "_claim_sources": map[string]any{"src": map[string]string{"endpoint": endpoint, "access_token": token}}}
	}
	ours, good := from.URL+"/groups", from.Sign(from.Claims("api", map[string]any{"groups": []string{"dev"}}))
	for _, c := range []struct {
		what   string
		claims map[string]any
		answer string
		groups []string
		err    string
	}{
		{"elsewhere", sources(ours, "let-me"), good, []string{"dev"}, ""},
		{"here too", map[string]any{"groups": "here", "_claim_names": map[string]string{"groups": "src"}, "_claim_sources": map[string]any{"src": map[string]string{"endpoint": ours}}}, "", []string{"here"}, ""},
		{"of other claims", map[string]any{"_claim_names": map[string]string{"role": "src"}, "_claim_sources": map[string]any{"src": map[string]string{"endpoint": ours}}}, "", nil, ""},
		{"without an endpoint", sources("", ""), "", nil, ""},
		{"refused", sources(ours, "please"), good, nil, `oidc: could not expand distributed claims: while getting distributed claim "groups": ` + ours + " answered 401"},
		{"for somebody else", sources(ours, "let-me"), from.Sign(from.Claims("vault", map[string]any{"groups": "x"})), nil, `verify distributed claim token: oidc: expected audience "api" got ["vault"]`},
		{"without the claim", sources(ours, "let-me"), from.Sign(from.Claims("api", nil)), nil, "did not contain claim: groups"},
		{"not a token", sources(ours, "let-me"), "x", nil, "verifying untrusted issuer  failed: verifier not initialized"},
	} {
		answer = c.answer
		id, ok, err := i.AuthenticateToken(t.Context(), from.Sign(from.Claims("api", c.claims)), nil)
		if ok == (c.err != "") || err != nil && (c.err == "" || !strings.Contains(err.Error(), c.err)) || !reflect.DeepEqual(id.User.Groups, c.groups) {
			t.Errorf("%s: %+v %v %v", c.what, id, ok, err)
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	from := oidctest.Start(t)
	i := running(t, Config{Claims: claims(t, from, "api")})
	from.Mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for range 5 {
			w.Write(make([]byte, 1<<20)) //nolint:errcheck // the client may leave
		}
	})
	if _, err := i.get(t.Context(), from.URL+"/endless", ""); err == nil || !strings.Contains(err.Error(), "answered with more than 3145728 bytes") {
		t.Error(err)
	}
}

func TestAlgorithmsThatAreRefused(t *testing.T) {
	if _, err := New(Config{Claims: claims(t, oidctest.Start(t), "api"), Algorithms: []string{"HS256"}}); err == nil || err.Error() != `oidc: unsupported signing alg: "HS256"` {
		t.Error(err)
	}
}
