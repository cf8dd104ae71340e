// Package quota counts what objects use of a namespace's ResourceQuotas:
// objects in, quantities out. Admission and the quota controller share it.
package quota

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcehelper "k8s.io/component-helpers/resource"
)

// classInfix stands between a storage class and what is counted of it.
const classInfix = ".storageclass.storage.k8s.io/"

// Counter knows what objects of one resource use.
type Counter struct {
	Group, Resource string
	Now             time.Time // a pod whose time to end has passed uses nothing
}

func one() resource.Quantity { return *resource.NewQuantity(1, resource.DecimalSI) }

// Usage is what one object counts for, by the names quotas use.
func (k Counter) Usage(obj any) corev1.ResourceList {
	name := "count/" + k.Resource
	if k.Group != "" {
		name += "." + k.Group
	}
	out := corev1.ResourceList{corev1.ResourceName(name): one()}
	switch o := obj.(type) {
	case *corev1.Pod:
		podUsage(o, k.Now, out)
	case *corev1.Service:
		serviceUsage(o, out)
	case *corev1.PersistentVolumeClaim:
		claimUsage(o, out)
	case *corev1.ReplicationController, *corev1.ResourceQuota, *corev1.Secret, *corev1.ConfigMap:
		out[corev1.ResourceName(k.Resource)] = one()
	}
	return out
}

// podUsage: a pod that has ended, or should have, uses nothing but its place
// in the store.
func podUsage(pod *corev1.Pod, now time.Time, out corev1.ResourceList) {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return
	}
	if ts := pod.DeletionTimestamp; ts != nil && pod.DeletionGracePeriodSeconds != nil &&
		now.After(ts.Add(time.Duration(*pod.DeletionGracePeriodSeconds)*time.Second)) {
		return
	}
	opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	computeUsage(resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts), out)
}

func computeUsage(requests, limits, out corev1.ResourceList) {
	out[corev1.ResourcePods] = one()
	for name, v := range requests {
		switch {
		case name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage,
			strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			out[name] = v
			out["requests."+name] = v
		case strings.Contains(string(name), "/"):
			out["requests."+name] = v
		}
	}
	for name, v := range limits {
		switch name {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
			out["limits."+name] = v
		}
	}
}

func serviceUsage(s *corev1.Service, out corev1.ResourceList) {
	out[corev1.ResourceServices] = one()
	ports := 0
	switch {
	case s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.AllocateLoadBalancerNodePorts != nil && !*s.Spec.AllocateLoadBalancerNodePorts:
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				ports++
			}
		}
	case s.Spec.Type == corev1.ServiceTypeLoadBalancer, s.Spec.Type == corev1.ServiceTypeNodePort:
		ports = len(s.Spec.Ports)
	}
	out[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(int64(ports), resource.DecimalSI)
	out[corev1.ResourceServicesLoadBalancers] = *resource.NewQuantity(0, resource.DecimalSI)
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		out[corev1.ResourceServicesLoadBalancers] = one()
	}
}

func claimUsage(c *corev1.PersistentVolumeClaim, out corev1.ResourceList) {
	prefix := corev1.ResourceName("")
	if class := className(c); class != "" {
		prefix = corev1.ResourceName(class + classInfix)
		out[prefix+corev1.ResourcePersistentVolumeClaims] = one()
	}
	out[corev1.ResourcePersistentVolumeClaims] = one()
	size, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]
	if !ok {
		return
	}
	if got := c.Status.AllocatedResources[corev1.ResourceStorage]; got.Cmp(size) > 0 {
		size = got
	}
	size = size.DeepCopy()
	size.RoundUp(0)
	out[corev1.ResourceRequestsStorage] = size
	if prefix != "" {
		out[prefix+corev1.ResourceRequestsStorage] = size
	}
}

// Mandatory names must be given by every container when a quota bounds them.
func Mandatory(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory:
		return true
	}
	return false
}

// MustSpecify returns an error that names the containers of pod which lack a
// request or limit that hard bounds.
func MustSpecify(pod *corev1.Pod, hard corev1.ResourceList) error {
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		return nil
	}
	missing := map[corev1.ResourceName]sets.Set[string]{}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		has := corev1.ResourceList{}
		computeUsage(c.Resources.Requests, c.Resources.Limits, has)
		for name := range hard {
			if _, ok := has[name]; ok || !Mandatory(name) {
				continue
			}
			if missing[name] == nil {
				missing[name] = sets.New[string]()
			}
			missing[name].Insert(c.Name)
		}
	}
	var parts []string
	for name, containers := range missing {
		parts = append(parts, fmt.Sprintf("%s for: %s", name, strings.Join(sets.List(containers), ",")))
	}
	if len(parts) == 0 {
		return nil
	}
	slices.Sort(parts)
	return errors.New("must specify " + strings.Join(parts, "; "))
}

// InScope reports whether all of a quota's scopes match an object.
func (k Counter) InScope(q *corev1.ResourceQuota, obj any) bool {
	return !slices.ContainsFunc(Scopes(q), func(s corev1.ScopedResourceSelectorRequirement) bool { return !Matches(s, obj) })
}

// Scopes are a quota's, in the longer form.
func Scopes(q *corev1.ResourceQuota) []corev1.ScopedResourceSelectorRequirement {
	var scopes []corev1.ScopedResourceSelectorRequirement
	for _, s := range q.Spec.Scopes {
		scopes = append(scopes, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		scopes = append(scopes, q.Spec.ScopeSelector.MatchExpressions...)
	}
	return scopes
}

// Matches reports whether one scope selects an object.
func Matches(s corev1.ScopedResourceSelectorRequirement, obj any) bool {
	switch o := obj.(type) {
	case *corev1.Pod:
		return podInScope(o, s)
	case *corev1.PersistentVolumeClaim:
		return s.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass &&
			slices.ContainsFunc(attributesClasses(o), func(class string) bool { return selects(s, class) })
	}
	return false
}

// attributesClasses are those a claim has, asks for, or is on the way to; "" alone if there are none.
func attributesClasses(c *corev1.PersistentVolumeClaim) (out []string) {
	for _, name := range []*string{c.Spec.VolumeAttributesClassName, c.Status.CurrentVolumeAttributesClassName} {
		if name != nil && *name != "" {
			out = append(out, *name)
		}
	}
	if m := c.Status.ModifyVolumeStatus; m != nil && m.TargetVolumeAttributesClassName != "" {
		out = append(out, m.TargetVolumeAttributesClassName)
	}
	if out == nil {
		return []string{""}
	}
	return out
}

func podInScope(pod *corev1.Pod, s corev1.ScopedResourceSelectorRequirement) bool {
	terminating := pod.Spec.ActiveDeadlineSeconds != nil && *pod.Spec.ActiveDeadlineSeconds >= 0
	switch s.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return terminating
	case corev1.ResourceQuotaScopeNotTerminating:
		return !terminating
	case corev1.ResourceQuotaScopeBestEffort:
		return bestEffort(pod)
	case corev1.ResourceQuotaScopeNotBestEffort:
		return !bestEffort(pod)
	case corev1.ResourceQuotaScopePriorityClass:
		return selects(s, pod.Spec.PriorityClassName)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossNamespace(pod)
	}
	return false
}

// selects matches one value, "" when unset, against a selector.
func selects(s corev1.ScopedResourceSelectorRequirement, value string) bool {
	switch s.Operator {
	case corev1.ScopeSelectorOpExists:
		return value != ""
	case corev1.ScopeSelectorOpDoesNotExist:
		return value == ""
	case corev1.ScopeSelectorOpIn:
		return value != "" && slices.Contains(s.Values, value)
	case corev1.ScopeSelectorOpNotIn:
		return value == "" || !slices.Contains(s.Values, value)
	}
	return false
}

// bestEffort: no container asks for or limits CPU or memory.
func bestEffort(pod *corev1.Pod) bool {
	none := func(r corev1.ResourceRequirements) bool {
		for _, l := range []corev1.ResourceList{r.Requests, r.Limits} {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				if v, ok := l[name]; ok && v.Sign() > 0 {
					return false
				}
			}
		}
		return true
	}
	if pod.Spec.Resources != nil && !none(*pod.Spec.Resources) {
		return false
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if !none(c.Resources) {
			return false
		}
	}
	return true
}

func crossNamespace(pod *corev1.Pod) bool {
	if pod.Spec.Affinity == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	if a := pod.Spec.Affinity.PodAffinity; a != nil {
		terms = append(terms, a.RequiredDuringSchedulingIgnoredDuringExecution...)
		for _, w := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	if a := pod.Spec.Affinity.PodAntiAffinity; a != nil {
		terms = append(terms, a.RequiredDuringSchedulingIgnoredDuringExecution...)
		for _, w := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool {
		return len(t.Namespaces) > 0 || t.NamespaceSelector != nil
	})
}

func className(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

// Counts returns the resource whose objects are counted under name, a key of a
// quota's hard limits; ok is false for a name nothing is counted under.
func Counts(name corev1.ResourceName) (gr schema.GroupResource, ok bool) {
	text := string(name)
	if counted, ok := strings.CutPrefix(text, "count/"); ok {
		return schema.ParseGroupResource(counted), true
	}
	switch {
	case name == corev1.ResourceServices, name == corev1.ResourceServicesNodePorts, name == corev1.ResourceServicesLoadBalancers:
		return schema.GroupResource{Resource: "services"}, true
	case name == corev1.ResourceConfigMaps, name == corev1.ResourceSecrets, name == corev1.ResourceReplicationControllers, name == corev1.ResourceQuotas:
		return schema.GroupResource{Resource: text}, true
	case name == corev1.ResourcePersistentVolumeClaims, name == corev1.ResourceRequestsStorage, strings.Contains(text, classInfix):
		return schema.GroupResource{Resource: "persistentvolumeclaims"}, true
	case name == corev1.ResourcePods, name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage,
		name == corev1.ResourceLimitsCPU, name == corev1.ResourceLimitsMemory, name == corev1.ResourceLimitsEphemeralStorage,
		strings.HasPrefix(text, "requests."), strings.HasPrefix(text, corev1.ResourceHugePagesPrefix):
		return schema.GroupResource{Resource: "pods"}, true
	}
	return schema.GroupResource{}, false
}
