package admission

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/auth"
)

// signerAllowed asks for a verb on a signer, by its name or by its domain with
// any path ("example.com/*").
func signerAllowed(ctx context.Context, z auth.Authorizer, u auth.User, verb, signer string) bool {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		if userMay(ctx, z, auth.Attributes{
			User: u, Verb: verb, Name: name, APIGroup: certificatesv1.GroupName, APIVersion: "*", Resource: "signers", ResourceRequest: true,
		}) {
			return true
		}
	}
	return false
}

// certificateApproval lets only those approve who may for the signer.
type certificateApproval struct {
	noAdmit
	authorizer auth.Authorizer
}

func (certificateApproval) Name() string { return "CertificateApproval" }

func (p certificateApproval) Validate(ctx context.Context, r *Request) error {
	if !r.is(certificatesv1.GroupName, "certificatesigningrequests", "approval") || r.Operation() != Update {
		return nil
	}
	// The stored request counts: the new one may name another signer.
	old, ok := r.Old.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return forbidden(r, fmt.Errorf("expected type CertificateSigningRequest, got: %T", r.Old))
	}
	if !signerAllowed(ctx, p.authorizer, r.User, "approve", old.Spec.SignerName) {
		return forbidden(r, fmt.Errorf("user not permitted to approve requests with signerName %q", old.Spec.SignerName))
	}
	return nil
}

// certificateSigning lets only those sign who may for the signer.
type certificateSigning struct {
	noAdmit
	authorizer auth.Authorizer
}

func (certificateSigning) Name() string { return "CertificateSigning" }

func (p certificateSigning) Validate(ctx context.Context, r *Request) error {
	if !r.is(certificatesv1.GroupName, "certificatesigningrequests", "status") || r.Operation() != Update {
		return nil
	}
	old, ok := r.Old.(*certificatesv1.CertificateSigningRequest)
	csr, ok2 := r.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || !ok2 {
		return forbidden(r, fmt.Errorf("expected type CertificateSigningRequest, got: %T", r.Object))
	}
	if bytes.Equal(old.Status.Certificate, csr.Status.Certificate) && equality.Semantic.DeepEqual(old.Status.Conditions, csr.Status.Conditions) {
		return nil
	}
	if !signerAllowed(ctx, p.authorizer, r.User, "sign", old.Spec.SignerName) {
		return forbidden(r, fmt.Errorf("user not permitted to sign requests with signerName %q", old.Spec.SignerName))
	}
	return nil
}

// podCertificateSigning lets only those decide on a PodCertificateRequest who may sign for its
// signer. Upstream does this in the storage of the requests, so it cannot be turned off.
type podCertificateSigning struct {
	noAdmit
	authorizer auth.Authorizer
}

func (podCertificateSigning) Name() string { return "PodCertificateSigning" }

func (p podCertificateSigning) Validate(ctx context.Context, r *Request) error {
	if !r.is(certificatesv1.GroupName, "podcertificaterequests", "status") || r.Operation() != Update {
		return nil
	}
	old, ok := r.Old.(*certificatesv1.PodCertificateRequest)
	req, ok2 := r.Object.(*certificatesv1.PodCertificateRequest)
	if !ok || !ok2 {
		return forbidden(r, fmt.Errorf("expected type PodCertificateRequest, got: %T", r.Object))
	}
	if equality.Semantic.DeepEqual(old.Status, req.Status) || signerAllowed(ctx, p.authorizer, r.User, "sign", old.Spec.SignerName) {
		return nil
	}
	return apierrors.NewInvalid(certificatesv1.SchemeGroupVersion.WithKind("PodCertificateRequest").GroupKind(), old.Name, field.ErrorList{
		field.Forbidden(field.NewPath("spec", "signerName"), fmt.Sprintf("User %q is not permitted to \"sign\" for signer %q", r.User.Name, old.Spec.SignerName))})
}

// clusterTrustBundleAttest lets only those publish a signer's trust anchors who may for the signer.
type clusterTrustBundleAttest struct {
	noAdmit
	authorizer auth.Authorizer
}

func (clusterTrustBundleAttest) Name() string { return "ClusterTrustBundleAttest" }

func (p clusterTrustBundleAttest) Validate(ctx context.Context, r *Request) error {
	if r.APIGroup != certificatesv1.GroupName || r.Resource != "clustertrustbundles" || r.Operation() != Create && r.Operation() != Update {
		return nil
	}
	bundle, ok := r.Object.(*certificatesv1.ClusterTrustBundle)
	if !ok {
		return forbidden(r, fmt.Errorf("expected type ClusterTrustBundle, got: %T", r.Object))
	}
	// The new object may name the signer: validation lets no update change it.
	signer := bundle.Spec.SignerName
	if signer == "" || onlyCollectorFields(bundle, r.Old) || signerAllowed(ctx, p.authorizer, r.User, "attest", signer) {
		return nil
	}
	return forbidden(r, fmt.Errorf("user not permitted to attest for signerName %q", signer))
}

// onlyCollectorFields reports whether an update changes nothing but what the garbage collector may:
// owners and finalizers. A write that changes nothing (a storage migration's) is one too.
func onlyCollectorFields(obj, old api.Object) bool {
	if old == nil {
		return false
	}
	same := obj.DeepCopyObject().(api.Object)
	same.SetOwnerReferences(old.GetOwnerReferences())
	same.SetFinalizers(old.GetFinalizers())
	same.SetManagedFields(old.GetManagedFields())
	return equality.Semantic.DeepEqual(same, old)
}

// certificateSubjectRestriction: no certificate makes a cluster administrator.
type certificateSubjectRestriction struct{ noAdmit }

func (certificateSubjectRestriction) Name() string { return "CertificateSubjectRestriction" }

func (certificateSubjectRestriction) Validate(_ context.Context, r *Request) error {
	csr, ok := r.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || r.Subresource != "" || r.Operation() != Create || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	parsed, err := parseCSR(csr.Spec.Request)
	if err != nil {
		return forbidden(r, fmt.Errorf("failed to parse CSR: %w", err))
	}
	if slices.Contains(parsed.Subject.Organization, auth.GroupMasters) {
		return forbidden(r, fmt.Errorf("use of %s signer with system:masters group is not allowed", certificatesv1.KubeAPIServerClientSignerName))
	}
	return nil
}

func parseCSR(data []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}
