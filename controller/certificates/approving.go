package certificates

import (
	"context"
	"crypto/x509"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// NewApproving returns the controller that approves the client certificates of kubelets, for
// those who may create certificatesigningrequests/nodeclient, or /selfnodeclient for their own.
func NewApproving(env engine.Env) (*engine.Controller, error) {
	requests := env.Informers.Certificates().V1().CertificateSigningRequests()
	return &engine.Controller{
		Name:    "certificatesigningrequest-approving-controller",
		Outputs: []engine.Resource{resource + "/approval", "subjectaccessreviews.authorization.k8s.io"},
		Sources: []engine.Source{engine.On(resource, requests.Informer(), onChange)},
		Reconcile: func(ctx context.Context, name string) error {
			r, err := requests.Lister().Get(name)
			if err != nil {
				return engine.IgnoreNotFound(err)
			}
			if r.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName || len(r.Status.Certificate) > 0 ||
				has(r, certificatesv1.CertificateApproved) || has(r, certificatesv1.CertificateDenied) {
				return nil
			}
			q, err := parse(r)
			if err != nil {
				return err
			}
			if acceptKubelet(q, r.Spec.Usages, false) != nil {
				return nil
			}
			message, err := permitted(ctx, env, r, q)
			if err != nil {
				return err
			}
			r = r.DeepCopy()
			r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
				Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved", Message: message})
			_, err = env.Client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, name, r, metav1.UpdateOptions{})
			return engine.IgnoreNotFound(err)
		},
	}, nil
}

// permitted asks whether who made the request may have it approved, and says by which right. No
// right is an error: it may be given later.
func permitted(ctx context.Context, env engine.Env, r *certificatesv1.CertificateSigningRequest, q *x509.CertificateRequest) (string, error) {
	rights := []struct{ subresource, message string }{
		{"selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."},
		{"nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."},
	}
	if r.Spec.Username != q.Subject.CommonName {
		rights = rights[1:]
	}
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range r.Spec.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	var tried []string
	for _, right := range rights {
		review, err := env.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: r.Spec.Username, UID: r.Spec.UID, Groups: r.Spec.Groups, Extra: extra,
				ResourceAttributes: &authorizationv1.ResourceAttributes{Group: certificatesv1.GroupName, Version: "*",
					Resource: "certificatesigningrequests", Subresource: right.subresource, Verb: "create"}},
		}, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		if review.Status.Allowed {
			return right.message, nil
		}
		tried = append(tried, right.subresource)
	}
	return "", fmt.Errorf("recognized csr %q as %v but subject access review was not approved", r.Name, tried)
}
