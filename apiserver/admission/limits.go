package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	resourcehelper "k8s.io/component-helpers/resource"
)

// limitRanger applies a namespace's LimitRanges: defaults first, then minimum,
// maximum and ratio.
type limitRanger struct{ read reader }

func (limitRanger) Name() string { return "LimitRanger" }

// ranges returns the ranges a request is under, none when it is none of
// limitRanger's business. Containers cannot change on an ordinary update.
func (p limitRanger) ranges(r *Request) ([]*corev1.LimitRange, error) {
	op := r.Operation()
	switch {
	case r.is("", "pods") && op == Create, r.is("", "pods", "resize") && op == Update:
	case r.is("", "persistentvolumeclaims") && (op == Create || op == Update):
	default:
		return nil, nil
	}
	if r.Old != nil && r.Old.GetDeletionTimestamp() != nil {
		return nil, nil
	}
	ranges, err := list[*corev1.LimitRange](p.read, "", "limitranges", r.Namespace)
	if err != nil {
		return nil, forbidden(r, fmt.Errorf("unable to %s %s at this time because there was an error enforcing limit ranges", op, r.Resource))
	}
	return ranges, nil
}

func (p limitRanger) Admit(_ context.Context, r *Request) error {
	pod, ok := r.Object.(*corev1.Pod)
	if !ok {
		return nil
	}
	ranges, err := p.ranges(r)
	for _, lr := range ranges {
		applyDefaults(lr, pod)
	}
	return err
}

func (p limitRanger) Validate(_ context.Context, r *Request) error {
	ranges, err := p.ranges(r)
	if err != nil {
		return err
	}
	for _, lr := range ranges {
		var errs []error
		for _, limit := range lr.Spec.Limits {
			switch o := r.Object.(type) {
			case *corev1.Pod:
				errs = append(errs, checkPodLimit(limit, o)...)
			case *corev1.PersistentVolumeClaim:
				errs = append(errs, checkClaimLimit(limit, o)...)
			}
		}
		if len(errs) > 0 {
			return forbidden(r, utilerrors.NewAggregate(errs))
		}
	}
	return nil
}

func applyDefaults(lr *corev1.LimitRange, pod *corev1.Pod) {
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	for _, l := range lr.Spec.Limits {
		if l.Type != corev1.LimitTypeContainer {
			continue
		}
		for k, v := range l.DefaultRequest {
			requests[k] = v.DeepCopy()
		}
		for k, v := range l.Default {
			limits[k] = v.DeepCopy()
		}
	}
	var notes []string
	each := func(kind string, list []corev1.Container) {
		for i := range list {
			c := &list[i]
			if set := fill(&c.Resources.Requests, requests); set != "" {
				notes = append(notes, fmt.Sprintf("%s request for %s %s", set, kind, c.Name))
			}
			if set := fill(&c.Resources.Limits, limits); set != "" {
				notes = append(notes, fmt.Sprintf("%s limit for %s %s", set, kind, c.Name))
			}
		}
	}
	each("container", pod.Spec.Containers)
	each("init container", pod.Spec.InitContainers)
	if len(notes) > 0 {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations["kubernetes.io/limit-ranger"] = "LimitRanger plugin set: " + strings.Join(notes, "; ")
	}
}

// fill sets what into lacks and returns the names it set.
func fill(into *corev1.ResourceList, from corev1.ResourceList) string {
	var set []string
	for k, v := range from {
		if _, ok := (*into)[k]; ok {
			continue
		}
		if *into == nil {
			*into = corev1.ResourceList{}
		}
		(*into)[k] = v.DeepCopy()
		set = append(set, string(k))
	}
	slices.Sort(set)
	return strings.Join(set, ", ")
}

func checkPodLimit(limit corev1.LimitRangeItem, pod *corev1.Pod) (errs []error) {
	switch limit.Type {
	case corev1.LimitTypeContainer:
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for _, c := range list {
				errs = append(errs, bounds(limit, c.Resources.Requests, c.Resources.Limits)...)
			}
		}
	case corev1.LimitTypePod:
		opts := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
		errs = bounds(limit, resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts))
	}
	return errs
}

func checkClaimLimit(limit corev1.LimitRangeItem, pvc *corev1.PersistentVolumeClaim) (errs []error) {
	if limit.Type != corev1.LimitTypePersistentVolumeClaim {
		return nil
	}
	requests := pvc.Spec.Resources.Requests
	for _, k := range sortedNames(limit.Min) {
		errs = appendErr(errs, atLeast(limit.Type, k, limit.Min[k], requests, nil))
	}
	for _, k := range sortedNames(limit.Max) {
		if have, ok := requests[k]; !ok {
			errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s.  No request is specified", k, limit.Type, text(limit.Max[k])))
		} else if have.Cmp(limit.Max[k]) > 0 {
			errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s, but request is %s", k, limit.Type, text(limit.Max[k]), have.String()))
		}
	}
	return errs
}

func text(q resource.Quantity) string { return q.String() }

func sortedNames(l corev1.ResourceList) []corev1.ResourceName {
	var names []corev1.ResourceName
	for k := range l {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

func appendErr(errs []error, err error) []error {
	if err == nil {
		return errs
	}
	return append(errs, err)
}

func bounds(limit corev1.LimitRangeItem, requests, limits corev1.ResourceList) (errs []error) {
	for _, k := range sortedNames(limit.Min) {
		errs = appendErr(errs, atLeast(limit.Type, k, limit.Min[k], requests, limits))
	}
	for _, k := range sortedNames(limit.Max) {
		errs = appendErr(errs, atMost(limit.Type, k, limit.Max[k], requests, limits))
	}
	for _, k := range sortedNames(limit.MaxLimitRequestRatio) {
		errs = appendErr(errs, ratio(limit.Type, k, limit.MaxLimitRequestRatio[k], requests, limits))
	}
	return errs
}

func atLeast(kind corev1.LimitType, k corev1.ResourceName, least resource.Quantity, requests, limits corev1.ResourceList) error {
	req, hasReq := requests[k]
	lim, hasLim := limits[k]
	switch {
	case !hasReq:
		return fmt.Errorf("minimum %s usage per %s is %s.  No request is specified", k, kind, least.String())
	case req.Cmp(least) < 0:
		return fmt.Errorf("minimum %s usage per %s is %s, but request is %s", k, kind, least.String(), req.String())
	case hasLim && lim.Cmp(least) < 0:
		return fmt.Errorf("minimum %s usage per %s is %s, but limit is %s", k, kind, least.String(), lim.String())
	}
	return nil
}

func atMost(kind corev1.LimitType, k corev1.ResourceName, most resource.Quantity, requests, limits corev1.ResourceList) error {
	req, hasReq := requests[k]
	lim, hasLim := limits[k]
	switch {
	case !hasLim:
		return fmt.Errorf("maximum %s usage per %s is %s.  No limit is specified", k, kind, most.String())
	case lim.Cmp(most) > 0:
		return fmt.Errorf("maximum %s usage per %s is %s, but limit is %s", k, kind, most.String(), lim.String())
	case hasReq && req.Cmp(most) > 0:
		return fmt.Errorf("maximum %s usage per %s is %s, but request is %s", k, kind, most.String(), req.String())
	}
	return nil
}

func ratio(kind corev1.LimitType, k corev1.ResourceName, most resource.Quantity, requests, limits corev1.ResourceList) error {
	req, lim := requests[k], limits[k]
	if req.IsZero() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", k, kind, most.String())
	}
	if lim.IsZero() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", k, kind, most.String())
	}
	if have := lim.AsApproximateFloat64() / req.AsApproximateFloat64(); have > most.AsApproximateFloat64() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but provided ratio is %f", k, kind, most.String(), have)
	}
	return nil
}
