// Package oidc finds the users of tokens that OpenID Connect issuers signed:
// it asks each issuer for its keys, verifies tokens with them, and leaves to
// the issuer's configured rules who a token's claims say it is.
package oidc

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"k8s.io/client-go/util/cert"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/config"
)

const (
	wellKnown    = "/.well-known/openid-configuration"
	discoverTime = 10 * time.Second // between tries to reach an issuer
	answerTime   = 30 * time.Second // for an issuer's answer
	leeway       = time.Minute      // tokens may be that much before their time
)

// Algorithms are the signature algorithms tokens may have.
func Algorithms() []string {
	return []string{gooidc.ES256, gooidc.ES384, gooidc.ES512, gooidc.PS256, gooidc.PS384, gooidc.PS512, gooidc.RS256, gooidc.RS384, gooidc.RS512}
}

// Config makes an Issuer.
type Config struct {
	Claims     *config.Claims
	Algorithms []string          // default RS256
	Metrics    *Metrics          // default: nothing is counted
	Clock      clock.WithTicker  // default the real one
	Transport  http.RoundTripper // default: one that trusts the configured authority, or the system's
	Log        *slog.Logger      // default: discard
}

// Issuer implements auth.TokenAuthenticator for the tokens of one issuer.
type Issuer struct {
	conf      Config
	checks    *gooidc.Config
	transport http.RoundTripper
	verifier  atomic.Pointer[gooidc.IDTokenVerifier] // nil: the issuer was not reached yet
	ready     chan struct{}                          // closed when it is there
	failure   atomic.Pointer[error]                  // of the last try to reach it
	sources   sources
}

// New returns an issuer that knows no keys until it runs.
func New(c Config) (*Issuer, error) {
	if len(c.Algorithms) == 0 {
		c.Algorithms = []string{gooidc.RS256}
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(Algorithms(), a) {
			return nil, fmt.Errorf("oidc: unsupported signing alg: %q", a)
		}
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Transport == nil {
		own := http.DefaultTransport.(*http.Transport).Clone()
		if pem := c.Claims.Issuer.CertificateAuthority; pem != "" {
			pool, err := cert.NewPoolFromBytes([]byte(pem))
			if err != nil {
				return nil, fmt.Errorf("Failed to read the CA contents: %w", err) //nolint:staticcheck // upstream's words
			}
			own.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		}
		c.Transport = own
	}
	i := &Issuer{conf: c, transport: c.Transport, ready: make(chan struct{})}
	// The audience is checked here: the library knows only one.
	i.checks = &gooidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: c.Algorithms, Now: c.Clock.Now}
	err := errors.New("it is not initialized")
	i.failure.Store(&err)
	return i, nil
}

// URL names the issuer.
func (i *Issuer) URL() string { return i.conf.Claims.Issuer.URL }

// Run reaches for the issuer until it answers, or ctx ends.
func (i *Issuer) Run(ctx context.Context) {
	issuer := i.conf.Claims.Issuer
	for {
		v, err := i.reach(ctx, issuer.URL, issuer.DiscoveryURL, i.conf.Metrics.fetched(issuer.URL))
		if err == nil {
			i.verifier.Store(v)
			close(i.ready)
			return
		}
		i.failure.Store(&err)
		if ctx.Err() == nil {
			i.conf.Log.Error("an issuer of tokens cannot be reached; it is tried again", "issuer", issuer.URL, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-i.conf.Clock.After(discoverTime):
		}
	}
}

// Ready is closed when the issuer was reached and its tokens can be verified.
func (i *Issuer) Ready() <-chan struct{} { return i.ready }

// Health says why the issuer's tokens cannot be verified yet; nil: they can.
func (i *Issuer) Health() error {
	if i.verifier.Load() != nil {
		return nil
	}
	return fmt.Errorf("oidc: authenticator for issuer %q is not healthy: %w", i.URL(), *i.failure.Load())
}

// reach discovers where an issuer has its keys and returns what verifies with
// them. Keys are asked for when a token needs one that is not known.
func (i *Issuer) reach(ctx context.Context, issuer, at string, seen func([]byte, error)) (*gooidc.IDTokenVerifier, error) {
	if at == "" {
		at = strings.TrimSuffix(issuer, "/") + wellKnown
	}
	body, err := i.get(ctx, at, "")
	if err != nil {
		return nil, err
	}
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("oidc: failed to decode provider discovery object: %w", err)
	}
	if doc.Issuer != issuer {
		return nil, fmt.Errorf("oidc: issuer did not match the issuer returned by provider, expected %q got %q", issuer, doc.Issuer)
	}
	if doc.Keys == "" {
		return nil, errors.New("provider did not return JWKS URL")
	}
	keys := gooidc.NewRemoteKeySet(gooidc.ClientContext(context.Background(), i.client(seen)), doc.Keys)
	return gooidc.NewVerifier(issuer, keys, i.checks), nil
}

// AuthenticateToken implements auth.TokenAuthenticator. A token of another
// issuer is not ours to judge: no error.
func (i *Issuer) AuthenticateToken(ctx context.Context, token string, _ []string) (auth.Identity, bool, error) {
	if issuerOf(token) != i.URL() {
		return auth.Identity{}, false, nil
	}
	begun := i.conf.Clock.Now()
	id, err := i.authenticate(ctx, token)
	i.conf.Metrics.authenticated(i.URL(), err, i.conf.Clock.Since(begun))
	return id, err == nil, err
}

func (i *Issuer) authenticate(ctx context.Context, token string) (id auth.Identity, err error) {
	v := i.verifier.Load()
	if v == nil {
		return id, errors.New("oidc: authenticator not initialized")
	}
	claims, err := i.verify(ctx, v, token)
	if err != nil {
		return id, fmt.Errorf("oidc: verify token: %w", err)
	}
	if group := i.conf.Claims.ClaimMappings.Groups.Claim; group != "" {
		if err := i.expand(ctx, claims, group); err != nil {
			return id, fmt.Errorf("oidc: could not expand distributed claims: %w", err)
		}
	}
	id.User, err = i.conf.Claims.User(ctx, claims)
	return id, err
}

// verify checks everything about a token but what its claims say, and returns them.
func (i *Issuer) verify(ctx context.Context, v *gooidc.IDTokenVerifier, token string) (config.RawClaims, error) {
	if alg := algorithmOf(token); alg != "" && !slices.Contains(i.conf.Algorithms, alg) {
		return nil, fmt.Errorf("oidc: id token signed with unsupported algorithm, expected %q got %q", i.conf.Algorithms, alg)
	}
	t, err := v.Verify(ctx, token)
	if err != nil {
		return nil, err
	}
	audiences := i.conf.Claims.Issuer.Audiences
	if !slices.ContainsFunc(t.Audience, func(a string) bool { return slices.Contains(audiences, a) }) {
		if len(audiences) == 1 {
			return nil, fmt.Errorf("oidc: expected audience %q got %q", audiences[0], t.Audience)
		}
		return nil, fmt.Errorf("oidc: expected audience in %q got %q", slices.Sorted(slices.Values(audiences)), t.Audience)
	}
	var claims config.RawClaims
	if err := t.Claims(&claims); err != nil {
		return nil, fmt.Errorf("oidc: parse claims: %w", err)
	}
	var notBefore float64
	if json.Unmarshal(claims["nbf"], &notBefore) == nil { // the library forgives five minutes
		now, begins := i.conf.Clock.Now(), time.Unix(int64(min(notBefore, math.MaxInt32*1000)), 0)
		if now.Add(leeway).Before(begins) {
			return nil, fmt.Errorf("oidc: current time %v before the nbf (not before) time: %v", now, begins)
		}
	}
	return claims, nil
}

// issuerOf reads the issuer of what may be a token; do not trust it.
func issuerOf(token string) string {
	var c struct {
		Issuer string `json:"iss"`
	}
	part(token, 1, &c)
	if c.Issuer == "accounts.google.com" { // as Google's older tokens have it
		return "https://" + c.Issuer
	}
	return c.Issuer
}

func algorithmOf(token string) string {
	var h struct {
		Algorithm string `json:"alg"`
	}
	part(token, 0, &h)
	return h.Algorithm
}

// part reads one of the three parts of a token into v, or leaves it as it is.
func part(token string, n int, v any) {
	parts := strings.SplitN(token, ".", 4)
	if len(parts) != 3 {
		return
	}
	if raw, err := base64.RawURLEncoding.DecodeString(parts[n]); err == nil {
		_ = json.Unmarshal(raw, v)
	}
}
