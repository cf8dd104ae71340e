package certificates

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/mail"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func podCertificateRequestResource() *api.Resource {
	doc := certificatesv1.PodCertificateRequestSpec{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "podcertificaterequests", Singular: "podcertificaterequest", Kind: "PodCertificateRequest",
		Namespaced: true,
		Versions: []api.Version{api.Versioned[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList]("v1", func(r *certificatesv1.PodCertificateRequest) {
			if r.Spec.MaxExpirationSeconds == nil {
				day := int32(86400)
				r.Spec.MaxExpirationSeconds = &day
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(r *certificatesv1.PodCertificateRequest) { r.Status = certificatesv1.PodCertificateRequestStatus{} }),
			PrepareForUpdate: api.OnUpdate(func(r, old *certificatesv1.PodCertificateRequest) { r.Status = old.Status }),
			Validate:         api.Check(validatePodRequest),
			ValidateUpdate: api.CheckUpdate(func(r, old *certificatesv1.PodCertificateRequest) field.ErrorList {
				l := &check.List{}
				l.Immutable(specPath, r.Spec, old.Spec)
				return l.Errors
			}),
			Selectable: api.Select(func(r *certificatesv1.PodCertificateRequest) fields.Set {
				return fields.Set{"spec.signerName": r.Spec.SignerName, "spec.podName": r.Spec.PodName, "spec.nodeName": string(r.Spec.NodeName)}
			}),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusOnly(func(r, old *certificatesv1.PodCertificateRequest) { r.Spec = old.Spec }, validatePodRequestStatus)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("PodName", "string", doc["podName"]),
			api.Column("ServiceAccountName", "string", doc["serviceAccountName"]),
			api.Column("NodeName", "string", doc["nodeName"]),
			api.Column("SignerName", "string", doc["signerName"]),
			api.Column("State", "string", "Is the request Pending, Issued, Denied, or Failed?"),
			api.Column("UnverifiedUserAnnotations", "string", doc["unverifiedUserAnnotations"]),
		},
		Cells: api.Row(func(r *certificatesv1.PodCertificateRequest, _ metav1.Time) []any {
			state := "Pending"
			for _, c := range r.Status.Conditions {
				switch c.Type {
				case certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed:
					state = c.Type
				}
			}
			s := &r.Spec
			return []any{r.Name, s.PodName, s.ServiceAccountName, string(s.NodeName), s.SignerName, state, labels.FormatLabels(s.UnverifiedUserAnnotations)}
		}),
	}
}

func validatePodRequest(r *certificatesv1.PodCertificateRequest) field.ErrorList {
	l, s := &check.List{}, &r.Spec
	podspec.CheckSignerName(l, specPath.Child("signerName"), s.SignerName)
	annotations := specPath.Child("unverifiedUserAnnotations")
	for k := range check.Sorted(s.UnverifiedUserAnnotations) {
		l.Add(validation.IsDomainPrefixedKey(annotations, strings.ToLower(k)))
	}
	if apivalidation.ValidateAnnotationsSize(s.UnverifiedUserAnnotations) != nil {
		l.TooLong(annotations, apivalidation.TotalAnnotationSizeLimitB)
	}
	identity := func(name, value, uidName string, uid types.UID) {
		l.Messages(specPath.Child(name), value, apivalidation.NameIsDNSSubdomain(value, false))
		if uid == "" {
			l.Invalid(specPath.Child(uidName), uid, "must not be empty")
		}
		if len(uid) > 128 {
			l.TooLong(specPath.Child(uidName), 128)
		}
	}
	identity("podName", s.PodName, "podUID", s.PodUID)
	identity("serviceAccountName", s.ServiceAccountName, "serviceAccountUID", s.ServiceAccountUID)
	identity("nodeName", string(s.NodeName), "nodeUID", s.NodeUID)
	at := specPath.Child("maxExpirationSeconds")
	if s.MaxExpirationSeconds == nil {
		l.Required(at, "must be set")
		return l.Errors
	}
	low, high := int32(3600), int32(7862400)
	if host, _, _ := strings.Cut(s.SignerName, "/"); host == "kubernetes.io" || strings.HasSuffix(host, ".kubernetes.io") {
		high = 86400
	}
	if n := *s.MaxExpirationSeconds; n < low || n > high {
		l.Invalid(at, s.MaxExpirationSeconds, fmt.Sprintf("must be in the range [%d, %d]", low, high))
	}
	if len(s.StubPKCS10Request) == 0 {
		l.Invalid(specPath, field.OmitValueType{}, "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set")
	} else {
		checkStub(l, specPath.Child("stubPKCS10Request"), s.StubPKCS10Request)
	}
	return l.Errors
}

const (
	maxStubSize  = 10 << 10
	maxChainSize = 100 << 10
)

// checkStub checks the request whose signature proves that the kubelet has the private key. What
// the request asks for is the signer's business.
func checkStub(l *check.List, p *field.Path, der []byte) {
	if len(der) > maxStubSize {
		l.TooLong(p, maxStubSize)
		return
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		l.Invalid(p, field.OmitValueType{}, "must be a valid PKCS#10 CSR")
		return
	}
	switch key := req.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() && key.Curve != elliptic.P521() {
			l.Invalid(p, "curve "+key.Curve.Params().Name, "elliptic public keys must use curve P256, P384, or P521")
			return
		}
	case *rsa.PublicKey:
		if n := key.Size() * 8; n != 3072 && n != 4096 {
			l.Invalid(p, fmt.Sprintf("%d-bit modulus", n), "RSA keys must have modulus size 3072 or 4096")
			return
		}
	default:
		l.Invalid(p, field.OmitValueType{}, "unknown public key type; supported types are Ed25519, ECDSA, and RSA")
		return
	}
	if req.CheckSignature() != nil {
		l.Invalid(p, field.OmitValueType{}, "invalid signature")
	}
}

// verdict is the known condition a request has come to, "" while it is pending.
func verdict(r *certificatesv1.PodCertificateRequest) string {
	for _, c := range r.Status.Conditions {
		switch c.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed:
			if c.Status == metav1.ConditionTrue {
				return c.Type
			}
		}
	}
	return ""
}

// validatePodRequestStatus lets a status change once, from pending to one verdict.
func validatePodRequestStatus(r, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	l, p := &check.List{}, field.NewPath("status")
	known := 0
	for i, c := range r.Status.Conditions {
		at := p.Child("conditions", fmt.Sprintf("[%d]", i))
		if !check.OneOf(l, at.Child("type"), c.Type, certificatesv1.PodCertificateRequestConditionTypeIssued,
			certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed) {
			continue
		}
		if known++; known > 1 {
			l.Invalid(at.Child("type"), c.Type, `There may be at most one condition with type "Issued", "Denied", or "Failed"`)
		}
		check.OneOf(l, at.Child("status"), c.Status, metav1.ConditionTrue)
	}
	l.Add(metavalidation.ValidateConditions(r.Status.Conditions, p.Child("conditions")))
	if len(l.Errors) > 0 {
		return l.Errors
	}
	same := func(want certificatesv1.PodCertificateRequestStatus, detail string) {
		if api.Changed(r.Status, want) {
			l.Invalid(p, field.OmitValueType{}, detail)
		}
	}
	switch now := verdict(r); {
	case verdict(old) != "":
		same(old.Status, "immutable after PodCertificateRequest is issued, denied, or failed")
	case now == certificatesv1.PodCertificateRequestConditionTypeIssued:
		if cert := checkChain(l, p.Child("certificateChain"), r, old); cert != nil {
			checkTimes(l, p, r, cert, time.Now())
		}
	case now != "":
		same(certificatesv1.PodCertificateRequestStatus{Conditions: r.Status.Conditions},
			"non-condition status fields must be empty when denying or failing the PodCertificateRequest")
	default:
		same(old.Status, `status is immutable unless transitioning to "Issued", "Denied", or "Failed"`)
	}
	return l.Errors
}

// checkChain checks what was issued and returns the leaf, or nil when something is wrong with the
// chain. It cannot be verified whole: its root is not known here.
func checkChain(l *check.List, p *field.Path, r, old *certificatesv1.PodCertificateRequest) *x509.Certificate {
	chain, before := r.Status.CertificateChain, len(l.Errors)
	if len(chain) > maxChainSize {
		l.TooLong(p, maxChainSize)
		return nil
	}
	block, rest := pem.Decode([]byte(chain))
	if block == nil {
		l.Invalid(p, chain, "issued certificate chain must contain at least one certificate")
		return nil
	}
	if block.Type != "CERTIFICATE" {
		l.Invalid(p, chain, "issued certificate chain must consist entirely of CERTIFICATE PEM blocks")
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		l.Invalid(p, chain, "leaf certificate does not parse as valid X.509")
		return nil
	}
	for _, name := range leaf.DNSNames {
		if name == "" {
			l.Invalid(p, name, "leaf certificate should not contain empty DNSName")
		}
		if strings.Contains(name, "..") {
			l.Invalid(p, name, "leaf certificate's DNSName should not contain '..'")
		}
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".") {
			l.Invalid(p, name, "leaf certificate's DNSName should not start or end with '.'")
		}
	}
	for _, a := range leaf.EmailAddresses {
		if _, err := mail.ParseAddress(a); err != nil {
			l.Invalid(p, a, "leaf certificate should not contain invalid EmailAddress")
		}
	}
	asked, err := x509.ParseCertificateRequest(old.Spec.StubPKCS10Request)
	if err != nil {
		l.Invalid(specPath.Child("stubPKCS10Request"), field.OmitValueType{}, "must be a valid PKCS#10 CSR")
		return nil
	}
	if key, ok := asked.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && !key.Equal(leaf.PublicKey) {
		l.Invalid(p, chain, "leaf certificate was not issued to the requested public key")
		return nil
	}
	for block, rest = pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			l.Invalid(p, chain, "issued certificate chain must consist entirely of CERTFICATE PEM blocks")
			return nil
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			l.Invalid(p, chain, "intermediate certificate does not parse as valid X.509")
			return nil
		}
	}
	if len(l.Errors) > before {
		return nil
	}
	return leaf
}

// checkTimes compares the times in a status to those of the certificate, and these to what was asked.
func checkTimes(l *check.List, p *field.Path, r *certificatesv1.PodCertificateRequest, leaf *x509.Certificate, now time.Time) {
	const leeway, margin = 5 * time.Minute, 10 * time.Minute
	s, begin := &r.Status, p.Child("beginRefreshAt")
	for _, f := range []struct {
		name string
		set  *metav1.Time
		must string
	}{
		{"notBefore", s.NotBefore, "consistent with the issued certificate"},
		{"notAfter", s.NotAfter, "consistent with the issued certificate"},
		{"beginRefreshAt", s.BeginRefreshAt, "in the range [notbefore+10min, notafter-10min]"},
	} {
		if f.set == nil {
			l.Required(p.Child(f.name), "must be present and "+f.must)
		}
	}
	if s.NotBefore == nil || s.NotAfter == nil || s.BeginRefreshAt == nil {
		return
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	switch off := s.NotBefore.Sub(now).Abs(); {
	case !s.NotBefore.Time.Equal(leaf.NotBefore):
		l.Invalid(p.Child("notBefore"), s.NotBefore.Time, "must be set to the NotBefore time encoded in the leaf certificate")
	case off >= leeway:
		l.Invalid(p.Child("notBefore"), s.NotBefore.Time, "must be set to within 5 minutes of kube-apiserver's current time")
	case !s.NotAfter.Time.Equal(leaf.NotAfter):
		l.Invalid(p.Child("notAfter"), s.NotAfter.Time, "must be set to the NotAfter time encoded in the leaf certificate")
	case life < time.Hour:
		l.Invalid(p.Child("certificateChain"), life, "leaf certificate lifetime must be >= 1 hour")
	case life > time.Duration(*r.Spec.MaxExpirationSeconds)*time.Second:
		l.Invalid(p.Child("certificateChain"), life, fmt.Sprintf("leaf certificate lifetime must be <= spec.maxExpirationSeconds (%v)", *r.Spec.MaxExpirationSeconds))
	case s.BeginRefreshAt.Time.Before(s.NotBefore.Add(margin)):
		l.Invalid(begin, s.BeginRefreshAt.Time, "must be at least 10 minutes after status.notBefore")
	case s.BeginRefreshAt.After(s.NotAfter.Add(-margin)):
		l.Invalid(begin, s.BeginRefreshAt.Time, "must be at least 10 minutes before status.notAfter")
	}
}
