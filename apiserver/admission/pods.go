package admission

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/apiserver/admission/config"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/node"
)

// namespaceLifecycle keeps namespaces that must not go, and everything else
// out of namespaces that do not exist or are going.
type namespaceLifecycle struct {
	noValidate
	read reader
}

func (namespaceLifecycle) Name() string { return "NamespaceLifecycle" }

func (p namespaceLifecycle) Admit(_ context.Context, r *Request) error {
	if r.APIGroup == "" && r.Resource == "namespaces" {
		if r.Operation() == Delete && r.Subresource == "" {
			switch r.Name {
			case metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic:
				return apierrors.NewForbidden(schema.GroupResource{Resource: "namespaces"}, r.Name, errors.New("this namespace may not be deleted"))
			}
		}
		return nil
	}
	// What a review of access answers must not tell whether the namespace exists.
	if r.Namespace == "" || r.Operation() != Create || r.is("authorization.k8s.io", "localsubjectaccessreviews") {
		return nil
	}
	ns, err := get[*corev1.Namespace](p.read, "", "namespaces", "", r.Namespace)
	if err != nil {
		if apierrors.IsNotFound(err) {
			return err
		}
		return apierrors.NewInternalError(err)
	}
	if ns.Status.Phase != corev1.NamespaceTerminating && ns.DeletionTimestamp == nil {
		return nil
	}
	err = forbidden(r, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", r.Namespace))
	var status *apierrors.StatusError
	if errors.As(err, &status) && status.ErrStatus.Details != nil {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{
			Type:    corev1.NamespaceTerminatingCause,
			Message: fmt.Sprintf("namespace %s is being terminated", r.Namespace),
			Field:   "metadata.namespace",
		})
	}
	return err
}

// createdPod returns the pod a request creates, or nil.
func createdPod(r *Request) *corev1.Pod {
	if !r.is("", "pods") || r.Operation() != Create {
		return nil
	}
	pod, _ := r.Object.(*corev1.Pod)
	return pod
}

func isMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

const (
	defaultServiceAccount = "default"
	tokenVolume           = "kube-api-access-"
	tokenMountPath        = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenSeconds          = 60*60 + 7 // tells an injected token from one asked for
	enforceMountable      = "kubernetes.io/enforce-mountable-secrets"
)

// serviceAccount gives every pod a service account, its token and its pull
// secrets.
type serviceAccount struct {
	read  reader
	clock clock.WithTicker
}

func (serviceAccount) Name() string { return "ServiceAccount" }

func (p serviceAccount) Admit(ctx context.Context, r *Request) error {
	pod := createdPod(r)
	if pod == nil || isMirror(pod) {
		return nil
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = defaultServiceAccount
		pod.Spec.DeprecatedServiceAccount = defaultServiceAccount
	}
	sa, err := p.account(ctx, r, pod.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if automount(sa, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = append([]corev1.LocalObjectReference(nil), sa.ImagePullSecrets...)
	}
	return nil
}

func (p serviceAccount) Validate(ctx context.Context, r *Request) error {
	pod := createdPod(r)
	ephemeral := r.is("", "pods", "ephemeralcontainers") && r.Operation() == Update
	if ephemeral {
		pod, _ = r.Object.(*corev1.Pod)
	}
	if pod == nil {
		return nil
	}
	if isMirror(pod) && !ephemeral {
		return asForbidden(r, checkMirror(pod))
	}
	if pod.Spec.ServiceAccountName == "" {
		return forbidden(r, fmt.Errorf("no service account specified for pod %s/%s", r.Namespace, pod.Name))
	}
	sa, err := p.account(ctx, r, pod.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if v := sa.Annotations[enforceMountable]; v != "true" && v != "1" && v != "t" && v != "T" && v != "TRUE" && v != "True" {
		return nil
	}
	return asForbidden(r, checkMountable(sa, pod, ephemeral))
}

func asForbidden(r *Request, err error) error {
	if err == nil {
		return nil
	}
	return forbidden(r, err)
}

// Waiting for a namespace's default account, which a controller makes.
const (
	accountTries = 10
	accountPause = 100 * time.Millisecond
)

func (p serviceAccount) account(ctx context.Context, r *Request, name string) (*corev1.ServiceAccount, error) {
	for try := 1; ; try++ {
		sa, err := get[*corev1.ServiceAccount](p.read, "", "serviceaccounts", r.Namespace, name)
		if err == nil {
			return sa, nil
		}
		if !apierrors.IsNotFound(err) || name != defaultServiceAccount || try == accountTries {
			if apierrors.IsNotFound(err) {
				err = apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccount"}, name)
			}
			return nil, forbidden(r, fmt.Errorf("error looking up service account %s/%s: %w", r.Namespace, name, err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.clock.After(accountPause):
		}
	}
}

func automount(sa *corev1.ServiceAccount, pod *corev1.Pod) bool {
	if pod.Spec.AutomountServiceAccountToken != nil {
		return *pod.Spec.AutomountServiceAccountToken
	}
	return ptr.Deref(sa.AutomountServiceAccountToken, true)
}

// mountToken mounts the API token into every container that has nothing at
// that place, adding its volume when needed.
func mountToken(pod *corev1.Pod) {
	name, have := "", false
	for _, v := range pod.Spec.Volumes {
		if strings.HasPrefix(v.Name, tokenVolume) {
			name, have = v.Name, true
			break
		}
	}
	if name == "" {
		name = tokenVolume + suffix()
	}
	needed := false
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
	containers:
		for i := range list {
			for _, m := range list[i].VolumeMounts {
				if m.MountPath == tokenMountPath {
					continue containers
				}
			}
			list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenMountPath})
			needed = true
		}
	}
	if have || !needed {
		return
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: ptr.To(corev1.ProjectedVolumeSourceDefaultMode),
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](tokenSeconds)}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
				Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
			}}}},
		},
	}}})
}

// suffix is five letters as a generated name has: no vowels, nothing that
// looks like something else.
func suffix() string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	var b [5]byte
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b[:])
}

// checkMirror: the kubelet makes mirror pods itself, so they may not lead it
// to anything of the API.
func checkMirror(pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return errors.New("a mirror pod may not reference service accounts")
	}
	if len(node.PodSecrets(pod)) > 0 {
		return errors.New("a mirror pod may not reference secrets")
	}
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil {
				return errors.New("a mirror pod may not use ServiceAccountToken volume projections")
			}
		}
	}
	return nil
}

// checkMountable lets a pod use only the secrets its account lists.
func checkMountable(sa *corev1.ServiceAccount, pod *corev1.Pod, ephemeral bool) error {
	listed := map[string]bool{}
	for _, s := range sa.Secrets {
		listed[s.Name] = true
	}
	check := func(kind, name string, env []corev1.EnvVar, from []corev1.EnvFromSource) error {
		for _, e := range env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && !listed[e.ValueFrom.SecretKeyRef.Name] {
				return fmt.Errorf("%s %s with envVar %s referencing secret.secretName=%q is not allowed because service account %s does not reference that secret", kind, name, e.Name, e.ValueFrom.SecretKeyRef.Name, sa.Name)
			}
		}
		for _, e := range from {
			if e.SecretRef != nil && !listed[e.SecretRef.Name] {
				return fmt.Errorf("%s %s with envFrom referencing secret.secretName=%q is not allowed because service account %s does not reference that secret", kind, name, e.SecretRef.Name, sa.Name)
			}
		}
		return nil
	}
	if ephemeral {
		for _, c := range pod.Spec.EphemeralContainers {
			if err := check("ephemeral container", c.Name, c.Env, c.EnvFrom); err != nil {
				return err
			}
		}
		return nil
	}
	for _, v := range pod.Spec.Volumes {
		if v.Secret != nil && !listed[v.Secret.SecretName] {
			return fmt.Errorf("volume with secret.secretName=%q is not allowed because service account %s does not reference that secret", v.Secret.SecretName, sa.Name)
		}
	}
	for _, c := range pod.Spec.InitContainers {
		if err := check("init container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	for _, c := range pod.Spec.Containers {
		if err := check("container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	pull := map[string]bool{}
	for _, s := range sa.ImagePullSecrets {
		pull[s.Name] = true
	}
	for i, s := range pod.Spec.ImagePullSecrets {
		if !pull[s.Name] {
			return fmt.Errorf("imagePullSecrets[%d].name=%q is not allowed because service account %s does not reference that imagePullSecret", i, s.Name, sa.Name)
		}
	}
	return nil
}

// defaultTolerationSeconds lets pods stay on a node for some time after it
// is lost.
type defaultTolerationSeconds struct {
	noValidate
	seconds config.TolerationSeconds
}

func (defaultTolerationSeconds) Name() string { return "DefaultTolerationSeconds" }

func (d defaultTolerationSeconds) Admit(_ context.Context, r *Request) error {
	pod, ok := r.Object.(*corev1.Pod)
	if !ok || !r.is("", "pods") {
		return nil
	}
	for _, after := range []struct {
		taint   string
		seconds *int64
	}{{corev1.TaintNodeNotReady, d.seconds.NotReady}, {corev1.TaintNodeUnreachable, d.seconds.Unreachable}} {
		key, seconds, tolerated := after.taint, int64(300), false
		if after.seconds != nil {
			seconds = *after.seconds
		}
		for _, t := range pod.Spec.Tolerations {
			if (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
				tolerated = true
			}
		}
		if !tolerated {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
			})
		}
	}
	return nil
}

// taintNodesByCondition: a new node gets no pods before it says it is ready.
type taintNodesByCondition struct{ noValidate }

func (taintNodesByCondition) Name() string { return "TaintNodesByCondition" }

func (taintNodesByCondition) Admit(_ context.Context, r *Request) error {
	n, ok := r.Object.(*corev1.Node)
	if !ok || !r.is("", "nodes") || r.Operation() != Create {
		return nil
	}
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeNotReady && t.Effect == corev1.TaintEffectNoSchedule {
			return nil
		}
	}
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule})
	return nil
}

// priority turns a pod's priority class into its priority.
type priority struct{ read reader }

func (priority) Name() string { return "Priority" }

func (p priority) Admit(_ context.Context, r *Request) error {
	pod, ok := r.Object.(*corev1.Pod)
	if !ok || !r.is("", "pods") {
		return nil
	}
	if old, ok := r.Old.(*corev1.Pod); ok {
		if pod.Spec.Priority == nil {
			pod.Spec.Priority = old.Spec.Priority
		}
		if pod.Spec.PreemptionPolicy == nil {
			pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
		}
		return nil
	}
	class, err := p.class(r, pod.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	pod.Spec.PriorityClassName = class.Name
	if have := pod.Spec.Priority; have != nil && *have != class.Value {
		return forbidden(r, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *have, class.Value))
	}
	pod.Spec.Priority = ptr.To(class.Value)
	if class.PreemptionPolicy != nil {
		if have := pod.Spec.PreemptionPolicy; have != nil && *have != *class.PreemptionPolicy {
			return forbidden(r, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *have, *class.PreemptionPolicy))
		}
		pod.Spec.PreemptionPolicy = ptr.To(*class.PreemptionPolicy)
	}
	return nil
}

// class is the named class, the default one for no name, or a nameless one of
// priority zero.
func (p priority) class(r *Request, name string) (*schedulingv1.PriorityClass, error) {
	if name == "" {
		class, err := p.defaultClass()
		if err != nil {
			return nil, fmt.Errorf("error occurred while retrieving default priority class: %w", err)
		}
		if class == nil {
			class = &schedulingv1.PriorityClass{PreemptionPolicy: ptr.To(corev1.PreemptLowerPriority)}
		}
		return class, nil
	}
	class, err := get[*schedulingv1.PriorityClass](p.read, schedulingv1.GroupName, "priorityclasses", "", name)
	if apierrors.IsNotFound(err) {
		return nil, forbidden(r, fmt.Errorf("no PriorityClass with name %v was found", name))
	}
	if err != nil {
		return nil, fmt.Errorf("failed to resolve PriorityClass with name %s: %w", name, err)
	}
	return class, nil
}

// defaultClass: should there be several, the lowest.
func (p priority) defaultClass() (*schedulingv1.PriorityClass, error) {
	classes, err := list[*schedulingv1.PriorityClass](p.read, schedulingv1.GroupName, "priorityclasses", "")
	var found *schedulingv1.PriorityClass
	for _, c := range classes {
		if c.GlobalDefault && (found == nil || c.Value < found.Value) {
			found = c
		}
	}
	return found, err
}

func (p priority) Validate(_ context.Context, r *Request) error {
	class, ok := r.Object.(*schedulingv1.PriorityClass)
	if !ok || !r.is(schedulingv1.GroupName, "priorityclasses") || !class.GlobalDefault {
		return nil
	}
	have, err := p.defaultClass()
	if err != nil {
		return fmt.Errorf("failed to get default priority class: %w", err)
	}
	if have != nil && (r.Operation() == Create || have.Name != class.Name) {
		return forbidden(r, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", have.Name))
	}
	return nil
}

// runtimeClass applies a pod's runtime class: what it costs and where it runs.
type runtimeClass struct{ read reader }

func (runtimeClass) Name() string { return "RuntimeClass" }

func (p runtimeClass) of(r *Request) (*corev1.Pod, *nodev1.RuntimeClass, error) {
	pod := createdPod(r)
	if pod == nil || pod.Spec.RuntimeClassName == nil {
		return pod, nil, nil
	}
	class, err := get[*nodev1.RuntimeClass](p.read, nodev1.GroupName, "runtimeclasses", "", *pod.Spec.RuntimeClassName)
	if apierrors.IsNotFound(err) {
		err = forbidden(r, fmt.Errorf("pod rejected: RuntimeClass %q not found", *pod.Spec.RuntimeClassName))
	}
	return pod, class, err
}

func (p runtimeClass) Admit(_ context.Context, r *Request) error {
	pod, class, err := p.of(r)
	if err != nil || class == nil {
		return err
	}
	if class.Overhead != nil {
		if len(pod.Spec.Overhead) > 0 && !equality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
			return forbidden(r, errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
		}
		pod.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	}
	if class.Scheduling == nil {
		return nil
	}
	for key, want := range class.Scheduling.NodeSelector {
		if have, ok := pod.Spec.NodeSelector[key]; ok && have != want {
			return forbidden(r, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, want, key, have))
		}
		if pod.Spec.NodeSelector == nil {
			pod.Spec.NodeSelector = map[string]string{}
		}
		pod.Spec.NodeSelector[key] = want
	}
	for _, t := range class.Scheduling.Tolerations {
		have := false
		for _, h := range pod.Spec.Tolerations {
			have = have || equality.Semantic.DeepEqual(h, t)
		}
		if !have {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, *t.DeepCopy())
		}
	}
	return nil
}

func (p runtimeClass) Validate(_ context.Context, r *Request) error {
	pod, class, err := p.of(r)
	switch {
	case err != nil || pod == nil:
		return err
	case class != nil && class.Overhead != nil:
		if !equality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
			return forbidden(r, errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
		}
	case pod.Spec.Overhead != nil:
		return forbidden(r, errors.New("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
	}
	return nil
}

// podTopologyLabels copies a node's zone and region onto the pods bound to it.
type podTopologyLabels struct {
	noValidate
	read reader
}

func (podTopologyLabels) Name() string { return "PodTopologyLabels" }

func (p podTopologyLabels) Admit(_ context.Context, r *Request) error {
	if r.Operation() != Create {
		return nil
	}
	nodeName := ""
	switch o := r.Object.(type) {
	case *corev1.Binding:
		if o.Target.Kind == "Node" {
			nodeName = o.Target.Name
		}
	case *corev1.Pod:
		if r.is("", "pods") {
			nodeName = o.Spec.NodeName
		}
	}
	if nodeName == "" {
		return nil
	}
	n, err := get[*corev1.Node](p.read, "", "nodes", "", nodeName)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		if v, ok := n.Labels[key]; ok {
			labels := r.Object.GetLabels()
			if labels == nil {
				labels = map[string]string{}
			}
			labels[key] = v
			r.Object.SetLabels(labels)
		}
	}
	return nil
}

// userMay asks the authorizer for one more permission of the request's user.
func userMay(ctx context.Context, z auth.Authorizer, a auth.Attributes) bool {
	d, _, _ := z.Authorize(ctx, a)
	return d == auth.Allow
}
