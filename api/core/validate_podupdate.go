package core

import (
	"fmt"
	"math"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// updatable names what may change in a pod's spec, as users are told.
var updatable = strings.Join([]string{
	"`spec.containers[*].image`", "`spec.initContainers[*].image`", "`spec.activeDeadlineSeconds`",
	"`spec.tolerations` (only additions to existing tolerations)",
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
}, ",")

func validatePod(p *corev1.Pod) field.ErrorList {
	l := &check.List{}
	podspec.CheckPod(l, p)
	if len(p.Spec.EphemeralContainers) > 0 {
		l.Forbidden(specPath.Child("ephemeralContainers"), "cannot be set on create")
	}
	if p.Spec.NodeName != "" && len(p.Spec.SchedulingGates) != 0 {
		l.Forbidden(specPath.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	return l.Errors
}

func validatePodUpdate(p, old *corev1.Pod) field.ErrorList {
	l := &check.List{}
	podspec.CheckPod(l, p)
	checkMirrorUnchanged(l, p, old)
	if !checkImages(l, specPath.Child("containers"), p.Spec.Containers, old.Spec.Containers) ||
		!checkImages(l, specPath.Child("initContainers"), p.Spec.InitContainers, old.Spec.InitContainers) ||
		!checkDeadlineChange(l, p, old) {
		return l.Errors
	}
	checkAddedTolerations(l, p.Spec.Tolerations, old.Spec.Tolerations)
	checkDeletedGates(l, p.Spec.SchedulingGates, old.Spec.SchedulingGates)
	if !api.Changed(p.Spec, old.Spec) {
		return l.Errors
	}
	munged := mungePod(p, old)
	if len(old.Spec.SchedulingGates) > 0 {
		checkGatedChange(l, munged, &old.Spec)
	}
	if api.Changed(*munged, old.Spec) {
		l.Forbidden(specPath, fmt.Sprintf("pod updates may not change fields other than %s\n%v", updatable, diff.Diff(old.Spec, *munged)))
	}
	return l.Errors
}

func checkMirrorUnchanged(l *check.List, p, old *corev1.Pod) {
	const key = corev1.MirrorPodAnnotationKey
	if v, was := p.Annotations[key], old.Annotations[key]; v != was {
		l.Invalid(field.NewPath("metadata", "annotations").Key(key), v, apivalidation.FieldImmutableErrorMsg)
	}
}

func checkImages(l *check.List, p *field.Path, now, old []corev1.Container) bool {
	if len(now) != len(old) {
		l.Forbidden(p, "pod updates may not add or remove containers")
		return false
	}
	for i := range now {
		l.Text(p.Index(i).Child("image"), now[i].Image)
		podspec.CheckImageSpace(l, p.Index(i), &now[i])
	}
	return true
}

// checkDeadlineChange lets the deadline only appear or shrink; false stops further checks.
func checkDeadlineChange(l *check.List, p, old *corev1.Pod) bool {
	at := specPath.Child("activeDeadlineSeconds")
	now, was := p.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds
	switch {
	case now == nil && was != nil:
		l.Invalid(at, now, "must not update from a positive integer to nil value")
	case now == nil:
	case *now < 0 || *now > math.MaxInt32:
		l.Range(at, *now, 0, math.MaxInt32)
		return false
	case was != nil && *was < *now:
		l.Invalid(at, *now, "must be less than or equal to previous value")
		return false
	}
	return true
}

func checkAddedTolerations(l *check.List, now, old []corev1.Toleration) {
	at := specPath.Child("tolerations")
	for _, o := range old {
		found := false
		for _, n := range now {
			o.TolerationSeconds = n.TolerationSeconds
			if found = reflect.DeepEqual(o, n); found {
				break
			}
		}
		if !found {
			l.Forbidden(at, "existing toleration can not be modified except its tolerationSeconds")
			return
		}
	}
}

func checkDeletedGates(l *check.List, now, old []corev1.PodSchedulingGate) {
	had := sets.Set[string]{}
	for _, g := range old {
		had.Insert(g.Name)
	}
	for i, g := range now {
		if !had.Has(g.Name) {
			l.Forbidden(specPath.Child("schedulingGates").Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name))
		}
	}
}

// mungePod undoes the changes that are allowed, or have been judged already.
func mungePod(p, old *corev1.Pod) *corev1.PodSpec {
	s := p.Spec.DeepCopy()
	for i := range s.Containers {
		s.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range s.InitContainers {
		s.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	s.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	s.SchedulingGates = old.Spec.SchedulingGates
	s.Tolerations = old.Spec.Tolerations
	now, was := s.TerminationGracePeriodSeconds, old.Spec.TerminationGracePeriodSeconds
	if was != nil && *was < 0 && now != nil && *now == 1 {
		s.TerminationGracePeriodSeconds = was
	}
	return s
}

// checkGatedChange lets a gated pod get a narrower node selector and affinity;
// it undoes those changes in s.
func checkGatedChange(l *check.List, s, old *corev1.PodSpec) {
	for k, v := range old.NodeSelector {
		if now, ok := s.NodeSelector[k]; !ok || now != v {
			l.Invalid(specPath.Child("nodeSelector"), s.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
			break
		}
	}
	s.NodeSelector = old.NodeSelector
	var was, now *corev1.NodeAffinity
	if old.Affinity != nil {
		was = old.Affinity.NodeAffinity
	}
	if s.Affinity != nil {
		now = s.Affinity.NodeAffinity
	}
	if !api.Changed(was, now) {
		return
	}
	checkNarrower(l, specPath.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"), now, was)
	switch {
	case s.Affinity == nil:
		s.Affinity = &corev1.Affinity{NodeAffinity: was}
	case old.Affinity == nil && s.Affinity.PodAffinity == nil && s.Affinity.PodAntiAffinity == nil:
		s.Affinity = nil
	default:
		s.Affinity.NodeAffinity = was
	}
}

func checkNarrower(l *check.List, p *field.Path, now, was *corev1.NodeAffinity) {
	if was == nil || was.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return
	}
	var terms []corev1.NodeSelectorTerm
	if now != nil && now.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		terms = now.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	old := was.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	if len(old) > 0 && len(old) != len(terms) {
		l.Invalid(p.Child("nodeSelectorTerms"), terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
		return
	}
	for i := range old {
		empty := len(old[i].MatchExpressions)+len(old[i].MatchFields) == 0
		if empty && len(terms[i].MatchExpressions)+len(terms[i].MatchFields) > 0 ||
			!startsWith(terms[i].MatchExpressions, old[i].MatchExpressions) || !startsWith(terms[i].MatchFields, old[i].MatchFields) {
			l.Invalid(p.Child("nodeSelectorTerms").Index(i), terms[i], "only additions are allowed (no mutations or deletions)")
		}
	}
}

func startsWith(list, prefix []corev1.NodeSelectorRequirement) bool {
	return len(list) >= len(prefix) && !api.Changed(list[:len(prefix)], prefix)
}

func validateEphemeralContainersUpdate(p, old *corev1.Pod) field.ErrorList {
	if _, ok := old.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	l := &check.List{}
	podspec.CheckPod(l, p)
	at := specPath.Child("ephemeralContainers")
	now := map[string]*corev1.EphemeralContainer{}
	for i := range p.Spec.EphemeralContainers {
		now[p.Spec.EphemeralContainers[i].Name] = &p.Spec.EphemeralContainers[i]
	}
	for _, o := range old.Spec.EphemeralContainers {
		if n := now[o.Name]; n == nil {
			l.Forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", o.Name))
		} else if api.Changed(o, *n) {
			l.Forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", o.Name, diff.Diff(o, *n)))
		}
	}
	return l.Errors
}
