package certificates

import (
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
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
		StoragePrefix: "podcertificaterequests",
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
		Subresources: []api.Subresource{api.StatusView(func(r, old *certificatesv1.PodCertificateRequest) {
			r.Spec = old.Spec
			api.KeepMetadata(r, old)
		}, validatePodRequestStatus)},
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
	}
	return l.Errors
}

func validatePodRequestStatus(r, _ *certificatesv1.PodCertificateRequest) field.ErrorList {
	l, p := &check.List{}, field.NewPath("status")
	l.Add(metavalidation.ValidateConditions(r.Status.Conditions, p.Child("conditions")))
	if chain := r.Status.CertificateChain; chain != "" {
		if err := checkCertificate([]byte(chain)); err != nil {
			l.Invalid(p.Child("certificateChain"), chain, err.Error())
		}
	}
	return l.Errors
}
