package serviceaccount

import (
	"encoding/json"
	"fmt"
	"slices"

	jose "github.com/go-jose/go-jose/v4"
)

// Where the discovery documents are served, how they are typed and for how
// long a client may keep them.
const (
	OpenIDConfigPath  = "/.well-known/openid-configuration"
	JWKSPath          = "/openid/v1/jwks"
	OpenIDConfigType  = "application/json"
	JWKSType          = "application/jwk-set+json"
	DiscoveryCacheAge = "public, max-age=3600"
)

// OpenIDConfig is the OIDC discovery document. Unless Config.JWKSURI says otherwise, JWKS is below address (host:port).
func (t *Tokens) OpenIDConfig(address string) ([]byte, error) {
	jwksURI := t.cfg.JWKSURI
	if jwksURI == "" {
		if address == "" {
			return nil, fmt.Errorf("either the JWKS URI or the default external address, or both, must be set")
		}
		jwksURI = "https://" + address + JWKSPath
	}
	algs := make([]string, 0, len(t.algorithms))
	for _, a := range t.algorithms {
		algs = append(algs, string(a))
	}
	slices.Sort(algs)
	return json.Marshal(struct {
		Issuer        string   `json:"issuer"`
		JWKSURI       string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		SigningAlgs   []string `json:"id_token_signing_alg_values_supported"`
	}{t.cfg.Issuer, jwksURI, []string{"id_token"}, []string{"public"}, algs})
}

// JWKS is the set of public keys tokens are verified with.
func (t *Tokens) JWKS() ([]byte, error) {
	var set jose.JSONWebKeySet
	for _, k := range t.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Algorithm: string(k.alg), Key: k.key, KeyID: k.id, Use: "sig"})
	}
	return json.Marshal(set)
}
