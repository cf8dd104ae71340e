package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"

	"github.com/skiff-project/skiff/auth/config"
)

// maxSources bounds the issuers claims may come from.
const maxSources = 64

// sources are the issuers of distributed claims, each discovered when the first claim comes from it.
type sources struct {
	mu    sync.Mutex
	known map[string]*source
}

type source struct {
	mu       sync.Mutex
	verifier *gooidc.IDTokenVerifier
	tried    time.Time // last, without success
}

// source returns what verifies the claims of an issuer. A failed discovery is
// not tried again for a while.
func (i *Issuer) source(ctx context.Context, issuer string) (*gooidc.IDTokenVerifier, error) {
	i.sources.mu.Lock()
	s := i.sources.known[issuer]
	if s == nil {
		if i.sources.known == nil || len(i.sources.known) >= maxSources {
			i.sources.known = map[string]*source{}
		}
		s = &source{}
		i.sources.known[issuer] = s
	}
	i.sources.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := i.conf.Clock.Now()
	if s.verifier != nil {
		return s.verifier, nil
	}
	err := errors.New("it was tried a moment ago")
	if now.Sub(s.tried) >= discoverTime {
		s.tried = now
		s.verifier, err = i.reach(ctx, issuer, "", nil)
	}
	if err != nil {
		return nil, fmt.Errorf("verifier not initialized for issuer: %q: %w", issuer, err)
	}
	return s.verifier, nil
}

// expand fetches a claim that is not in the token but, as it says, elsewhere
// (OpenID Connect Core 1.0, section 5.6.2), and puts it among the claims.
func (i *Issuer) expand(ctx context.Context, claims config.RawClaims, name string) error {
	if _, ok := claims[name]; ok || claims["_claim_names"] == nil {
		return nil
	}
	var names map[string]string
	if err := json.Unmarshal(claims["_claim_names"], &names); err != nil {
		return fmt.Errorf("oidc: error parsing distributed claim names: %w", err)
	}
	if claims["_claim_sources"] == nil {
		return errors.New("oidc: no claim sources")
	}
	var endpoints map[string]struct {
		URL         string `json:"endpoint"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(claims["_claim_sources"], &endpoints); err != nil {
		return fmt.Errorf("oidc: could not parse claim sources: %w", err)
	}
	src, ok := names[name]
	if !ok {
		return nil
	}
	at, ok := endpoints[src]
	if !ok {
		return fmt.Errorf("id token _claim_names contained a source %s missing in _claims_sources", src)
	}
	if at.URL == "" { // an aggregated claim, which is not supported
		return nil
	}
	token, err := i.get(ctx, at.URL, at.AccessToken)
	if err != nil {
		return fmt.Errorf("while getting distributed claim %q: %w", name, err)
	}
	v, err := i.source(ctx, issuerOf(string(token)))
	if err != nil {
		return fmt.Errorf("verifying untrusted issuer %v failed: %w", issuerOf(string(token)), err)
	}
	more, err := i.verify(ctx, v, string(token))
	if err != nil {
		return fmt.Errorf("verify distributed claim token: %w", err)
	}
	value, ok := more[name]
	if !ok {
		return fmt.Errorf("jwt returned by distributed claim endpoint %q did not contain claim: %v", at.URL, name)
	}
	claims[name] = value
	return nil
}
