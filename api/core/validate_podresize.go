package core

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubectl/pkg/util/qos"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

const resizable = "only cpu and memory resources are mutable"

func validatePodResize(p, old *corev1.Pod) field.ErrorList {
	nowhere := field.NewPath("")
	if _, ok := old.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		return field.ErrorList{field.Forbidden(nowhere, "static pods cannot be resized")}
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		return field.ErrorList{field.Forbidden(nowhere, "windows pods cannot be resized")}
	}
	l := &check.List{}
	podspec.CheckPod(l, p)
	was := old.Status.QOSClass
	if was == "" {
		was = qos.ComputePodQOS(old)
	}
	if was != qos.ComputePodQOS(p) {
		l.Invalid(specPath, p.Status.QOSClass, "Pod QOS Class may not change as a result of resizing")
	}
	for _, c := range old.Status.ContainerStatuses {
		if c.State.Running != nil {
			l.ForbidIf(specPath, c.Resources == nil, "Pod running on node without support for resize")
			break
		}
	}
	ordered := checkResizeOrder(l, specPath.Child("containers"), "containers", p.Spec.Containers, old.Spec.Containers)
	ordered = checkResizeOrder(l, specPath.Child("initContainers"), "initContainers", p.Spec.InitContainers, old.Spec.InitContainers) && ordered
	if !ordered {
		return l.Errors
	}
	munged := p.Spec.DeepCopy()
	checkResized(l, specPath.Child("initContainers"), munged.InitContainers, old.Spec.InitContainers, true)
	checkResized(l, specPath.Child("containers"), munged.Containers, old.Spec.Containers, false)
	if munged.Resources != nil && old.Spec.Resources != nil {
		checkNotRemoved(l, specPath.Child("resources"), munged.Resources, old.Spec.Resources)
	}
	if munged.Resources != nil {
		munged.Resources = withoutComputes(munged.Resources, old.Spec.Resources)
	}
	if len(l.Errors) == 0 && api.Changed(*munged, old.Spec) {
		l.Forbidden(specPath, resizable)
	}
	return l.Errors
}

func checkResizeOrder(l *check.List, p *field.Path, name string, now, old []corev1.Container) bool {
	if len(now) != len(old) {
		l.Forbidden(p, name+" may not be added or removed on resize")
		return false
	}
	ok := true
	for i := range old {
		if now[i].Name != old[i].Name {
			l.Forbidden(p.Index(i).Child("name"), name+" may not be renamed or reordered on resize")
			ok = false
		}
	}
	return ok
}

// checkResized checks resized containers and then undoes the allowed changes in them.
func checkResized(l *check.List, p *field.Path, now, old []corev1.Container, isInit bool) {
	for i := range old {
		at := p.Index(i)
		checkNotRemoved(l, at.Child("resources"), &now[i].Resources, &old[i].Resources)
		changed := api.Changed(now[i], old[i])
		now[i].Resources = *withoutComputes(&now[i].Resources, &old[i].Resources)
		if api.Changed(now[i], old[i]) {
			if isInit {
				l.Forbidden(at, "only cpu and memory resources for init or sidecar containers are mutable")
			} else {
				l.Forbidden(specPath, resizable)
			}
		}
		if !isInit || !changed || podspec.IsSidecar(&now[i]) {
			continue
		}
		for _, r := range now[i].ResizePolicy {
			l.ForbidIf(at, r.RestartPolicy == corev1.RestartContainer, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized")
		}
	}
}

func checkNotRemoved(l *check.List, p *field.Path, now, old *corev1.ResourceRequirements) {
	l.ForbidIf(p.Child("requests"), removed(now.Requests, old.Requests), "resource requests cannot be removed")
	l.ForbidIf(p.Child("limits"), removed(now.Limits, old.Limits), "resource limits cannot be removed")
}

func removed(now, old corev1.ResourceList) bool {
	for name := range old {
		if _, ok := now[name]; !ok {
			return true
		}
	}
	return false
}

// withoutComputes returns now with cpu and memory as in old (nil means none).
func withoutComputes(now, old *corev1.ResourceRequirements) *corev1.ResourceRequirements {
	if old == nil {
		old = &corev1.ResourceRequirements{}
	}
	out := now.DeepCopy()
	undo := func(list *corev1.ResourceList, was corev1.ResourceList) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			delete(*list, name)
			if q, ok := was[name]; ok {
				if *list == nil {
					*list = corev1.ResourceList{}
				}
				(*list)[name] = q
			}
		}
	}
	undo(&out.Requests, old.Requests)
	undo(&out.Limits, old.Limits)
	return out
}

var systemConditions = sets.New(corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized)

func validatePodStatusUpdate(p, old *corev1.Pod) field.ErrorList {
	l, s := &check.List{}, &p.Status
	checkMirrorUnchanged(l, p, old)
	for i, c := range s.Conditions {
		at := statusPath.Child("conditions").Index(i)
		if c.ObservedGeneration < 0 {
			l.Invalid(at.Child("observedGeneration"), c.ObservedGeneration, "must be a non-negative integer")
		}
		if !systemConditions.Has(c.Type) {
			l.QualifiedName(at.Child("Type"), string(c.Type))
		}
	}
	if n := s.NominatedNodeName; n != old.Status.NominatedNodeName && n != "" {
		at := statusPath.Child("nominatedNodeName")
		l.Messages(at, n, apivalidation.NameIsDNSSubdomain(n, false))
		l.ForbidIf(at, old.Spec.NodeName != "", "may not be set on pods that are already bound to a node")
	}
	if s.ObservedGeneration < 0 {
		l.Invalid(statusPath.Child("observedGeneration"), s.ObservedGeneration, "must be a non-negative integer")
	}
	l.Immutable(statusPath.Child("qosClass"), s.QOSClass, old.Status.QOSClass)
	checkRevived(l, "containerStatuses", s.ContainerStatuses, old.Status.ContainerStatuses, &old.Spec, old.Spec.Containers)
	checkRevived(l, "initContainerStatuses", s.InitContainerStatuses, old.Status.InitContainerStatuses, &old.Spec, old.Spec.InitContainers)
	checkRevived(l, "ephemeralContainerStatuses", s.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, &corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever}, nil)
	checkClaimStatuses(l, p)
	if s := p.Status.ExtendedResourceClaimStatus; s != nil {
		checkExtendedClaim(l, statusPath.Child("extendedResourceClaimStatus"), s, &p.Spec)
	}
	checkPodIPs(l, s)
	return l.Errors
}

// checkRevived forbids a container that ended for good to run again.
func checkRevived(l *check.List, name string, now, old []corev1.ContainerStatus, spec *corev1.PodSpec, containers []corev1.Container) {
	if restartsAll(spec) {
		return
	}
	for i, o := range old {
		if o.State.Terminated == nil {
			continue
		}
		for _, n := range now {
			if n.Name != o.Name || n.State.Terminated != nil {
				continue
			}
			if !mayRestart(spec, containers, o.Name, o.State.Terminated.ExitCode) {
				l.Forbidden(statusPath.Child(name).Index(i).Child("state"), "may not be transitioned to non-terminated state")
			}
			break
		}
	}
}

// restartsAll tells whether some container's rules may restart the whole pod.
func restartsAll(spec *corev1.PodSpec) bool {
	all := false
	eachContainer(spec, func(c *corev1.Container) {
		for _, r := range c.RestartPolicyRules {
			all = all || r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		}
	})
	return all
}

func mayRestart(spec *corev1.PodSpec, containers []corev1.Container, name string, code int32) bool {
	policy := spec.RestartPolicy
	for i := range containers {
		c := &containers[i]
		if c.Name != name {
			continue
		}
		for _, r := range c.RestartPolicyRules {
			if r.ExitCodes == nil {
				continue
			}
			in := false
			for _, v := range r.ExitCodes.Values {
				in = in || v == code
			}
			if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
				return true
			}
		}
		if c.RestartPolicy != nil {
			policy = corev1.RestartPolicy(*c.RestartPolicy)
		}
	}
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && code != 0
}

// checkExtendedClaim checks which claim was made for the extended resources that containers ask for.
func checkExtendedClaim(l *check.List, p *field.Path, s *corev1.PodExtendedResourceClaimStatus, spec *corev1.PodSpec) {
	if len(s.RequestMappings) == 0 {
		l.Required(p.Child("requestMappings"), "at least one request mapping is required")
	}
	for i, m := range s.RequestMappings {
		at := p.Child("requestMappings").Index(i)
		containers := slices.Concat(spec.InitContainers, spec.Containers)
		k := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == m.ContainerName })
		if k < 0 {
			l.Invalid(at.Child("containerName"), m.ContainerName, "must match the name of an entry in spec.initContainers.name or spec.containers.name")
		} else if _, ok := containers[k].Resources.Requests[corev1.ResourceName(m.ResourceName)]; !ok {
			l.Invalid(at.Child("resourceName"), m.ResourceName, "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests")
		}
		l.Label(p.Child("requestName"), m.RequestName)
		if slices.Contains(s.RequestMappings[:i], m) {
			l.Duplicate(at.Child("containerName"), m.ContainerName)
			l.Duplicate(at.Child("resourceName"), m.ResourceName)
			l.Duplicate(at.Child("requestName"), m.RequestName)
		}
	}
	if at := p.Child("resourceClaimName"); s.ResourceClaimName == "" {
		l.Required(at, "")
	} else {
		l.Messages(at, s.ResourceClaimName, apivalidation.NameIsDNSSubdomain(s.ResourceClaimName, false))
	}
}

func checkClaimStatuses(l *check.List, p *corev1.Pod) {
	known, seen := sets.Set[string]{}, sets.Set[string]{}
	for _, c := range p.Spec.ResourceClaims {
		known.Insert(c.Name)
	}
	for i, c := range p.Status.ResourceClaimStatuses {
		at := statusPath.Child("resourceClaimStatuses").Index(i)
		if c.ResourceClaimName != nil {
			l.Messages(at.Child("resourceClaimName"), *c.ResourceClaimName, apivalidation.NameIsDNSSubdomain(*c.ResourceClaimName, false))
		}
		if !known.Has(c.Name) {
			l.Invalid(at.Child("name"), c.Name, "must match the name of an entry in `spec.resourceClaims`")
		}
		if seen.Has(c.Name) {
			l.Duplicate(at.Child("name"), c.Name)
		}
		seen.Insert(c.Name)
	}
}

func checkPodIPs(l *check.List, s *corev1.PodStatus) {
	at := statusPath.Child("podIPs")
	for i, ip := range s.PodIPs {
		l.IP(at.Index(i), ip.IP)
	}
	if len(s.PodIPs) > 2 || len(s.PodIPs) == 2 && isIPv6(s.PodIPs[0].IP) == isIPv6(s.PodIPs[1].IP) {
		l.Invalid(at, s.PodIPs, "may specify no more than one IP for each IP family")
	}
	switch {
	case (s.PodIP != "") != (len(s.PodIPs) > 0):
		l.Invalid(at, s.PodIPs, "podIP and podIPs must either both be set or both be unset")
	case s.PodIP != "" && s.PodIP != s.PodIPs[0].IP:
		l.Invalid(at.Index(0).Child("ip"), s.PodIPs[0].IP, "must be equal to `podIP`")
	}
	for i, ip := range s.HostIPs {
		l.IP(statusPath.Child("hostIPs").Index(i), ip.IP)
	}
	if len(s.HostIPs) > 0 && s.HostIP != s.HostIPs[0].IP {
		l.Invalid(statusPath.Child("hostIPs").Index(0).Child("ip"), s.HostIPs[0].IP, "must be equal to `hostIP`")
	}
}
