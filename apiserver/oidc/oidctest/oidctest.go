// Package oidctest is an OpenID Connect issuer for tests: it serves its
// discovery document and keys on loopback, and signs tokens.
package oidctest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Issuer is one issuer. It signs with ES256.
type Issuer struct {
	URL string
	CA  string         // PEM, of the server's certificate
	Mux *http.ServeMux // for more paths

	t       testing.TB
	server  *httptest.Server
	mu      sync.Mutex
	down    bool
	named   string
	key     *ecdsa.PrivateKey
	id      string
	rotated int
	fetches int
	told    func()
}

// Start serves an issuer until the test ends.
func Start(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{t: t, Mux: http.NewServeMux()}
	i.Rotate()
	i.Mux.HandleFunc("/.well-known/openid-configuration", i.discovery)
	i.Mux.HandleFunc("/keys", i.keys)
	i.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		i.mu.Lock()
		down, told := i.down, i.told
		i.mu.Unlock()
		if told != nil {
			told()
		}
		if down {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		i.Mux.ServeHTTP(w, req)
	}))
	t.Cleanup(i.server.Close)
	i.URL = i.server.URL
	i.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw}))
	return i
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	name := i.named
	if name == "" {
		name = i.URL
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"issuer": name, "jwks_uri": i.URL + "/keys"})
}

func (i *Issuer) keys(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fetches++
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.id, Algorithm: "ES256", Use: "sig"}}})
}

// Rotate makes a new key, the only one from now on.
func (i *Issuer) Rotate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rotated++
	i.key, i.id = key, fmt.Sprint("key", i.rotated)
}

// Down makes the issuer answer 503, or serve again.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// OnRequest calls told at each request from now on.
func (i *Issuer) OnRequest(told func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.told = told
}

// CallItself makes the discovery document name another issuer.
func (i *Issuer) CallItself(url string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.named = url
}

// Fetches is how often its keys were asked for.
func (i *Issuer) Fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// Claims are those of a good token for an audience, with more over them; nil takes one away.
func (i *Issuer) Claims(audience string, more map[string]any) map[string]any {
	all := map[string]any{"iss": i.URL, "aud": audience, "exp": time.Now().Add(time.Hour).Unix(), "sub": "jane"}
	for k, v := range more {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	return all
}

// Sign makes a token.
func (i *Issuer) Sign(claims map[string]any) string {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	return Sign(i.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.id}}, claims)
}

// Sign makes a token with any key.
func Sign(t testing.TB, key jose.SigningKey, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
