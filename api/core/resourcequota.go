package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func resourceQuotaResource() *api.Resource {
	return &api.Resource{
		Name: "resourcequotas", Singular: "resourcequota", Kind: "ResourceQuota",
		ShortNames: []string{"quota"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[corev1.ResourceQuota, corev1.ResourceQuotaList]("v1", defaultResourceQuota)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(q *corev1.ResourceQuota) { q.Status = corev1.ResourceQuotaStatus{} }),
			PrepareForUpdate: api.OnUpdate(func(q, old *corev1.ResourceQuota) { q.Status = old.Status }),
			Validate:         api.Check(validateQuota),
			ValidateUpdate:   api.CheckUpdate(validateQuotaUpdate),
		},
		Subresources: []api.Subresource{
			api.StatusView(func(q, old *corev1.ResourceQuota) { q.Spec = old.Spec }, func(q, _ *corev1.ResourceQuota) field.ErrorList {
				l := &check.List{}
				checkQuotaAmounts(l, statusPath.Child("hard"), q.Status.Hard)
				checkQuotaAmounts(l, statusPath.Child("used"), q.Status.Used)
				return l.Errors
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Request", "string", "Request represents a minimum amount of cpu/memory that a container may consume."),
			api.Column("Limit", "string", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."),
			api.AgeColumn(),
		},
		Cells: api.Row(quotaCells),
	}
}

func quotaCells(q *corev1.ResourceQuota, now metav1.Time) []any {
	var requests, limits []string
	for name, hard := range check.Sorted(q.Status.Hard) {
		used := q.Status.Used[name]
		text := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
		if strings.HasPrefix(string(name), "limits.") {
			limits = append(limits, text)
		} else {
			requests = append(requests, text)
		}
	}
	return []any{q.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), api.Age(q.CreationTimestamp, now)}
}

func checkQuotaAmounts(l *check.List, p *field.Path, list corev1.ResourceList) {
	for name, q := range check.Sorted(list) {
		at := p.Key(string(name))
		podspec.CheckResourceName(l, at, name)
		if !strings.Contains(string(name), "/") && !podspec.IsStandardQuota(name) {
			l.Invalid(at, name, "must be a standard resource for quota")
		}
		podspec.CheckQuantity(l, at, name, q)
	}
}

func validateQuota(q *corev1.ResourceQuota) field.ErrorList {
	l := &check.List{}
	checkQuotaAmounts(l, specPath.Child("hard"), q.Spec.Hard)
	checkScopes(l, &q.Spec)
	checkScopeSelector(l, &q.Spec)
	return l.Errors
}

var quotaScopes = sets.New(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating,
	corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass,
	corev1.ResourceQuotaScopeVolumeAttributesClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity)

var podCompute = podspec.NameSet("cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory")

func scopeCovers(scope corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch scope {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return name == corev1.ResourcePods || podCompute[name]
	}
	return true
}

func checkScopes(l *check.List, s *corev1.ResourceQuotaSpec) {
	at, seen := specPath.Child("scopes"), sets.Set[corev1.ResourceQuotaScope]{}
	for _, scope := range s.Scopes {
		if !quotaScopes.Has(scope) {
			l.Invalid(at, s.Scopes, "unsupported scope")
		}
		for n := range check.Sorted(s.Hard) {
			if podspec.IsStandardQuota(n) && !scopeCovers(scope, n) {
				l.Invalid(at, s.Scopes, "unsupported scope applied to resource")
			}
		}
		seen.Insert(scope)
	}
	checkScopeConflict(l, at, s, seen)
}

func checkScopeConflict(l *check.List, p *field.Path, s *corev1.ResourceQuotaSpec, seen sets.Set[corev1.ResourceQuotaScope]) {
	if seen.HasAll(corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort) {
		l.Invalid(p, s.Scopes, "conflicting scopes")
	}
	if seen.HasAll(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating) {
		l.Invalid(p, s.Scopes, "conflicting scopes")
	}
}

func checkScopeSelector(l *check.List, s *corev1.ResourceQuotaSpec) {
	if s.ScopeSelector == nil {
		return
	}
	at, seen := specPath.Child("scopeSelector", "matchExpressions"), sets.Set[corev1.ResourceQuotaScope]{}
	for _, r := range s.ScopeSelector.MatchExpressions {
		if !quotaScopes.Has(r.ScopeName) {
			l.Invalid(at.Child("scopeName"), r.ScopeName, "unsupported scope")
		}
		for n := range check.Sorted(s.Hard) {
			if podspec.IsStandardQuota(n) && !scopeCovers(r.ScopeName, n) {
				l.Invalid(at, s.ScopeSelector, "unsupported scope applied to resource")
			}
		}
		named := r.ScopeName == corev1.ResourceQuotaScopePriorityClass || r.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass
		if quotaScopes.Has(r.ScopeName) && !named && r.Operator != corev1.ScopeSelectorOpExists {
			l.Invalid(at.Child("operator"), r.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				l.Required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) != 0 {
				l.Invalid(at.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
			}
		default:
			l.Invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
		}
		seen.Insert(r.ScopeName)
	}
	checkScopeConflict(l, at, s, seen)
}

func validateQuotaUpdate(q, old *corev1.ResourceQuota) field.ErrorList {
	l := &check.List{}
	l.Add(validateQuota(q))
	if !sets.New(q.Spec.Scopes...).Equal(sets.New(old.Spec.Scopes...)) {
		l.Invalid(specPath.Child("scopes"), q.Spec.Scopes, apivalidation.FieldImmutableErrorMsg)
	}
	return l.Errors
}
