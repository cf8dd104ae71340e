package request

import (
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/skiff-project/skiff/auth"
)

// ReviewedUser is whom an access review asks about.
func ReviewedUser(spec *authorizationv1.SubjectAccessReviewSpec) auth.User {
	u := auth.User{Name: spec.User, UID: spec.UID, Groups: spec.Groups}
	for k, v := range spec.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[strings.ToLower(k)] = v
	}
	return u
}

// ReviewedAttributes are what an access review asks about a user; one of res and non is not nil.
// problems tells which selectors could not be read, wholly or in part.
func ReviewedAttributes(u auth.User, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) (a auth.Attributes, problems []string) {
	a.User = u
	bad := func(what string, some bool) {
		how := "ignored"
		if some {
			how = "partially ignored"
		}
		problems = append(problems, "spec.resourceAttributes."+what+" "+how+" due to parse error")
	}
	if res != nil {
		a.ResourceRequest = true
		a.Verb, a.Namespace, a.APIGroup, a.APIVersion = res.Verb, res.Namespace, res.Group, res.Version
		a.Resource, a.Subresource, a.Name = res.Resource, res.Subresource, res.Name
		if res.FieldSelector != nil {
			var ok bool
			if a.FieldSelector, ok = fieldRequirements(res.FieldSelector); !ok {
				bad("fieldSelector", len(a.FieldSelector) > 0)
			}
		}
		if res.LabelSelector != nil {
			var ok bool
			if a.LabelSelector, ok = labelSelector(res.LabelSelector); !ok {
				bad("labelSelector", a.LabelSelector != "")
			}
		}
	}
	if non != nil {
		a.Path, a.Verb = non.Path, non.Verb
	}
	return a, problems
}

// ClearReviewed clears what only a server sets on what is created, and the
// namespace of a review that has none.
func ClearReviewed(m metav1.Object, namespaced bool) {
	m.SetUID("")
	m.SetSelfLink("")
	m.SetCreationTimestamp(metav1.Time{})
	m.SetDeletionTimestamp(nil)
	m.SetDeletionGracePeriodSeconds(nil)
	m.SetManagedFields(nil) // of what is not stored there is nothing to manage
	if !namespaced {
		m.SetNamespace("")
	}
}

// fieldRequirements reads the field selector of an access review. What it
// cannot read is left out, which can only make a decision stricter.
func fieldRequirements(in *authorizationv1.FieldSelectorAttributes) (out fields.Requirements, ok bool) {
	if in.RawSelector != "" {
		sel, err := fields.ParseSelector(in.RawSelector)
		if err != nil {
			return nil, false
		}
		return sel.Requirements(), true
	}
	operators := map[metav1.FieldSelectorOperator]selection.Operator{metav1.FieldSelectorOpIn: selection.Equals, metav1.FieldSelectorOpNotIn: selection.NotEquals}
	for _, r := range in.Requirements {
		if op := operators[r.Operator]; op != "" && len(r.Values) == 1 {
			out = append(out, fields.Requirement{Operator: op, Field: r.Key, Value: r.Values[0]})
		}
	}
	return out, len(out) == len(in.Requirements)
}

// labelSelector is that of an access review as text. What it cannot read is
// left out, which can only make a decision stricter.
func labelSelector(in *authorizationv1.LabelSelectorAttributes) (text string, ok bool) {
	if in.RawSelector != "" {
		if _, err := labels.Parse(in.RawSelector); err != nil {
			return "", false
		}
		return in.RawSelector, true
	}
	operators := map[metav1.LabelSelectorOperator]selection.Operator{
		metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
		metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
	}
	all, ok := labels.NewSelector(), true
	for _, r := range in.Requirements {
		one, err := labels.NewRequirement(r.Key, operators[r.Operator], r.Values)
		if err != nil {
			ok = false
			continue
		}
		all = all.Add(*one)
	}
	return all.String(), ok
}
