package certificates

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// LegacyUnknown is the signer that asks no questions, for those who approve by hand.
const LegacyUnknown = "kubernetes.io/legacy-unknown"

// Signers are the names of all signers there are.
func Signers() []string {
	return []string{certificatesv1.KubeletServingSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName,
		certificatesv1.KubeAPIServerClientSignerName, LegacyUnknown}
}

// Authority returns the authority that signs now; it is asked for each certificate, so files may
// be replaced.
type Authority func() (*x509.Certificate, crypto.Signer, error)

// ForAll is one authority for all signers.
func ForAll(a Authority) map[string]Authority {
	all := map[string]Authority{}
	for _, s := range Signers() {
		all[s] = a
	}
	return all
}

// FromFiles reads the authority's certificate and key, in PEM.
func FromFiles(certFile, keyFile string) Authority {
	return func() (*x509.Certificate, crypto.Signer, error) {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, nil, fmt.Errorf("signing authority %s with key %s: %w", certFile, keyFile, err)
		}
		return pair.Leaf, pair.PrivateKey.(crypto.Signer), nil
	}
}

const (
	backdate = 5 * time.Minute  // for clocks that differ a little
	short    = 8 * time.Hour    // a certificate that lives less gets its whole life in spite of backdate
	shortest = 10 * time.Minute // whoever asks for less gets this
)

// NewSigning returns the controller that signs approved requests: by signer's name, the authority
// it signs with; longest bounds what is signed and is the life of what names none. An authority
// that cannot be read now is an error.
func NewSigning(env engine.Env, authorities map[string]Authority, longest time.Duration) (*engine.Controller, error) {
	for signer, authority := range authorities {
		if _, _, err := authority(); err != nil {
			return nil, fmt.Errorf("%s: %w", signer, err)
		}
	}
	requests := env.Informers.Certificates().V1().CertificateSigningRequests()
	return &engine.Controller{
		Name:    "certificatesigningrequest-signing-controller",
		Outputs: []engine.Resource{resource + "/status"},
		Sources: []engine.Source{engine.On(resource, requests.Informer(), onChange)},
		Reconcile: func(ctx context.Context, name string) error {
			r, err := requests.Lister().Get(name)
			if err != nil {
				return engine.IgnoreNotFound(err)
			}
			authority := authorities[r.Spec.SignerName]
			if authority == nil || len(r.Status.Certificate) > 0 || !has(r, certificatesv1.CertificateApproved) ||
				has(r, certificatesv1.CertificateDenied) || isTrue(r, certificatesv1.CertificateFailed) {
				return nil
			}
			q, err := parse(r)
			if err != nil {
				return err
			}
			r = r.DeepCopy()
			if err := accept(r.Spec.SignerName, q, r.Spec.Usages); err != nil {
				r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
					Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure",
					Message: err.Error(), LastUpdateTime: metav1.NewTime(env.Clock.Now())})
			} else if r.Status.Certificate, err = sign(authority, q, r.Spec, longest, env.Clock.Now()); err != nil {
				return fmt.Errorf("sign csr %q: %w", name, err)
			}
			_, err = env.Client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, r, metav1.UpdateOptions{})
			return engine.IgnoreNotFound(err)
		},
	}, nil
}

// sign makes the certificate, in PEM. Of the request it takes the subject, the alternative names
// and the key; extensions are left out, and it is never an authority.
func sign(authority Authority, q *x509.CertificateRequest, spec certificatesv1.CertificateSigningRequestSpec, longest time.Duration,
	now time.Time) ([]byte, error) {
	if err := q.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request's signature: %w", err)
	}
	ca, key, err := authority()
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: q.Subject, DNSNames: q.DNSNames, IPAddresses: q.IPAddresses,
		EmailAddresses: q.EmailAddresses, URIs: q.URIs, BasicConstraintsValid: true, NotBefore: now.Add(-backdate),
	}
	if t.KeyUsage, t.ExtKeyUsage, err = usagesOf(spec.Usages); err != nil {
		return nil, err
	}
	life := longest
	if s := spec.ExpirationSeconds; s != nil {
		life = min(max(time.Duration(*s)*time.Second, shortest), longest)
	}
	if t.NotAfter = now.Add(life); life >= short {
		t.NotAfter = t.NotAfter.Add(-backdate)
	}
	if t.NotAfter.After(ca.NotAfter) {
		t.NotAfter = ca.NotAfter
	}
	if !now.Before(ca.NotAfter) {
		return nil, fmt.Errorf("the signer has expired: NotAfter=%v", ca.NotAfter)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, q.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// usagesOf reads the API's names of what a key may be used for.
func usagesOf(usages []certificatesv1.KeyUsage) (x509.KeyUsage, []x509.ExtKeyUsage, error) {
	plain := map[certificatesv1.KeyUsage]x509.KeyUsage{
		certificatesv1.UsageSigning:           x509.KeyUsageDigitalSignature,
		certificatesv1.UsageDigitalSignature:  x509.KeyUsageDigitalSignature,
		certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment,
		certificatesv1.UsageKeyEncipherment:   x509.KeyUsageKeyEncipherment,
		certificatesv1.UsageKeyAgreement:      x509.KeyUsageKeyAgreement,
		certificatesv1.UsageDataEncipherment:  x509.KeyUsageDataEncipherment,
		certificatesv1.UsageCertSign:          x509.KeyUsageCertSign,
		certificatesv1.UsageCRLSign:           x509.KeyUsageCRLSign,
		certificatesv1.UsageEncipherOnly:      x509.KeyUsageEncipherOnly,
		certificatesv1.UsageDecipherOnly:      x509.KeyUsageDecipherOnly,
	}
	extended := map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
		certificatesv1.UsageAny:             x509.ExtKeyUsageAny,
		certificatesv1.UsageServerAuth:      x509.ExtKeyUsageServerAuth,
		certificatesv1.UsageClientAuth:      x509.ExtKeyUsageClientAuth,
		certificatesv1.UsageCodeSigning:     x509.ExtKeyUsageCodeSigning,
		certificatesv1.UsageEmailProtection: x509.ExtKeyUsageEmailProtection,
		certificatesv1.UsageSMIME:           x509.ExtKeyUsageEmailProtection,
		certificatesv1.UsageIPsecEndSystem:  x509.ExtKeyUsageIPSECEndSystem,
		certificatesv1.UsageIPsecTunnel:     x509.ExtKeyUsageIPSECTunnel,
		certificatesv1.UsageIPsecUser:       x509.ExtKeyUsageIPSECUser,
		certificatesv1.UsageTimestamping:    x509.ExtKeyUsageTimeStamping,
		certificatesv1.UsageOCSPSigning:     x509.ExtKeyUsageOCSPSigning,
		certificatesv1.UsageMicrosoftSGC:    x509.ExtKeyUsageMicrosoftServerGatedCrypto,
		certificatesv1.UsageNetscapeSGC:     x509.ExtKeyUsageNetscapeServerGatedCrypto,
	}
	var bits x509.KeyUsage
	set := map[x509.ExtKeyUsage]bool{}
	for _, u := range usages {
		if bit, ok := plain[u]; ok {
			bits |= bit
		} else if e, ok := extended[u]; ok {
			set[e] = true
		} else {
			return 0, nil, fmt.Errorf("unrecognized usage value: %q", u)
		}
	}
	return bits, slices.Sorted(maps.Keys(set)), nil
}
