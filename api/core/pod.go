package core

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/kubectl/pkg/util/qos"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func podResource() *api.Resource {
	return &api.Resource{
		Name: "pods", Singular: "pod", Kind: "Pod",
		ShortNames: []string{"po"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[corev1.Pod, corev1.PodList]("v1", podspec.DefaultPod)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(prepareNewPod),
			PrepareForUpdate: api.OnUpdate(preparePodUpdate),
			Validate:         api.Check(validatePod),
			ValidateUpdate:   api.CheckUpdate(validatePodUpdate),
			Warnings:         podWarnings,
			Selectable:       api.Select(podFields),
			FieldPaths:       podFieldPaths,
			Index:            "spec.nodeName",
			GracePeriod:      podGracePeriod,
		},
		Subresources: []api.Subresource{
			{Name: "attach", Verbs: []string{"create", "get"}, Kind: "PodAttachOptions"},
			{Name: "binding", Verbs: []string{"create"}, Kind: "Binding"},
			{Name: "ephemeralcontainers", View: api.NewView(keepForEphemeralContainers, validateEphemeralContainersUpdate)},
			{Name: "eviction", Verbs: []string{"create"}, Kind: "Eviction", Group: "policy", Version: "v1"},
			{Name: "exec", Verbs: []string{"create", "get"}, Kind: "PodExecOptions"},
			{Name: "log", Verbs: []string{"get"}},
			{Name: "portforward", Verbs: []string{"create", "get"}, Kind: "PodPortForwardOptions"},
			{Name: "proxy", Verbs: proxyVerbs, Kind: "PodProxyOptions"},
			{Name: "resize", View: api.NewView(keepForResize, validatePodResize)},
			api.StatusView(keepForPodStatus, validatePodStatusUpdate),
		},
		Columns: podColumns(),
		Cells:   api.Row(podCells),
	}
}

// podFieldPaths are in core/v1's Pod: metadata 1, spec 2, status 3.
var podFieldPaths = map[string][]uint64{
	"spec.nodeName": {2, 10}, "spec.restartPolicy": {2, 3}, "spec.schedulerName": {2, 19}, "spec.serviceAccountName": {2, 8},
	"status.phase": {3, 1}, "status.nominatedNodeName": {3, 11},
}

func podFields(p *corev1.Pod) fields.Set {
	ip := ""
	if len(p.Status.PodIPs) > 0 {
		ip = p.Status.PodIPs[0].IP
	}
	return fields.Set{
		"spec.nodeName":            p.Spec.NodeName,
		"spec.restartPolicy":       string(p.Spec.RestartPolicy),
		"spec.schedulerName":       p.Spec.SchedulerName,
		"spec.serviceAccountName":  p.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(p.Spec.HostNetwork),
		"status.phase":             string(p.Status.Phase),
		"status.podIP":             ip,
		"status.nominatedNodeName": p.Status.NominatedNodeName,
	}
}

// podGracePeriod is upstream's rule: what the client or else the pod says, but
// nothing for a pod that runs nowhere.
func podGracePeriod(obj api.Object, opts *metav1.DeleteOptions) int64 {
	p := obj.(*corev1.Pod)
	var period int64
	switch {
	case opts != nil && opts.GracePeriodSeconds != nil:
		period = *opts.GracePeriodSeconds
	case p.Spec.TerminationGracePeriodSeconds != nil:
		period = *p.Spec.TerminationGracePeriodSeconds
	}
	switch {
	case p.Spec.NodeName == "", p.Status.Phase == corev1.PodFailed, p.Status.Phase == corev1.PodSucceeded:
		return 0
	case period < 0:
		return 1
	}
	return period
}

func prepareNewPod(p *corev1.Pod) {
	p.Generation = 1
	p.Status = corev1.PodStatus{Phase: corev1.PodPending}
	dropPodFields(&p.Spec, nil)
	if len(p.Spec.SchedulingGates) > 0 {
		p.Status.Conditions = []corev1.PodCondition{{
			Type:               corev1.PodScheduled,
			Status:             corev1.ConditionFalse,
			Reason:             corev1.PodReasonSchedulingGated,
			Message:            "Scheduling is blocked due to non-empty scheduling gates",
			LastTransitionTime: metav1.Now(),
		}}
	}
	mergeLabelKeys(p)
	defaultPodLevelResources(p)
	p.Status.QOSClass = qos.ComputePodQOS(p)
}

func preparePodUpdate(p, old *corev1.Pod) {
	p.Status = old.Status
	if p.Spec.Resources == nil && old.Spec.Resources != nil {
		p.Spec.Resources = old.Spec.Resources.DeepCopy()
	}
	finishPodUpdate(p, old)
}

func finishPodUpdate(p, old *corev1.Pod) {
	dropPodFields(&p.Spec, &old.Spec)
	api.BumpGeneration(p, old, api.Changed(p.Spec, old.Spec))
}

func keepForEphemeralContainers(p, old *corev1.Pod) {
	asked := p.Spec.EphemeralContainers
	p.Spec, p.Status = old.Spec, old.Status
	p.Spec.EphemeralContainers = asked
	api.KeepMetadata(p, old)
	finishPodUpdate(p, old)
}

// keepForResize lets through the resources and resize policies of containers
// and the resources of the pod. Containers that were added, removed or renamed
// are left for validation to refuse.
func keepForResize(p, old *corev1.Pod) {
	if sameContainerNames(p.Spec.Containers, old.Spec.Containers) && sameContainerNames(p.Spec.InitContainers, old.Spec.InitContainers) {
		asked := p.Spec
		p.Spec, p.Status = old.Spec, old.Status
		p.Spec.Resources = asked.Resources
		p.Spec.Containers = resized(asked.Containers, old.Spec.Containers)
		p.Spec.InitContainers = resized(asked.InitContainers, old.Spec.InitContainers)
		api.KeepMetadata(p, old)
	}
	if p.Spec.Resources == nil && old.Spec.Resources != nil {
		p.Spec.Resources = old.Spec.Resources.DeepCopy()
	}
	defaultPodLevelResources(p)
	finishPodUpdate(p, old)
}

func sameContainerNames(a, b []corev1.Container) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name {
			return false
		}
	}
	return true
}

func resized(asked, old []corev1.Container) []corev1.Container {
	if old == nil {
		return nil
	}
	out := make([]corev1.Container, len(old))
	copy(out, old)
	for i := range out {
		out[i].Resources = asked[i].Resources
		out[i].ResizePolicy = asked[i].ResizePolicy
	}
	return out
}

func keepForPodStatus(p, old *corev1.Pod) {
	p.Spec = old.Spec
	p.Generation = old.Generation
	p.DeletionTimestamp = old.DeletionTimestamp
	p.OwnerReferences = old.OwnerReferences
	s, was := &p.Status, &old.Status
	if s.QOSClass == "" {
		s.QOSClass = was.QOSClass
	}
	if s.ResourceClaimStatuses == nil {
		s.ResourceClaimStatuses = was.ResourceClaimStatuses
	}
	if s.ExtendedResourceClaimStatus == nil {
		s.ExtendedResourceClaimStatus = was.ExtendedResourceClaimStatus
	}
	if was.NodeAllocatableResourceClaimStatuses == nil { // whose gates are off
		s.NodeAllocatableResourceClaimStatuses = nil
	}
	if was.VolumeHealth == nil {
		s.VolumeHealth = nil
	}
	keepObservedGenerations(s, was)
}

// keepObservedGenerations keeps the observed generations a client left out,
// matching conditions of one type in order.
func keepObservedGenerations(s, was *corev1.PodStatus) {
	if s.ObservedGeneration == 0 {
		s.ObservedGeneration = was.ObservedGeneration
	}
	left := map[corev1.PodConditionType][]int64{}
	for _, c := range was.Conditions {
		left[c.Type] = append(left[c.Type], c.ObservedGeneration)
	}
	for i := range s.Conditions {
		c := &s.Conditions[i]
		gens := left[c.Type]
		if len(gens) == 0 {
			continue
		}
		left[c.Type] = gens[1:]
		if c.ObservedGeneration == 0 {
			c.ObservedGeneration = gens[0]
		}
	}
}

func podWarnings(_ context.Context, obj, old api.Object) []string {
	if old != nil {
		return nil
	}
	p := obj.(*corev1.Pod)
	var out []string
	if msgs := validation.IsDNS1123Label(p.Name); len(msgs) != 0 && p.Name != "" {
		out = append(out, "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: "+fmt.Sprint(msgs))
	}
	return append(out, podspec.PodTemplateWarnings(&p.ObjectMeta, &p.Spec, nil)...)
}
