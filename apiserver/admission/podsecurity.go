package admission

import (
	"context"
	"errors"
	"sync"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/pod-security-admission/admission"
	psconfig "k8s.io/pod-security-admission/admission/api"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/metrics"
	"k8s.io/pod-security-admission/policy"
)

// podSecurity enforces the Pod Security Standards a namespace's labels ask
// for, by upstream's own library. A namespace without labels allows everything, unless a configuration says more.
type podSecurity struct {
	noAdmit
	library func() (*admission.Admission, error) // made when first needed
}

func newPodSecurity(read reader, configured *psconfig.PodSecurityConfiguration) podSecurity {
	if configured == nil {
		configured = &psconfig.PodSecurityConfiguration{Defaults: psconfig.PodSecurityDefaults{
			Enforce: string(psapi.LevelPrivileged), EnforceVersion: psapi.VersionLatest,
			Audit: string(psapi.LevelPrivileged), AuditVersion: psapi.VersionLatest,
			Warn: string(psapi.LevelPrivileged), WarnVersion: psapi.VersionLatest,
		}}
	}
	return podSecurity{library: sync.OnceValues(func() (*admission.Admission, error) {
		evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
		if err != nil {
			return nil, err
		}
		objects := podSecurityObjects{read}
		a := &admission.Admission{
			Configuration: configured,
			Evaluator:     evaluator, Metrics: unrecorded{}, NamespaceGetter: objects, PodLister: objects,
		}
		return a, errors.Join(a.CompleteConfiguration(), a.ValidateConfiguration())
	})}
}

func (podSecurity) Name() string { return "PodSecurity" }

func (p podSecurity) Validate(ctx context.Context, r *Request) error {
	op := r.Operation()
	resource := schema.GroupVersionResource{Group: r.APIGroup, Version: r.APIVersion, Resource: r.Resource}
	judged := resource.GroupResource() == corev1.Resource("namespaces") || admission.DefaultPodSpecExtractor{}.HasPodSpec(resource.GroupResource())
	if op != Create && op != Update || !judged {
		return nil
	}
	library, err := p.library()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	resp := library.Validate(ctx, &psapi.AttributesRecord{
		Name: requestName(r), Namespace: r.Namespace, Kind: r.Kind, Resource: resource, Subresource: r.Subresource,
		Operation: admissionv1.Operation(op), Object: r.Object, OldObject: r.Old, Username: r.User.Name,
	})
	for _, w := range resp.Warnings {
		Warn(ctx, w)
	}
	for k, v := range resp.AuditAnnotations {
		Annotate(ctx, psapi.AuditAnnotationPrefix+k, v)
	}
	if !resp.Allowed {
		return &apierrors.StatusError{ErrStatus: *resp.Result}
	}
	return nil
}

// podSecurityObjects are what the library looks up.
type podSecurityObjects struct{ read reader }

func (o podSecurityObjects) GetNamespace(_ context.Context, name string) (*corev1.Namespace, error) {
	return get[*corev1.Namespace](o.read, "", "namespaces", "", name)
}

func (o podSecurityObjects) ListPods(_ context.Context, namespace string) ([]*corev1.Pod, error) {
	return list[*corev1.Pod](o.read, "", "pods", namespace)
}

// unrecorded leaves the library's metrics out.
type unrecorded struct{}

func (unrecorded) RecordEvaluation(metrics.Decision, psapi.LevelVersion, metrics.Mode, psapi.Attributes) {
}
func (unrecorded) RecordExemption(psapi.Attributes)   {}
func (unrecorded) RecordError(bool, psapi.Attributes) {}
