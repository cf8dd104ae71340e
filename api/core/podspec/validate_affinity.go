package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

const (
	required  = "requiredDuringSchedulingIgnoredDuringExecution"
	preferred = "preferredDuringSchedulingIgnoredDuringExecution"
)

func checkAffinity(l *check.List, p *field.Path, a *corev1.Affinity) {
	if a == nil {
		return
	}
	if n := a.NodeAffinity; n != nil {
		at := p.Child("nodeAffinity")
		if n.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			CheckNodeSelector(l, at.Child(required), n.RequiredDuringSchedulingIgnoredDuringExecution)
		}
		for i, t := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			term := at.Child(preferred).Index(i)
			checkWeight(l, term, t.Weight)
			checkNodeTerm(l, term.Child("preference"), &t.Preference, false)
		}
	}
	if n := a.PodAffinity; n != nil {
		checkPodTerms(l, p.Child("podAffinity"), n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if n := a.PodAntiAffinity; n != nil {
		checkPodTerms(l, p.Child("podAntiAffinity"), n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func checkWeight(l *check.List, p *field.Path, weight int32) {
	if weight <= 0 || weight > 100 {
		l.Invalid(p.Child("weight"), weight, "must be in the range 1-100")
	}
}

// CheckNodeSelector checks a node selector, as pods and volumes have it.
func CheckNodeSelector(l *check.List, p *field.Path, s *corev1.NodeSelector) {
	terms := p.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		l.Required(terms, "must have at least one node selector term")
	}
	for i := range s.NodeSelectorTerms {
		checkNodeTerm(l, terms.Index(i), &s.NodeSelectorTerms[i], true)
	}
}

func checkNodeTerm(l *check.List, p *field.Path, t *corev1.NodeSelectorTerm, checkValues bool) {
	for i, r := range t.MatchExpressions {
		checkNodeRequirement(l, p.Child("matchExpressions").Index(i), &r, checkValues)
	}
	for i, r := range t.MatchFields {
		checkNodeField(l, p.Child("matchFields").Index(i), &r)
	}
}

func checkNodeRequirement(l *check.List, p *field.Path, r *corev1.NodeSelectorRequirement, checkValues bool) {
	values := p.Child("values")
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) == 0 {
			l.Required(values, "must be specified when `operator` is 'In' or 'NotIn'")
		}
	case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			l.Forbidden(values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
		}
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			l.Required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'")
		}
	default:
		l.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator")
	}
	l.LabelName(p.Child("key"), r.Key)
	if !checkValues {
		return
	}
	for i, v := range r.Values {
		l.Messages(values.Index(i), v, validation.IsValidLabelValue(v))
	}
}

func checkNodeField(l *check.List, p *field.Path, r *corev1.NodeSelectorRequirement) {
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) != 1 {
			l.Required(p.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
		}
	default:
		l.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator")
	}
	if r.Key != metav1.ObjectNameField {
		l.Invalid(p.Child("key"), r.Key, "not a valid field selector key")
		return
	}
	for i, v := range r.Values {
		l.Messages(p.Child("values").Index(i), v, apivalidation.NameIsDNSSubdomain(v, false))
	}
}

func checkPodTerms(l *check.List, p *field.Path, musts []corev1.PodAffinityTerm, mays []corev1.WeightedPodAffinityTerm) {
	for i := range musts {
		checkPodTerm(l, p.Child(required).Index(i), &musts[i])
	}
	for i := range mays {
		at := p.Child(preferred).Index(i)
		checkWeight(l, at, mays[i].Weight)
		checkPodTerm(l, at.Child("podAffinityTerm"), &mays[i].PodAffinityTerm)
	}
}

func checkPodTerm(l *check.List, p *field.Path, t *corev1.PodAffinityTerm) {
	l.Selector(p.Child("labelSelector"), t.LabelSelector)
	l.Selector(p.Child("namespaceSelector"), t.NamespaceSelector)
	for _, ns := range t.Namespaces {
		l.Messages(p.Child("namespace"), ns, apivalidation.ValidateNamespaceName(ns, false))
	}
	checkLabelKeys(l, p, t.MatchLabelKeys, t.MismatchLabelKeys, t.LabelSelector)
	if t.TopologyKey == "" {
		l.Required(p.Child("topologyKey"), "can not be empty")
	}
	l.LabelName(p.Child("topologyKey"), t.TopologyKey)
}

// checkLabelKeys checks matchLabelKeys and mismatchLabelKeys beside the
// selector they were, or will be, merged into.
func checkLabelKeys(l *check.List, p *field.Path, match, mismatch []string, sel *metav1.LabelSelector) {
	for name, keys := range check.Sorted(map[string][]string{"matchLabelKeys": match, "mismatchLabelKeys": mismatch}) {
		if len(keys) > 0 && sel == nil {
			l.Forbidden(p.Child(name), "must not be specified when labelSelector is not set")
			continue
		}
		for i, k := range keys {
			l.LabelName(p.Child(name).Index(i), k)
		}
	}
	if sel != nil {
		at := map[string]int{}
		for i, k := range match {
			at[k] = i
		}
		seen := sets.KeySet(sel.MatchLabels)
		for _, e := range sel.MatchExpressions {
			if i, ok := at[e.Key]; ok && seen.Has(e.Key) {
				l.Invalid(p.Index(i), e.Key, "exists in both matchLabelKeys and labelSelector")
			}
			seen.Insert(e.Key)
		}
	}
	not := sets.New(mismatch...)
	for i, k := range match {
		if not.Has(k) {
			l.Invalid(p.Child("matchLabelKeys").Index(i), k, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

func checkSpread(l *check.List, p *field.Path, constraints []corev1.TopologySpreadConstraint) {
	for i := range constraints {
		c, at := &constraints[i], p.Index(i)
		l.Positive(at.Child("maxSkew"), int64(c.MaxSkew))
		if c.TopologyKey == "" {
			l.Required(at.Child("topologyKey"), "can not be empty")
		}
		check.OneOf(l, at.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)
		for _, other := range constraints[i+1:] {
			if other.TopologyKey == c.TopologyKey && other.WhenUnsatisfiable == c.WhenUnsatisfiable {
				l.Duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable))
				break
			}
		}
		if c.MinDomains != nil {
			l.Positive(at.Child("minDomains"), int64(*c.MinDomains))
			if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				l.Invalid(at.Child("minDomains"), c.MinDomains, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable))
			}
		}
		for name, policy := range check.Sorted(map[string]*corev1.NodeInclusionPolicy{"nodeAffinityPolicy": c.NodeAffinityPolicy, "nodeTaintsPolicy": c.NodeTaintsPolicy}) {
			if policy != nil {
				check.OneOf(l, at.Child(name), *policy, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)
			}
		}
		checkLabelKeys(l, at, c.MatchLabelKeys, nil, c.LabelSelector)
		l.Selector(at.Child("labelSelector"), c.LabelSelector)
	}
}

// CheckTolerations checks tolerations, as pods and runtime classes have them.
func CheckTolerations(l *check.List, p *field.Path, tolerations []corev1.Toleration) {
	for i := range tolerations {
		t, at := &tolerations[i], p.Index(i)
		if t.Key != "" {
			l.LabelName(at.Child("key"), t.Key)
		} else if t.Operator != corev1.TolerationOpExists {
			l.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			l.Invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		switch t.Operator {
		case corev1.TolerationOpEqual, "":
			if msgs := validation.IsValidLabelValue(t.Value); len(msgs) != 0 {
				l.Invalid(at.Child("operator"), t.Value, strings.Join(msgs, ";"))
			}
		case corev1.TolerationOpExists:
			if t.Value != "" {
				l.Invalid(at.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
			}
		case corev1.TolerationOpLt, corev1.TolerationOpGt: // a feature that is off by default
			check.OneOf(l, at.Child("operator"), "", corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt)
			l.Errors[len(l.Errors)-1].BadValue = t.Operator
		default:
			check.OneOf(l, at.Child("operator"), t.Operator, corev1.TolerationOpEqual, corev1.TolerationOpExists)
		}
		if t.Effect != "" {
			CheckTaintEffect(l, at.Child("effect"), t.Effect)
		}
	}
}

// CheckTaintEffect checks that an effect is one of the three.
func CheckTaintEffect(l *check.List, p *field.Path, e corev1.TaintEffect) {
	check.OneOf(l, p, e, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
}
