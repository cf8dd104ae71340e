package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/quota"
	"github.com/skiff-project/skiff/apiserver/admission/config"
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
	read    reader
	clock   clock.PassiveClock
	limited []config.LimitedResource

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
	if len(quotas) == 0 && len(p.limited) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	kind := quota.Counter{Group: r.APIGroup, Resource: r.Resource, Now: p.clock.Now()}
	p.reserved = slices.DeleteFunc(p.reserved, func(v reservation) bool { return !v.until.After(kind.Now) })
	usage := kind.Usage(r.Object)
	bounds, err := boundsOf(kind, quotas, usage, r.Object)
	if err != nil {
		return forbidden(r, err)
	}
	for _, name := range sortedNames(usage) {
		if q := usage[name]; q.Sign() < 0 {
			return forbidden(r, fmt.Errorf("quota usage is negative for resource(s): %s", name))
		}
	}
	if err := p.covered(kind, quotas, bounds, usage, r); err != nil {
		return err
	}
	for _, b := range bounds {
		if err := p.check(kind, b, usage, r); err != nil {
			return forbidden(r, err)
		}
	}
	if r.Operation() == Create && !r.DryRun && r.Object.GetName() != "" {
		copied := r.Object.DeepCopyObject().(api.Object) // the server goes on changing its own
		p.reserved = append(p.reserved, reservation{r.APIGroup, r.Resource, copied, kind.Now.Add(reserveFor)})
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

// bound is a quota that holds for an object, with the part of its limits that does.
type bound struct {
	*corev1.ResourceQuota
	hard corev1.ResourceList
}

func boundsOf(kind quota.Counter, quotas []*corev1.ResourceQuota, usage corev1.ResourceList, obj api.Object) ([]bound, error) {
	var out []bound
	for _, q := range quotas {
		if !kind.InScope(q, obj) {
			continue
		}
		hard := mask(q.Spec.Hard, usage, kind)
		if len(hard) == 0 {
			continue
		}
		if pod, ok := obj.(*corev1.Pod); ok {
			if err := quota.MustSpecify(pod, hard); err != nil {
				return nil, fmt.Errorf("failed quota: %s: %w", q.Name, err)
			}
		}
		out = append(out, bound{q, hard})
	}
	return out, nil
}

// covered answers an error where what the object uses is limited by
// configuration and no quota bounds it. An update that uses no more passes.
func (p *resourceQuota) covered(kind quota.Counter, quotas []*corev1.ResourceQuota, bounds []bound, usage corev1.ResourceList, r *Request) error {
	if len(p.limited) == 0 || r.Old != nil && !more(usage, kind.Usage(r.Old)) {
		return nil
	}
	var names []string
	for _, name := range sortedNames(usage) {
		isBound := func(b bound) bool { _, ok := b.hard[name]; return ok }
		if q := usage[name]; q.Sign() > 0 && p.limits(r, string(name)) && !slices.ContainsFunc(bounds, isBound) {
			names = append(names, string(name))
		}
	}
	if len(names) > 0 {
		return forbidden(r, fmt.Errorf("insufficient quota to consume: %v", strings.Join(names, ",")))
	}
	var scopes []corev1.ScopedResourceSelectorRequirement
	for _, l := range p.limited { // of whatever resource, as upstream
		for _, s := range l.MatchScopes {
			if quota.Matches(s, r.Object) && !scoped(quotas, s.ScopeName, r.Object) {
				scopes = append(scopes, s)
			}
		}
	}
	if len(scopes) > 0 {
		return unexplained(fmt.Errorf("insufficient quota to match these scopes: %v", scopes))
	}
	return nil
}

// limits reports whether the configuration limits what is counted under name.
func (p *resourceQuota) limits(r *Request, name string) bool {
	return slices.ContainsFunc(p.limited, func(l config.LimitedResource) bool {
		return l.APIGroup == r.APIGroup && l.Resource == r.Resource &&
			slices.ContainsFunc(l.MatchContains, func(part string) bool { return strings.Contains(name, part) })
	})
}

// scoped reports whether a quota has a scope of that name which selects obj.
func scoped(quotas []*corev1.ResourceQuota, name corev1.ResourceQuotaScope, obj api.Object) bool {
	return slices.ContainsFunc(quotas, func(q *corev1.ResourceQuota) bool {
		return slices.ContainsFunc(quota.Scopes(q), func(s corev1.ScopedResourceSelectorRequirement) bool {
			return s.ScopeName == name && quota.Matches(s, obj)
		})
	})
}

// more reports whether usage is above old anywhere.
func more(usage, old corev1.ResourceList) bool {
	for name, v := range usage {
		if v.Cmp(old[name]) > 0 {
			return true
		}
	}
	return false
}

func (p *resourceQuota) check(kind quota.Counter, q bound, usage corev1.ResourceList, r *Request) error {
	requested := corev1.ResourceList{}
	for name := range q.hard {
		v := usage[name].DeepCopy()
		if r.Old != nil && kind.InScope(q.ResourceQuota, r.Old) {
			v.Sub(kind.Usage(r.Old)[name])
		}
		if v.Sign() > 0 {
			requested[name] = v
		}
	}
	if len(requested) == 0 {
		return nil
	}
	used, err := p.used(kind, q.ResourceQuota, r)
	if err != nil {
		return err
	}
	var exceeded []corev1.ResourceName
	for _, name := range sortedNames(requested) {
		total := requested[name].DeepCopy()
		total.Add(used[name])
		if total.Cmp(q.hard[name]) > 0 {
			exceeded = append(exceeded, name)
		}
	}
	if len(exceeded) == 0 {
		return nil
	}
	return fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s",
		q.Name, show(requested, exceeded), show(used, exceeded), show(q.hard, exceeded))
}

// used sums up what the quota's namespace holds, just admitted objects
// included.
func (p *resourceQuota) used(kind quota.Counter, q *corev1.ResourceQuota, r *Request) (corev1.ResourceList, error) {
	objs, err := p.read.List(r.APIGroup, r.Resource, r.Namespace)
	if err != nil {
		return nil, err
	}
	names := sets.New[string]()
	for _, o := range objs {
		names.Insert(o.GetName())
	}
	for _, v := range p.reserved {
		if v.group == r.APIGroup && v.resource == r.Resource && v.obj.GetNamespace() == r.Namespace && !names.Has(v.obj.GetName()) && v.obj.GetName() != r.Object.GetName() {
			objs = append(slices.Clip(objs), v.obj)
		}
	}
	sum := corev1.ResourceList{}
	for _, o := range objs {
		if !kind.InScope(q, o) {
			continue
		}
		for name, v := range kind.Usage(o) {
			total := sum[name]
			total.Add(v)
			sum[name] = total
		}
	}
	return sum, nil
}

// mask is the part of hard this kind of object is counted under.
func mask(hard, usage corev1.ResourceList, kind quota.Counter) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, v := range hard {
		_, counted := usage[name]
		if counted || kind.Resource == "pods" && kind.Group == "" && quota.Mandatory(name) {
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
