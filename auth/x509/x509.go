// Package x509 authenticates client certificates: the common name is the user,
// the organizations are the groups.
package x509

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/http"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
)

// Pool returns the certificate authorities to verify against now; nil means
// that no certificate is accepted. It is a function so that CAs can rotate: it
// then returns another pool, and never changes one it has returned.
type Pool func() *x509.CertPool

// Static is a Pool that never changes.
func Static(p *x509.CertPool) Pool { return func() *x509.CertPool { return p } }

// Authenticator implements auth.Authenticator for the TLS connection's client
// certificate. The TLS server need only request certificates; they are
// verified here.
//
// Verifying costs far more than the rest of authentication, and clients send
// many requests with one certificate, so good ones are remembered by their
// fingerprint.
type Authenticator struct {
	pool  Pool
	clock clock.PassiveClock

	mu   sync.Mutex
	seen map[[sha256.Size]byte]verified
}

// New returns an authenticator for certificates issued by one of pool's CAs.
// A nil clock is the real one.
func New(pool Pool, c clock.PassiveClock) *Authenticator {
	if c == nil {
		c = clock.RealClock{}
	}
	return &Authenticator{pool: pool, clock: c, seen: map[[sha256.Size]byte]verified{}}
}

// Authenticate implements auth.Authenticator.
func (z *Authenticator) Authenticate(req *http.Request) (auth.Identity, bool, error) {
	if req.TLS == nil || len(req.TLS.PeerCertificates) == 0 {
		return auth.Identity{}, false, nil
	}
	pool, now := z.pool(), z.clock.Now()
	if id, ok := z.remembered(req.TLS.PeerCertificates[0], pool, now); ok {
		return id, true, nil
	}
	leaf, err := VerifyClient(req, Static(pool), now)
	if err != nil {
		return auth.Identity{}, false, fmt.Errorf("verifying certificate %s failed: %w", identify(req.TLS.PeerCertificates[0]), err)
	}
	if leaf == nil {
		return auth.Identity{}, false, nil
	}
	user, err := User(leaf)
	if err != nil || user.Name == "" {
		return auth.Identity{}, false, err
	}
	id := auth.Identity{User: user}
	// With intermediates the chain matters too: those are verified every time.
	if len(req.TLS.PeerCertificates) == 1 {
		z.remember(leaf, pool, id)
	}
	return id, true, nil
}

func (z *Authenticator) remembered(leaf *x509.Certificate, pool *x509.CertPool, now time.Time) (auth.Identity, bool) {
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return auth.Identity{}, false
	}
	fingerprint := sha256.Sum256(leaf.Raw)
	z.mu.Lock()
	defer z.mu.Unlock()
	v, ok := z.seen[fingerprint]
	return v.id, ok && v.pool == pool
}

func (z *Authenticator) remember(leaf *x509.Certificate, pool *x509.CertPool, id auth.Identity) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.seen) >= maxVerified {
		clear(z.seen)
	}
	z.seen[sha256.Sum256(leaf.Raw)] = verified{pool: pool, id: id}
}

// VerifyClient returns the request's client certificate once it chains to pool
// for client authentication at time now; nil without an error when there is no
// certificate or no pool.
func VerifyClient(req *http.Request, pool Pool, now time.Time) (*x509.Certificate, error) {
	if req.TLS == nil || len(req.TLS.PeerCertificates) == 0 {
		return nil, nil
	}
	roots := pool()
	if roots == nil {
		return nil, nil
	}
	opts := x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if len(req.TLS.PeerCertificates) > 1 {
		opts.Intermediates = x509.NewCertPool()
		for _, c := range req.TLS.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
	}
	leaf := req.TLS.PeerCertificates[0]
	if _, err := leaf.Verify(opts); err != nil {
		return nil, err
	}
	return leaf, nil
}

// The subject attribute that carries a user's UID (upstream's own OID arc).
func uidOID() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2} }

// maxVerified bounds the certificates remembered as verified.
const maxVerified = 1024

// verified is a certificate that was found good, and for which pool.
type verified struct {
	pool *x509.CertPool
	id   auth.Identity
}

// User is the identity a verified certificate stands for; its name is empty
// when the certificate names nobody.
func User(cert *x509.Certificate) (auth.User, error) {
	fingerprint := sha256.Sum256(cert.Raw)
	u := auth.User{
		Name:   cert.Subject.CommonName,
		Groups: cert.Subject.Organization,
		Extra:  map[string][]string{auth.CredentialIDKey: {"X509SHA256=" + hex.EncodeToString(fingerprint[:])}},
	}
	for _, attr := range cert.Subject.Names {
		if !attr.Type.Equal(uidOID()) {
			continue
		}
		uid, ok := attr.Value.(string)
		switch {
		case !ok:
			return auth.User{}, fmt.Errorf("unable to parse UID into a string")
		case uid == "":
			return auth.User{}, fmt.Errorf("UID cannot be an empty string")
		case u.UID != "":
			return auth.User{}, fmt.Errorf("expected 1 UID, but found multiple: %v", []string{u.UID, uid})
		}
		u.UID = uid
	}
	return u, nil
}

func identify(c *x509.Certificate) string {
	return fmt.Sprintf("SN=%d, SKID=%s, AKID=%s", c.SerialNumber, colons(c.SubjectKeyId), colons(c.AuthorityKeyId))
}

func colons(b []byte) string {
	out := make([]byte, 0, 3*len(b))
	for i, x := range b {
		if i > 0 {
			out = append(out, ':')
		}
		out = fmt.Appendf(out, "%02X", x)
	}
	return string(out)
}
