package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
)

// reserveFor is how long an admitted object counts although it is not stored
// yet: longer than a write takes, short enough not to hurt when it failed.
const reserveFor = 2 * time.Second

// resourceQuota keeps a namespace within its ResourceQuotas. It counts what is
// there, rather than trusting a status that a controller writes later; so that
// requests side by side do not each take the last place, what was just
// admitted counts too.
type resourceQuota struct {
	noAdmit
	read  reader
	clock clock.PassiveClock

	mu       sync.Mutex
	reserved []reservation
}

// reservation is an object admitted but perhaps not stored yet.
type reservation struct {
	group, resource string
	obj             api.Object
	until           time.Time
}

func (*resourceQuota) Name() string { return "ResourceQuota" }

func (p *resourceQuota) Validate(_ context.Context, r *Request) error {
	if r.Namespace == "" || r.Object == nil || !countable(r) {
		return nil
	}
	quotas, err := list[*corev1.ResourceQuota](p.read, "", "resourcequotas", r.Namespace)
	if err != nil {
		return forbidden(r, err)
	}
	if len(quotas) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	kind := counter{group: r.APIGroup, resource: r.Resource, now: p.clock.Now()}
	usage := kind.usage(r.Object)
	for _, name := range sortedNames(usage) {
		if q := usage[name]; q.Sign() < 0 {
			return forbidden(r, fmt.Errorf("quota usage is negative for resource(s): %s", name))
		}
	}
	for _, q := range quotas {
		if err := p.check(kind, q, usage, r); err != nil {
			return forbidden(r, err)
		}
	}
	if r.Operation() == Create && !r.DryRun && r.Object.GetName() != "" {
		copied := r.Object.DeepCopyObject().(api.Object) // the server goes on changing its own
		p.reserved = append(p.reserved, reservation{r.APIGroup, r.Resource, copied, kind.now.Add(reserveFor)})
	}
	return nil
}

// countable: creations, and the updates that change what an object uses.
func countable(r *Request) bool {
	switch r.Operation() {
	case Create:
		return r.Subresource == ""
	case Update:
		return r.is("", "services") || r.is("", "persistentvolumeclaims") || r.is("", "pods", "resize")
	}
	return false
}

func (p *resourceQuota) check(kind counter, q *corev1.ResourceQuota, usage corev1.ResourceList, r *Request) error {
	if !kind.inScope(q, r.Object) {
		return nil
	}
	hard := mask(q.Spec.Hard, usage, kind)
	if len(hard) == 0 {
		return nil
	}
	if pod, ok := r.Object.(*corev1.Pod); ok {
		if err := mustSpecify(pod, hard); err != nil {
			return fmt.Errorf("failed quota: %s: %w", q.Name, err)
		}
	}
	requested := corev1.ResourceList{}
	for name := range hard {
		v := usage[name].DeepCopy()
		if r.Old != nil && kind.inScope(q, r.Old) {
			v.Sub(kind.usage(r.Old)[name])
		}
		if v.Sign() > 0 {
			requested[name] = v
		}
	}
	if len(requested) == 0 {
		return nil
	}
	used, err := p.used(kind, q, r)
	if err != nil {
		return err
	}
	var exceeded []corev1.ResourceName
	for _, name := range sortedNames(requested) {
		total := requested[name].DeepCopy()
		total.Add(used[name])
		if total.Cmp(hard[name]) > 0 {
			exceeded = append(exceeded, name)
		}
	}
	if len(exceeded) == 0 {
		return nil
	}
	return fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s",
		q.Name, show(requested, exceeded), show(used, exceeded), show(hard, exceeded))
}

// used sums up what the quota's namespace holds, just admitted objects
// included.
func (p *resourceQuota) used(kind counter, q *corev1.ResourceQuota, r *Request) (corev1.ResourceList, error) {
	objs, err := p.read.List(r.APIGroup, r.Resource, r.Namespace)
	if err != nil {
		return nil, err
	}
	names := sets.New[string]()
	for _, o := range objs {
		names.Insert(o.GetName())
	}
	p.reserved = slices.DeleteFunc(p.reserved, func(v reservation) bool { return !v.until.After(kind.now) })
	for _, v := range p.reserved {
		if v.group == r.APIGroup && v.resource == r.Resource && v.obj.GetNamespace() == r.Namespace && !names.Has(v.obj.GetName()) && v.obj.GetName() != r.Object.GetName() {
			objs = append(slices.Clip(objs), v.obj)
		}
	}
	sum := corev1.ResourceList{}
	for _, o := range objs {
		if !kind.inScope(q, o) {
			continue
		}
		for name, v := range kind.usage(o) {
			total := sum[name]
			total.Add(v)
			sum[name] = total
		}
	}
	return sum, nil
}

// mask is the part of hard this kind of object is counted under.
func mask(hard, usage corev1.ResourceList, kind counter) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, v := range hard {
		_, counted := usage[name]
		if counted || kind.resource == "pods" && kind.group == "" && mandatory(name) {
			out[name] = v
		}
	}
	return out
}

func show(l corev1.ResourceList, names []corev1.ResourceName) string {
	var parts []string
	for _, n := range names {
		parts = append(parts, fmt.Sprintf("%s=%s", n, text(l[n])))
	}
	return strings.Join(parts, ",")
}

// counter knows what objects of one resource use.
type counter struct {
	group, resource string
	now             time.Time
}

func one() resource.Quantity { return *resource.NewQuantity(1, resource.DecimalSI) }

// usage is what one object counts for, by the names quotas use.
func (k counter) usage(obj api.Object) corev1.ResourceList {
	name := "count/" + k.resource
	if k.group != "" {
		name += "." + k.group
	}
	out := corev1.ResourceList{corev1.ResourceName(name): one()}
	switch o := obj.(type) {
	case *corev1.Pod:
		podUsage(o, k.now, out)
	case *corev1.Service:
		serviceUsage(o, out)
	case *corev1.PersistentVolumeClaim:
		claimUsage(o, out)
	case *corev1.ReplicationController, *corev1.ResourceQuota, *corev1.Secret, *corev1.ConfigMap:
		out[corev1.ResourceName(k.resource)] = one()
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
		prefix = corev1.ResourceName(class + ".storageclass.storage.k8s.io/")
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

// mandatory names must be given by every container when a quota bounds them.
func mandatory(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory:
		return true
	}
	return false
}

func mustSpecify(pod *corev1.Pod, hard corev1.ResourceList) error {
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		return nil
	}
	missing := map[corev1.ResourceName]sets.Set[string]{}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		has := corev1.ResourceList{}
		computeUsage(c.Resources.Requests, c.Resources.Limits, has)
		for name := range hard {
			if _, ok := has[name]; ok || !mandatory(name) {
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

// inScope reports whether all of a quota's scopes match an object.
func (k counter) inScope(q *corev1.ResourceQuota, obj api.Object) bool {
	var scopes []corev1.ScopedResourceSelectorRequirement
	for _, s := range q.Spec.Scopes {
		scopes = append(scopes, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		scopes = append(scopes, q.Spec.ScopeSelector.MatchExpressions...)
	}
	for _, s := range scopes {
		ok := false
		switch o := obj.(type) {
		case *corev1.Pod:
			ok = podInScope(o, s)
		case *corev1.PersistentVolumeClaim:
			ok = s.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass && selects(s, claimAttributesClass(o))
		}
		if !ok {
			return false
		}
	}
	return true
}

func claimAttributesClass(c *corev1.PersistentVolumeClaim) string {
	if c.Spec.VolumeAttributesClassName == nil {
		return ""
	}
	return *c.Spec.VolumeAttributesClassName
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
