package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/skiff-project/skiff/api/check"
)

// checkRequirements checks requests and limits. name checks one resource name.
func checkRequirements(l *check.List, p *field.Path, r *corev1.ResourceRequirements, name func(*check.List, *field.Path, corev1.ResourceName), claims sets.Set[string]) {
	limits, requests := p.Child("limits"), p.Child("requests")
	computes, hugePages := false, false
	for n, q := range check.Sorted(r.Limits) {
		at := limits.Key(string(n))
		name(l, at, n)
		CheckQuantity(l, at, n, q)
		if IsHugePages(n) {
			hugePages = true
			checkHugePages(l, at, n, q)
		}
		computes = computes || n == corev1.ResourceCPU || n == corev1.ResourceMemory
	}
	for n, q := range check.Sorted(r.Requests) {
		at := requests.Key(string(n))
		name(l, at, n)
		CheckQuantity(l, at, n, q)
		limit, limited := r.Limits[n]
		switch {
		case limited && !OvercommitAllowed(n) && q.Cmp(limit) != 0:
			l.Invalid(requests, q.String(), fmt.Sprintf("must be equal to %s limit of %s", n, limit.String()))
		case limited && q.Cmp(limit) > 0:
			l.Invalid(requests, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", n, limit.String()))
		case !limited && !OvercommitAllowed(n):
			l.Required(limits, "Limit must be set for non overcommitable resources")
		}
		if IsHugePages(n) {
			hugePages = true
			checkHugePages(l, at, n, q)
		}
		computes = computes || n == corev1.ResourceCPU || n == corev1.ResourceMemory
	}
	if hugePages && !computes {
		l.Forbidden(p, "HugePages require cpu or memory")
	}
	checkClaimNames(l, p.Child("claims"), r.Claims, claims)
}

// checkClaimNames checks the claims a container uses against those of its pod.
func checkClaimNames(l *check.List, p *field.Path, used []corev1.ResourceClaim, claims sets.Set[string]) {
	seen := sets.Set[string]{}
	for i, c := range used {
		at := p.Index(i)
		if c.Name == "" {
			l.Required(at, "")
			continue
		}
		key := c.Name
		if c.Request != "" && !seen.Has(c.Name) {
			l.Label(at.Child("request"), c.Request)
			key += "/" + c.Request
		}
		whole := c.Request == "" && hasPrefix(seen, c.Name+"/")
		switch {
		case seen.Has(c.Name) || whole:
			l.Duplicate(at, c.Name)
		case seen.Has(key):
			l.Duplicate(at, key)
		}
		seen.Insert(key)
		if !claims.Has(c.Name) {
			err := field.NotFound(at, c.Name)
			err.Detail = "must be one of the names in pod.spec.resourceClaims which is empty"
			if len(claims) > 0 {
				err.Detail = "must be one of the names in pod.spec.resourceClaims: " + strings.Join(sets.List(claims), ", ")
			}
			l.Errors = append(l.Errors, err)
		}
	}
}

func hasPrefix(names sets.Set[string], prefix string) bool {
	for n := range names {
		if strings.HasPrefix(n, prefix) {
			return true
		}
	}
	return false
}

// checkPodResources checks requests and limits of the pod as a whole.
func checkPodResources(l *check.List, p *field.Path, s *corev1.PodSpec, claims sets.Set[string]) {
	if s.Resources == nil {
		return
	}
	at := p.Child("resources")
	if s.OS != nil && s.OS.Name == corev1.Windows {
		l.Forbidden(at, "may not be set for a windows pod")
		return
	}
	if s.Resources.Claims != nil {
		l.Forbidden(at.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	checkRequirements(l, at, s.Resources, checkPodResourceName, claims)
	pod, opts := &corev1.Pod{Spec: *s}, resourcehelper.PodResourcesOptions{}
	for n, q := range check.Sorted(resourcehelper.AggregateContainerRequests(pod, opts)) {
		if total, ok := s.Resources.Requests[n]; ok && q.Cmp(total) > 0 {
			l.Invalid(at.Child("requests").Key(string(n)), total.String(), "must be greater than or equal to aggregate container requests of "+q.String())
		}
	}
	for n, q := range check.Sorted(resourcehelper.AggregateContainerLimits(pod, opts)) {
		if total, ok := s.Resources.Limits[n]; ok && IsHugePages(n) && q.Cmp(total) > 0 {
			l.Invalid(at.Child("limits").Key(string(n)), total.String(), "must be greater than or equal to aggregate container limits of "+q.String())
		}
	}
	for i := range s.Containers {
		for n, q := range check.Sorted(s.Containers[i].Resources.Limits) {
			if total, ok := s.Resources.Limits[n]; ok && q.Cmp(total) > 0 {
				l.Invalid(at.Child("containers").Index(i).Key(string(n)).Child("limits"), q.String(), "must be less than or equal to pod limits of "+total.String())
			}
		}
	}
}

func checkPodResourceName(l *check.List, p *field.Path, name corev1.ResourceName) {
	if !CheckResourceName(l, p, name) {
		return
	}
	if !resourcehelper.IsSupportedPodLevelResource(name) {
		l.Errors = append(l.Errors, field.NotSupported(p, name, sets.List(resourcehelper.SupportedPodLevelResources())))
	}
}

// CheckOverhead checks what a pod costs beside its containers.
func CheckOverhead(l *check.List, p *field.Path, list corev1.ResourceList) {
	checkRequirements(l, p, &corev1.ResourceRequirements{Limits: list}, CheckContainerResourceName, nil)
}
