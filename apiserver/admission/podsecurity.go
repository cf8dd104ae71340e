package admission

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
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
	*recorder
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
	recorder := newRecorder()
	return podSecurity{recorder: recorder, library: sync.OnceValues(func() (*admission.Admission, error) {
		evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
		if err != nil {
			return nil, err
		}
		objects := podSecurityObjects{read}
		a := &admission.Admission{
			Configuration: configured,
			Evaluator:     evaluator, Metrics: recorder, NamespaceGetter: objects, PodLister: objects,
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

// recorder counts for the library, under upstream's names. It is a prometheus.Collector.
type recorder struct{ evaluations, exemptions, errors *prometheus.CounterVec }

func newRecorder() *recorder {
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pod_security_" + name + "_total", Help: help},
			append([]string{"request_operation", "resource", "subresource"}, labels...))
	}
	return &recorder{
		evaluations: count("evaluations", "Number of policy evaluations that occurred, not counting ignored or exempt requests.", "decision", "policy_level", "policy_version", "mode"),
		exemptions:  count("exemptions", "Number of exempt requests, not counting ignored or out of scope requests."),
		errors:      count("errors", "Number of errors preventing normal evaluation. Non-fatal errors may result in the latest restricted profile being used for evaluation.", "fatal"),
	}
}

// labels are those that all three have.
func (*recorder) labels(a psapi.Attributes, more ...string) []string {
	resource := "controller"
	switch a.GetResource().GroupResource() {
	case corev1.Resource("pods"):
		resource = "pod"
	case corev1.Resource("namespaces"):
		resource = "namespace"
	}
	return append([]string{strings.ToLower(string(a.GetOperation())), resource, a.GetSubresource()}, more...)
}

func (r *recorder) RecordEvaluation(d metrics.Decision, p psapi.LevelVersion, m metrics.Mode, a psapi.Attributes) {
	version := "latest"
	if !p.Version.Latest() && p.Level != psapi.LevelPrivileged {
		version = "future"
		if newest := psapi.MajorMinorVersion(1, 37); !newest.Older(p.Version) {
			version = p.Version.String()
		}
	}
	r.evaluations.WithLabelValues(r.labels(a, string(d), string(p.Level), version, string(m))...).Inc()
}

func (r *recorder) RecordExemption(a psapi.Attributes) {
	r.exemptions.WithLabelValues(r.labels(a)...).Inc()
}

func (r *recorder) RecordError(fatal bool, a psapi.Attributes) {
	r.errors.WithLabelValues(r.labels(a, strconv.FormatBool(fatal))...).Inc()
}

func (r *recorder) Describe(out chan<- *prometheus.Desc) {
	r.evaluations.Describe(out)
	r.exemptions.Describe(out)
	r.errors.Describe(out)
}

func (r *recorder) Collect(out chan<- prometheus.Metric) {
	r.evaluations.Collect(out)
	r.exemptions.Collect(out)
	r.errors.Collect(out)
}
