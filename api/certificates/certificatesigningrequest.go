package certificates

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

var (
	specPath   = field.NewPath("spec")
	conditions = field.NewPath("status", "conditions")
)

func certificateSigningRequestResource() *api.Resource {
	doc := certificatesv1beta1.CertificateSigningRequestSpec{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "certificatesigningrequests", Singular: "certificatesigningrequest", Kind: "CertificateSigningRequest",
		ShortNames: []string{"csr"},
		Versions:   []api.Version{api.Versioned[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList]("v1", nil)},
		Strategy: api.Strategy{
			PrepareForCreate: prepareCSR,
			PrepareForUpdate: api.OnUpdate(func(c, old *certificatesv1.CertificateSigningRequest) { c.Spec, c.Status = old.Spec, old.Status }),
			Validate:         api.Check(validateCSR),
			ValidateUpdate: api.CheckUpdate(func(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
				return validateCSRUpdate(c, old, false, false)
			}),
			NameValid: check.PathSegment,
			Reset:     []string{"spec"},
			Selectable: api.Select(func(c *certificatesv1.CertificateSigningRequest) fields.Set {
				return fields.Set{"spec.signerName": c.Spec.SignerName}
			}),
		},
		Subresources: []api.Subresource{
			csrPart("approval", keepForApproval, true, "spec", "status.certificate"),
			csrPart("status", keepForStatus, false, "status.conditions"),
		},
		Columns: []metav1.TableColumnDefinition{
			api.AgeColumn(),
			api.Column("SignerName", "string", doc["signerName"]),
			api.Column("Requestor", "string", doc["request"]),
			api.Column("RequestedDuration", "string", doc["expirationSeconds"]),
			api.Column("Condition", "string", certificatesv1beta1.CertificateSigningRequestStatus{}.SwaggerDoc()["conditions"]),
		},
		Cells: api.Row(csrCells),
	}
}

func csrPart(name string, keep func(c, old *certificatesv1.CertificateSigningRequest), approval bool, reset ...string) api.Subresource {
	v := api.NewView(keep, func(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
		return validateCSRUpdate(c, old, approval, !approval)
	})
	v.Reset = reset
	return api.Subresource{Name: name, View: v}
}

// prepareCSR records who asks, which the client cannot say itself.
func prepareCSR(ctx context.Context, o api.Object) {
	c := o.(*certificatesv1.CertificateSigningRequest)
	c.Status = certificatesv1.CertificateSigningRequestStatus{}
	c.Spec.Username, c.Spec.UID, c.Spec.Groups, c.Spec.Extra = "", "", nil, nil
	if u, ok := api.UserFrom(ctx); ok {
		c.Spec.Username, c.Spec.UID, c.Spec.Groups = u.Username, u.UID, u.Groups
		if len(u.Extra) > 0 {
			c.Spec.Extra = map[string]certificatesv1.ExtraValue{}
			for k, v := range u.Extra {
				c.Spec.Extra[k] = certificatesv1.ExtraValue(v)
			}
		}
	}
}

func keepForApproval(c, old *certificatesv1.CertificateSigningRequest) {
	asked := c.Status.Conditions
	c.Spec, c.Status = old.Spec, old.Status
	c.Status.Conditions = asked
	stamp(c, old)
}

// keepForStatus keeps the verdict, which only approval may change.
func keepForStatus(c, old *certificatesv1.CertificateSigningRequest) {
	c.Spec = old.Spec
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		was, n := find(old, t), 0
		if len(was) != len(find(c, t)) {
			continue // validation refuses it
		}
		for i := range c.Status.Conditions {
			if c.Status.Conditions[i].Type == t {
				c.Status.Conditions[i] = was[n]
				n++
			}
		}
	}
	stamp(c, old)
}

func find(c *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) []certificatesv1.CertificateSigningRequestCondition {
	var out []certificatesv1.CertificateSigningRequestCondition
	for _, cond := range c.Status.Conditions {
		if cond.Type == t {
			out = append(out, cond)
		}
	}
	return out
}

// stamp fills the times of conditions the client left out.
func stamp(c, old *certificatesv1.CertificateSigningRequest) {
	now := metav1.Now()
	for i := range c.Status.Conditions {
		cond := &c.Status.Conditions[i]
		if cond.LastUpdateTime.IsZero() {
			cond.LastUpdateTime = now
		}
		if !cond.LastTransitionTime.IsZero() {
			continue
		}
		cond.LastTransitionTime = now
		for _, was := range find(old, cond.Type) {
			if was.Status == cond.Status && !was.LastTransitionTime.IsZero() {
				cond.LastTransitionTime = was.LastTransitionTime
				break
			}
		}
	}
}

var usages = []certificatesv1.KeyUsage{
	certificatesv1.UsageAny, certificatesv1.UsageCertSign, certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning, certificatesv1.UsageContentCommitment,
	certificatesv1.UsageCRLSign, certificatesv1.UsageDataEncipherment, certificatesv1.UsageDecipherOnly, certificatesv1.UsageDigitalSignature, certificatesv1.UsageEmailProtection,
	certificatesv1.UsageEncipherOnly, certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel, certificatesv1.UsageIPsecUser, certificatesv1.UsageKeyAgreement,
	certificatesv1.UsageKeyEncipherment, certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC, certificatesv1.UsageOCSPSigning, certificatesv1.UsageSMIME,
	certificatesv1.UsageServerAuth, certificatesv1.UsageSigning, certificatesv1.UsageTimestamping,
}

func validateCSR(c *certificatesv1.CertificateSigningRequest) field.ErrorList {
	l, s := &check.List{}, &c.Spec
	if err := parseCSR(s.Request); err != nil {
		l.Invalid(specPath.Child("request"), s.Request, err.Error())
	}
	if len(s.Usages) == 0 {
		l.Required(specPath.Child("usages"), "")
	}
	for i, u := range s.Usages {
		check.OneOf(l, specPath.Child("usages").Index(i), u, usages...)
	}
	seen := map[certificatesv1.KeyUsage]bool{}
	for i, u := range s.Usages {
		if seen[u] {
			l.Duplicate(specPath.Child("usages").Index(i), u)
		}
		seen[u] = true
	}
	if s.SignerName == "kubernetes.io/legacy-unknown" {
		l.Invalid(specPath.Child("signerName"), s.SignerName, "the legacy signerName is not allowed via this API version")
	} else {
		podspec.CheckSignerName(l, specPath.Child("signerName"), s.SignerName)
	}
	if e := s.ExpirationSeconds; e != nil && *e < 600 {
		l.Invalid(specPath.Child("expirationSeconds"), *e, "may not specify a duration less than 600 seconds (10 minutes)")
	}
	checkConditions(l, c)
	if err := checkCertificate(c.Status.Certificate); err != nil {
		l.Invalid(field.NewPath("status", "certificate"), "<certificate data>", err.Error())
	}
	return l.Errors
}

func parseCSR(raw []byte) error {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	_, err := x509.ParseCertificateRequest(block.Bytes)
	return err
}

func checkConditions(l *check.List, c *certificatesv1.CertificateSigningRequest) {
	seen, approved, denied := map[certificatesv1.RequestConditionType]bool{}, false, false
	for i, cond := range c.Status.Conditions {
		at := conditions.Index(i)
		if cond.Type == "" {
			l.Required(at.Child("type"), "")
		}
		switch cond.Status {
		case "":
			l.Required(at.Child("status"), "")
		case "True":
		default:
			if cond.Type == certificatesv1.CertificateApproved || cond.Type == certificatesv1.CertificateDenied || cond.Type == certificatesv1.CertificateFailed {
				check.OneOf(l, at.Child("status"), cond.Status, "True")
			} else {
				check.OneOf(l, at.Child("status"), cond.Status, "False", "True", "Unknown")
			}
		}
		approved = approved || cond.Type == certificatesv1.CertificateApproved
		denied = denied || cond.Type == certificatesv1.CertificateDenied
		if approved && denied && (cond.Type == certificatesv1.CertificateApproved || cond.Type == certificatesv1.CertificateDenied) {
			l.Invalid(at.Child("type"), cond.Type, "Approved and Denied conditions are mutually exclusive")
		}
		if seen[cond.Type] {
			l.Duplicate(at.Child("type"), cond.Type)
		}
		seen[cond.Type] = true
	}
}

// checkCertificate checks an issued chain: certificates in PEM, and no headers.
func checkCertificate(raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	n := 0
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return errors.New("only CERTIFICATE PEM blocks are allowed, found " + fmt.Sprintf("%q", block.Type))
		}
		if len(block.Headers) != 0 {
			return errors.New("no PEM block headers are permitted")
		}
		if _, err := x509.ParseCertificates(block.Bytes); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

func validateCSRUpdate(c, old *certificatesv1.CertificateSigningRequest, mayDecide, mayIssue bool) field.ErrorList {
	l := &check.List{Errors: validateCSR(c)}
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed} {
		now, was := find(c, t), find(old, t)
		switch {
		case len(now) < len(was):
			l.Forbidden(conditions, fmt.Sprintf("updates may not remove a condition of type %q", t))
		case mayDecide || t == certificatesv1.CertificateFailed:
		case len(now) > len(was):
			l.Forbidden(conditions, fmt.Sprintf("updates may not add a condition of type %q", t))
		case api.Changed(now, was):
			l.Forbidden(conditions, fmt.Sprintf("updates may not modify a condition of type %q\n%v", t, diff.Diff(was, now)))
		}
	}
	if !bytes.Equal(c.Status.Certificate, old.Status.Certificate) {
		at := field.NewPath("status", "certificate")
		if !mayIssue {
			l.Forbidden(at, "updates may not set certificate content")
		} else if len(old.Status.Certificate) > 0 {
			l.Forbidden(at, "updates may not modify existing certificate content")
		}
	}
	return l.Errors
}

func csrCells(c *certificatesv1.CertificateSigningRequest, now metav1.Time) []any {
	signer, lasts := "<none>", "<none>"
	if c.Spec.SignerName != "" {
		signer = c.Spec.SignerName
	}
	if e := c.Spec.ExpirationSeconds; e != nil {
		lasts = api.Elapsed(time.Duration(*e) * time.Second)
	}
	status := "Pending"
	if len(find(c, certificatesv1.CertificateDenied)) > 0 {
		status = "Denied"
	} else if len(find(c, certificatesv1.CertificateApproved)) > 0 {
		status = "Approved"
	}
	if len(find(c, certificatesv1.CertificateFailed)) > 0 {
		status += ",Failed"
	}
	if len(c.Status.Certificate) > 0 {
		status += ",Issued"
	}
	return []any{c.Name, api.Age(c.CreationTimestamp, now), signer, c.Spec.Username, lasts, status}
}
