package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// changedPod returns a pod bound to a node whose spec a request changes through one of the
// subresources ("": the pod itself), and what it was; nil: it is no such request.
func changedPod(r *Request, subresources ...string) (pod, old *corev1.Pod) {
	if r.APIGroup != "" || r.Resource != "pods" || !slices.Contains(subresources, r.Subresource) || r.Operation() != Update {
		return nil, nil
	}
	pod, _ = r.Object.(*corev1.Pod)
	old, _ = r.Old.(*corev1.Pod)
	if pod == nil || old == nil || pod.Spec.NodeName == "" || pod.Generation == old.Generation {
		return nil, nil
	}
	return pod, old
}

// nodeOf reads a pod's node; its errors are upstream's.
func nodeOf(read reader, pod *corev1.Pod) (*corev1.Node, error) {
	node, err := get[*corev1.Node](read, "", "nodes", "", pod.Spec.NodeName)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("node %q not found", pod.Spec.NodeName)
	case err != nil:
		return nil, fmt.Errorf("failed to get node %q: %v", pod.Spec.NodeName, err)
	}
	return node, nil
}

// nodeDeclaredFeatureValidator refuses changes of a running pod that its node does not say it can
// follow. Of ResourceSlices upstream checks a field that is off by default.
type nodeDeclaredFeatureValidator struct {
	noAdmit
	read reader
}

func (nodeDeclaredFeatureValidator) Name() string { return "NodeDeclaredFeatureValidator" }

func (p nodeDeclaredFeatureValidator) Validate(_ context.Context, r *Request) error {
	pod, old := changedPod(r, "", "resize")
	if pod == nil {
		return nil
	}
	wanted := neededFeatures(pod, old)
	if len(wanted) == 0 {
		return nil
	}
	node, err := nodeOf(p.read, pod)
	if err != nil {
		return forbidden(r, err)
	}
	wanted = slices.DeleteFunc(wanted, func(name string) bool { return slices.Contains(node.Status.DeclaredFeatures, name) })
	if len(wanted) > 0 {
		return forbidden(r, fmt.Errorf("pod update requires features %s which are not available on node %q", strings.Join(wanted, ", "), node.Name))
	}
	return nil
}

// neededFeatures names, sorted, what a node must be able to do for a change of its pod. Upstream's
// other features are about scheduling, or about fields that are off by default.
func neededFeatures(pod, old *corev1.Pod) (names []string) {
	if !equality.Semantic.DeepEqual(pod.Spec.Resources, old.Spec.Resources) {
		names = append(names, "InPlacePodLevelResourcesVerticalScaling")
	}
	for i, c := range old.Spec.InitContainers {
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if !sidecar && i < len(pod.Spec.InitContainers) && !equality.Semantic.DeepEqual(c.Resources, pod.Spec.InitContainers[i].Resources) {
			return append(names, "InPlacePodVerticalScalingInitContainers")
		}
	}
	return names
}

// podResizeValidator refuses resizes that the pod's node can never grant.
type podResizeValidator struct {
	noAdmit
	read reader
}

func (podResizeValidator) Name() string { return "PodResizeValidator" }

func (p podResizeValidator) Validate(_ context.Context, r *Request) error {
	pod, _ := changedPod(r, "resize")
	if pod == nil {
		return nil
	}
	node, err := nodeOf(p.read, pod)
	if err != nil {
		return forbidden(r, err)
	}
	if os, ok := node.Labels[corev1.LabelOSStable]; ok && os != string(corev1.Linux) {
		return because(r, "UnsupportedPlatform", fmt.Errorf("pod resize is only supported on linux nodes, node %q is %q", node.Name, os))
	}
	want, have := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}), node.Status.Allocatable
	var lacks []string
	if w, h := want.Cpu(), have.Cpu(); w.Cmp(*h) > 0 {
		lacks = append(lacks, fmt.Sprintf("cpu, requested: %d, allocatable: %d", w.MilliValue(), h.MilliValue()))
	}
	if w, h := want.Memory(), have.Memory(); w.Cmp(*h) > 0 {
		lacks = append(lacks, fmt.Sprintf("memory, requested: %d, allocatable: %d", w.Value(), h.Value()))
	}
	if len(lacks) > 0 {
		return because(r, "NodeCapacity", fmt.Errorf("node didn't have enough allocatable resources: %s", strings.Join(lacks, "; ")))
	}
	return nil
}

// because is a 403 with a cause for programs.
func because(r *Request, cause metav1.CauseType, err error) error {
	refused := Forbidden(r, err)
	refused.ErrStatus.Details.Causes = append(refused.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause})
	return refused
}
