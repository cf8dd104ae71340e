// Package serviceaccount issues and validates service account tokens: signed
// JWTs bound to a pod, a node or a Secret, and the older Secret-based ones. It
// also makes the OIDC discovery documents that let others check them.
package serviceaccount

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"
	"sync"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
)

// DefaultIssuer is the issuer of a cluster with domain cluster.local.
const DefaultIssuer = "https://kubernetes.default.svc.cluster.local"

// The extra keys of a service account's user.
const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
	extraNodeUID = "authentication.kubernetes.io/node-uid"
)

// NodeNameKey is the extra key with the name of the node that the token is for, or its pod is on.
const NodeNameKey = "authentication.kubernetes.io/node-name"

// Getter reads the objects tokens are bound to. It must be fresh enough to see
// a deletion soon. It answers an API NotFound error for what is missing.
type Getter interface {
	ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	Node(ctx context.Context, name string) (*corev1.Node, error)
}

// Config of the tokens of one cluster.
type Config struct {
	Issuer    string   // default DefaultIssuer
	Audiences []string // the API server's own; default the issuer
	// SigningKey signs new tokens: RSA (RS256) or ECDSA P-256, P-384, P-521.
	// Its public half verifies too.
	SigningKey crypto.Signer
	// VerifyKeys are further public keys whose tokens are still good.
	VerifyKeys []crypto.PublicKey
	Getter     Getter
	// MaxExpirationSeconds shortens longer requests; default 0, no limit.
	MaxExpirationSeconds int64
	// NoExtension gives pods the hour their tokens are asked for with. Else such a token is good for a year, as upstream's,
	// for programs that read theirs once; it says when it should have been read again, and uses after that are audited.
	NoExtension bool
	// JWKSURI is where others find the keys; default below the server's address.
	JWKSURI string
	Clock   clock.PassiveClock // default the real one
}

// Tokens issues and validates tokens. It implements auth.TokenAuthenticator.
type Tokens struct {
	cfg        Config
	signer     jose.Signer
	keys       []publicKey
	algorithms []jose.SignatureAlgorithm
	noteUse    func(ctx context.Context, secret *corev1.Secret, label, day string)

	mu   sync.Mutex
	seen map[[sha256.Size]byte]*claims // tokens with a good signature
}

var _ auth.TokenAuthenticator = (*Tokens)(nil)

type publicKey struct {
	id  string
	alg jose.SignatureAlgorithm
	key crypto.PublicKey
}

// maxSeen bounds the signatures remembered as good.
const maxSeen = 4096

// New returns the tokens of a cluster.
func New(cfg Config) (*Tokens, error) {
	if cfg.Getter == nil || cfg.SigningKey == nil {
		return nil, fmt.Errorf("service account tokens need a signing key and a getter")
	}
	if cfg.Issuer == "" {
		cfg.Issuer = DefaultIssuer
	}
	if len(cfg.Audiences) == 0 {
		cfg.Audiences = []string{cfg.Issuer}
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	t := &Tokens{cfg: cfg, seen: map[[sha256.Size]byte]*claims{}}
	for _, k := range append([]crypto.PublicKey{cfg.SigningKey.Public()}, cfg.VerifyKeys...) {
		pk, err := newPublicKey(k)
		if err != nil {
			return nil, fmt.Errorf("service account key: %w", err)
		}
		if !slices.ContainsFunc(t.keys, func(have publicKey) bool { return have.id == pk.id }) {
			t.keys = append(t.keys, pk)
		}
		if !slices.Contains(t.algorithms, pk.alg) {
			t.algorithms = append(t.algorithms, pk.alg)
		}
	}
	var err error
	t.signer, err = jose.NewSigner(jose.SigningKey{
		Algorithm: t.keys[0].alg,
		Key:       jose.JSONWebKey{Algorithm: string(t.keys[0].alg), Key: cfg.SigningKey, KeyID: t.keys[0].id, Use: "sig"},
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("service account key: %w", err)
	}
	return t, nil
}

// Issuer is who signs the tokens.
func (t *Tokens) Issuer() string { return t.cfg.Issuer }

// Audiences are the API server's own.
func (t *Tokens) Audiences() []string { return t.cfg.Audiences }

// newPublicKey gives a key upstream's key id, the hash of its DER form.
func newPublicKey(key crypto.PublicKey) (publicKey, error) {
	pk := publicKey{key: key}
	switch k := key.(type) {
	case *rsa.PublicKey:
		pk.alg = jose.RS256
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			pk.alg = jose.ES256
		case elliptic.P384():
			pk.alg = jose.ES384
		case elliptic.P521():
			pk.alg = jose.ES512
		default:
			return pk, fmt.Errorf("unknown private key curve, must be 256, 384, or 521")
		}
	default:
		return pk, fmt.Errorf("unknown public key type %T, must be *rsa.PublicKey or *ecdsa.PublicKey", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return pk, err
	}
	sum := sha256.Sum256(der)
	pk.id = base64.RawURLEncoding.EncodeToString(sum[:])
	return pk, nil
}

// claims is everything a token says, bound and legacy together.
type claims struct {
	jwt.Claims
	Audience   audience `json:"aud,omitempty"` // in place of jwt.Claims'
	Kubernetes *bound   `json:"kubernetes.io,omitempty"`

	LegacyName      string `json:"kubernetes.io/serviceaccount/service-account.name,omitempty"`
	LegacyUID       string `json:"kubernetes.io/serviceaccount/service-account.uid,omitempty"`
	LegacySecret    string `json:"kubernetes.io/serviceaccount/secret.name,omitempty"`
	LegacyNamespace string `json:"kubernetes.io/serviceaccount/namespace,omitempty"`
}

// audience is written as a list even when it has one member, as upstream does,
// and read either way.
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error { return (*jwt.Audience)(a).UnmarshalJSON(b) }

// bound is the kubernetes.io claim.
type bound struct {
	Namespace      string           `json:"namespace,omitempty"`
	Node           *ref             `json:"node,omitempty"`
	Pod            *ref             `json:"pod,omitempty"`
	Secret         *ref             `json:"secret,omitempty"`
	ServiceAccount ref              `json:"serviceaccount"`
	WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
}

type ref struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// user is the identity of a service account.
func user(namespace, name, uid string) auth.User {
	return auth.User{
		Name:   auth.ServiceAccountUser(namespace, name),
		UID:    uid,
		Groups: []string{auth.GroupServiceAccounts, auth.GroupServiceAccounts + ":" + namespace},
	}
}
