// Package certificates does the cluster's part for CertificateSigningRequests: it signs what was
// approved for the signers of kubernetes.io, approves what kubelets may ask for themselves, and
// removes requests nobody waits for any more.
package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

const resource = "certificatesigningrequests.certificates.k8s.io"

// parse reads the PEM of spec.request.
func parse(r *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(r.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("unable to parse csr %q: PEM block type must be CERTIFICATE REQUEST", r.Name)
	}
	out, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("unable to parse csr %q: %w", r.Name, err)
	}
	return out, nil
}

func condition(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	i := slices.IndexFunc(r.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &r.Status.Conditions[i]
}

func has(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	return condition(r, t) != nil
}

func isTrue(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	c := condition(r, t)
	return c != nil && (c.Status == corev1.ConditionTrue || c.Status == "")
}

// accept says why the signer of that name does not sign what is asked for, nil if it does. The
// texts are upstream's: they end in the request's status.
func accept(signer string, q *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	switch signer {
	case certificatesv1.KubeAPIServerClientSignerName:
		for _, u := range usages {
			if u != certificatesv1.UsageClientAuth && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
				return fmt.Errorf("invalid usage for client certificate: %s", u)
			}
		}
		if !slices.Contains(usages, certificatesv1.UsageClientAuth) {
			return fmt.Errorf("missing required usage for client certificate: %s", certificatesv1.UsageClientAuth)
		}
		return nil
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		return acceptKubelet(q, usages, false)
	case certificatesv1.KubeletServingSignerName:
		return acceptKubelet(q, usages, true)
	}
	return nil
}

func acceptKubelet(q *x509.CertificateRequest, usages []certificatesv1.KeyUsage, serving bool) error {
	if !slices.Equal(q.Subject.Organization, []string{"system:nodes"}) {
		return errors.New("subject organization is not system:nodes")
	}
	auth := certificatesv1.UsageClientAuth
	if serving {
		auth = certificatesv1.UsageServerAuth
	}
	switch {
	case serving && len(q.DNSNames)+len(q.IPAddresses) == 0:
		return errors.New("DNS or IP subjectAltName is required")
	case !serving && len(q.DNSNames) > 0:
		return errors.New("DNS subjectAltNames are not allowed")
	case len(q.EmailAddresses) > 0:
		return errors.New("Email subjectAltNames are not allowed")
	case !serving && len(q.IPAddresses) > 0:
		return errors.New("IP subjectAltNames are not allowed")
	case len(q.URIs) > 0:
		return errors.New("URI subjectAltNames are not allowed")
	}
	named := strings.HasPrefix(q.Subject.CommonName, "system:node:")
	if !serving && !named {
		return errors.New("subject common name does not begin with system:node:")
	}
	required := []certificatesv1.KeyUsage{auth, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment}
	slices.Sort(required)
	got := slices.Compact(slices.Sorted(slices.Values(usages)))
	withoutRSA := slices.DeleteFunc(slices.Clone(required), func(u certificatesv1.KeyUsage) bool { return u == certificatesv1.UsageKeyEncipherment })
	if !slices.Equal(got, required) && !slices.Equal(got, withoutRSA) {
		return fmt.Errorf("usages did not match %v", required)
	}
	if !named {
		return errors.New("subject common name does not begin with system:node:")
	}
	return nil
}

// onChange looks at each request that was made or changed.
func onChange(q engine.Queue, _, new *certificatesv1.CertificateSigningRequest) {
	if new != nil {
		q.Add(new.Name)
	}
}
