package admission

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// podSecurity enforces the Pod Security Standards a namespace's labels ask
// for. A namespace without labels allows everything, as upstream.
type podSecurity struct {
	noAdmit
	read      reader
	evaluator func() (policy.Evaluator, error) // made when first needed
	defaults  psapi.Policy
}

func newPodSecurity(read reader) podSecurity {
	lv := psapi.LevelVersion{Level: psapi.LevelPrivileged, Version: psapi.LatestVersion()}
	return podSecurity{
		read:     read,
		defaults: psapi.Policy{Enforce: lv, Audit: lv, Warn: lv},
		evaluator: sync.OnceValues(func() (policy.Evaluator, error) {
			return policy.NewEvaluator(policy.DefaultChecks(), nil)
		}),
	}
}

func (podSecurity) Name() string { return "PodSecurity" }

func (p podSecurity) Validate(ctx context.Context, r *Request) error {
	if op := r.Operation(); op != Create && op != Update {
		return nil
	}
	switch o := r.Object.(type) {
	case *corev1.Namespace:
		if r.Subresource == "" {
			return p.namespace(ctx, r, o)
		}
	case *corev1.Pod:
		return p.pod(ctx, r, o)
	default:
		if meta, spec := template(o); spec != nil && r.Subresource == "" {
			return p.controller(ctx, r, meta, spec)
		}
	}
	return nil
}

func (p podSecurity) namespace(ctx context.Context, r *Request, ns *corev1.Namespace) error {
	want, errs := psapi.PolicyToEvaluate(ns.Labels, p.defaults)
	old, ok := r.Old.(*corev1.Namespace)
	if !ok {
		if len(errs) > 0 {
			return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Namespace").GroupKind(), ns.Name, errs)
		}
		return nil
	}
	had, oldErrs := psapi.PolicyToEvaluate(old.Labels, p.defaults)
	if len(errs) > 0 && !reflect.DeepEqual(errs, oldErrs) {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Namespace").GroupKind(), ns.Name, errs)
	}
	switch {
	case want.Enforce == had.Enforce, want.Enforce.Level == psapi.LevelPrivileged:
		return nil
	case want.Enforce.Version == had.Enforce.Version && psapi.CompareLevels(want.Enforce.Level, had.Enforce.Level) < 1:
		return nil
	}
	for _, w := range p.existing(ns.Name, want.Enforce) {
		Warn(ctx, w)
	}
	return nil
}

// maxChecked bounds the pods looked at when a namespace's level is raised.
const maxChecked = 3000

// existing returns warnings about pods that break a new level, of replicas one
// for all.
func (p podSecurity) existing(namespace string, lv psapi.LevelVersion) []string {
	pods, err := list[*corev1.Pod](p.read, "", "pods", namespace)
	evaluator, err2 := p.evaluator()
	if errors.Join(err, err2) != nil {
		return []string{"failed to list pods while checking new PodSecurity enforce level"}
	}
	pods = onePerController(pods)
	var warnings []string
	if total := len(pods); total > maxChecked {
		pods = pods[:maxChecked]
		warnings = append(warnings, fmt.Sprintf("new PodSecurity enforce level only checked against the first %d of %d existing pods", maxChecked, total))
	}
	type seen struct {
		first string
		count int
	}
	found := map[string]seen{}
	for _, pod := range pods {
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(lv, &pod.ObjectMeta, &pod.Spec))
		if result.Allowed {
			continue
		}
		s := found[result.ForbiddenReason()]
		if s.count++; s.first == "" || pod.Name < s.first {
			s.first = pod.Name
		}
		found[result.ForbiddenReason()] = s
	}
	if len(found) == 0 {
		return warnings
	}
	warnings = append(warnings, fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", namespace, lv.String()))
	var details []string
	for reason, s := range found {
		switch s.count {
		case 1:
			details = append(details, fmt.Sprintf("%s: %s", s.first, reason))
		case 2:
			details = append(details, fmt.Sprintf("%s (and 1 other pod): %s", s.first, reason))
		default:
			details = append(details, fmt.Sprintf("%s (and %d other pods): %s", s.first, s.count-1, reason))
		}
	}
	slices.Sort(details)
	return append(warnings, details...)
}

// onePerController puts one pod of each controller first, further replicas
// last.
func onePerController(pods []*corev1.Pod) []*corev1.Pod {
	var firsts, rest []*corev1.Pod
	seen := map[types.UID]bool{}
	for _, pod := range pods {
		owner := metav1.GetControllerOfNoCopy(pod)
		switch {
		case owner == nil:
			firsts = append(firsts, pod)
		case seen[owner.UID]:
			rest = append(rest, pod)
		default:
			seen[owner.UID] = true
			firsts = append(firsts, pod)
		}
	}
	return append(firsts, rest...)
}

func (p podSecurity) pod(ctx context.Context, r *Request, pod *corev1.Pod) error {
	switch r.Subresource {
	case "exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status":
		return nil
	}
	pol, err := p.policyOf(r.Namespace)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to lookup namespace %q", r.Namespace))
	}
	if pol.FullyPrivileged() {
		Annotate(ctx, psapi.AuditAnnotationPrefix+psapi.EnforcedPolicyAnnotationKey, pol.Enforce.String())
		return nil
	}
	if old, ok := r.Old.(*corev1.Pod); ok && !significant(pod, old) {
		return nil
	}
	return p.evaluate(ctx, r, pol, &pod.ObjectMeta, &pod.Spec, true)
}

// controller only warns: its pods will be judged when they are made.
func (p podSecurity) controller(ctx context.Context, r *Request, meta *metav1.ObjectMeta, spec *corev1.PodSpec) error {
	pol, err := p.policyOf(r.Namespace)
	if err != nil || pol.Warn.Level == psapi.LevelPrivileged && pol.Audit.Level == psapi.LevelPrivileged {
		return nil
	}
	return p.evaluate(ctx, r, pol, meta, spec, false)
}

// policyOf is a namespace's policy; a label that cannot be read counts as
// restricted, upstream's choice.
func (p podSecurity) policyOf(namespace string) (psapi.Policy, error) {
	ns, err := get[*corev1.Namespace](p.read, "", "namespaces", "", namespace)
	if err != nil {
		return psapi.Policy{}, err
	}
	pol, _ := psapi.PolicyToEvaluate(ns.Labels, p.defaults)
	return pol, nil
}

func (p podSecurity) evaluate(ctx context.Context, r *Request, pol psapi.Policy, meta *metav1.ObjectMeta, spec *corev1.PodSpec, enforce bool) error {
	evaluator, err := p.evaluator()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if result := policy.AggregateCheckResults(evaluator.EvaluatePod(pol.Audit, meta, spec)); !result.Allowed {
		Annotate(ctx, psapi.AuditAnnotationPrefix+psapi.AuditViolationsAnnotationKey, fmt.Sprintf("would violate PodSecurity %q: %s", pol.Audit.String(), result.ForbiddenDetail()))
	}
	if enforce {
		Annotate(ctx, psapi.AuditAnnotationPrefix+psapi.EnforcedPolicyAnnotationKey, pol.Enforce.String())
		if result := policy.AggregateCheckResults(evaluator.EvaluatePod(pol.Enforce, meta, spec)); !result.Allowed {
			return forbidden(r, fmt.Errorf("violates PodSecurity %q: %s", pol.Enforce.String(), result.ForbiddenDetail()))
		}
	}
	if result := policy.AggregateCheckResults(evaluator.EvaluatePod(pol.Warn, meta, spec)); !result.Allowed {
		Warn(ctx, fmt.Sprintf("would violate PodSecurity %q: %s", pol.Warn.String(), result.ForbiddenDetail()))
	}
	return nil
}

// significant reports whether an update changes what policies look at and the
// API lets change: images, and ephemeral containers.
func significant(pod, old *corev1.Pod) bool {
	images := func(p *corev1.Pod) (out []string) {
		for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
			for _, c := range list {
				out = append(out, c.Image)
			}
			out = append(out, "") // so that a container cannot change lists unseen
		}
		return out
	}
	if !slices.Equal(images(pod), images(old)) {
		return true
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if !slices.ContainsFunc(old.Spec.EphemeralContainers, func(o corev1.EphemeralContainer) bool {
			return o.Name == c.Name && o.Image == c.Image
		}) {
			return true
		}
	}
	return false
}

// template returns the pod template inside a controller, nil for other objects.
func template(obj any) (*metav1.ObjectMeta, *corev1.PodSpec) {
	of := func(t *corev1.PodTemplateSpec) (*metav1.ObjectMeta, *corev1.PodSpec) {
		if t == nil {
			return nil, nil
		}
		return &t.ObjectMeta, &t.Spec
	}
	switch o := obj.(type) {
	case *corev1.PodTemplate:
		return of(&o.Template)
	case *corev1.ReplicationController:
		return of(o.Spec.Template)
	case *appsv1.ReplicaSet:
		return of(&o.Spec.Template)
	case *appsv1.Deployment:
		return of(&o.Spec.Template)
	case *appsv1.DaemonSet:
		return of(&o.Spec.Template)
	case *appsv1.StatefulSet:
		return of(&o.Spec.Template)
	case *batchv1.Job:
		return of(&o.Spec.Template)
	case *batchv1.CronJob:
		return of(&o.Spec.JobTemplate.Spec.Template)
	}
	return nil, nil
}
