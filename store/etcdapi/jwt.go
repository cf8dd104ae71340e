package etcdapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// JWT makes and checks tokens that no server needs to remember.
type JWT struct {
	alg    jose.SignatureAlgorithm
	signer jose.Signer // nil: tokens are made elsewhere
	verify any
	ttl    time.Duration
}

type claims struct {
	Username string  `json:"username"`
	Revision *uint64 `json:"revision"`
	Expires  int64   `json:"exp"`
}

// NewJWT reads the options of --auth-token after "jwt,": sign-method, pub-key
// and priv-key (files), ttl.
func NewJWT(options string) (*JWT, error) {
	opt := map[string]string{}
	for o := range strings.SplitSeq(options, ",") {
		key, value, ok := strings.Cut(o, "=")
		if !ok || value == "" {
			return nil, fmt.Errorf("option %q of JWT tokens is not name=value", o)
		}
		opt[key] = value
	}
	j := &JWT{alg: jose.SignatureAlgorithm(opt["sign-method"]), ttl: defaultTokenTTL}
	if ttl := opt["ttl"]; ttl != "" {
		var err error
		if j.ttl, err = time.ParseDuration(ttl); err != nil {
			return nil, fmt.Errorf("ttl of JWT tokens: %w", err)
		}
	}
	private, public, err := j.keys(opt["priv-key"], opt["pub-key"])
	if err != nil {
		return nil, err
	}
	if j.verify = public; private == nil {
		return j, nil
	}
	j.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: j.alg, Key: private}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("sign-method %q of JWT tokens: %w", j.alg, err)
	}
	return j, nil
}

// keys reads the key files and proves that they fit the method and each other.
func (j *JWT) keys(privateFile, publicFile string) (private, public any, err error) {
	switch j.alg {
	case jose.HS256, jose.HS384, jose.HS512:
		if privateFile == "" {
			return nil, nil, errors.New("JWT tokens with an HMAC need priv-key")
		}
		secret, err := os.ReadFile(privateFile)
		return secret, secret, err
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA:
	default:
		return nil, nil, fmt.Errorf("sign-method %q of JWT tokens is unknown", j.alg)
	}
	if publicFile != "" {
		if public, err = readKey(publicFile); err != nil {
			return nil, nil, err
		}
	}
	if privateFile == "" {
		if public == nil {
			return nil, nil, errors.New("JWT tokens need pub-key, priv-key or both")
		}
		return nil, public, j.fits(public)
	}
	if private, err = readKey(privateFile); err != nil {
		return nil, nil, err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("%s holds no private key", privateFile)
	}
	if own, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); public != nil && (!ok || !own.Equal(public)) {
		return nil, nil, errors.New("pub-key and priv-key of JWT tokens don't match")
	}
	return private, signer.Public(), j.fits(signer.Public())
}

// fits checks that a public key is of the method's kind.
func (j *JWT) fits(key any) error {
	var ok bool
	switch j.alg[:1] {
	case "R", "P":
		_, ok = key.(*rsa.PublicKey)
	case "E":
		if _, ok = key.(*ecdsa.PublicKey); j.alg == jose.EdDSA {
			_, ok = key.(ed25519.PublicKey)
		}
	}
	if !ok {
		return fmt.Errorf("key of JWT tokens does not fit sign-method %s: it is a %T", j.alg, key)
	}
	return nil
}

func readKey(file string) (any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", file)
	}
	for _, parse := range []func([]byte) (any, error){
		x509.ParsePKIXPublicKey, x509.ParsePKCS8PrivateKey,
		func(b []byte) (any, error) { return x509.ParsePKCS1PrivateKey(b) },
		func(b []byte) (any, error) { return x509.ParseECPrivateKey(b) },
		func(b []byte) (any, error) { return x509.ParsePKCS1PublicKey(b) },
		func(b []byte) (any, error) {
			cert, err := x509.ParseCertificate(b)
			if err != nil {
				return nil, err
			}
			return cert.PublicKey, nil
		},
	} {
		if key, err := parse(block.Bytes); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s holds no key", file)
}

var errVerifyOnly = errors.New("auth: token signing attempted with verify-only key")

// issue makes a token for a user as of a revision of the users.
func (j *JWT) issue(user string, rev uint64, now time.Time) (string, error) {
	if j.signer == nil {
		return "", errVerifyOnly
	}
	body, err := json.Marshal(claims{Username: user, Revision: &rev, Expires: now.Add(j.ttl).Unix()})
	if err != nil {
		return "", err
	}
	signed, err := j.signer.Sign(body)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// read checks a token.
func (j *JWT) read(token string, now time.Time) (user string, rev uint64, ok bool) {
	signed, err := jose.ParseSigned(token, []jose.SignatureAlgorithm{j.alg})
	if err != nil {
		return "", 0, false
	}
	body, err := signed.Verify(j.verify)
	var c claims
	if err != nil || json.Unmarshal(body, &c) != nil || c.Revision == nil || c.Username == "" || c.Expires != 0 && now.Unix() >= c.Expires {
		return "", 0, false
	}
	return c.Username, *c.Revision, true
}
