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
func ReviewedAttributes(u auth.User, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) auth.Attributes {
	a := auth.Attributes{User: u}
	if res != nil {
		a.ResourceRequest = true
		a.Verb, a.Namespace, a.APIGroup, a.APIVersion = res.Verb, res.Namespace, res.Group, res.Version
		a.Resource, a.Subresource, a.Name = res.Resource, res.Subresource, res.Name
		if res.FieldSelector != nil {
			a.FieldSelector = fieldRequirements(res.FieldSelector)
		}
		if res.LabelSelector != nil {
			a.LabelSelector = labelSelector(res.LabelSelector)
		}
	}
	if non != nil {
		a.Path, a.Verb = non.Path, non.Verb
	}
	return a
}

// fieldRequirements reads the field selector of an access review. What it
// cannot read is left out, which can only make a decision stricter.
func fieldRequirements(in *authorizationv1.FieldSelectorAttributes) fields.Requirements {
	if in.RawSelector != "" {
		if sel, err := fields.ParseSelector(in.RawSelector); err == nil {
			return sel.Requirements()
		}
		return nil
	}
	var out fields.Requirements
	for _, r := range in.Requirements {
		if len(r.Values) != 1 {
			continue
		}
		switch r.Operator {
		case metav1.FieldSelectorOpIn:
			out = append(out, fields.Requirement{Operator: selection.Equals, Field: r.Key, Value: r.Values[0]})
		case metav1.FieldSelectorOpNotIn:
			out = append(out, fields.Requirement{Operator: selection.NotEquals, Field: r.Key, Value: r.Values[0]})
		}
	}
	return out
}

// labelSelector is that of an access review as text. What it cannot read is
// left out, which can only make a decision stricter.
func labelSelector(in *authorizationv1.LabelSelectorAttributes) string {
	if in.RawSelector != "" {
		return in.RawSelector
	}
	operators := map[metav1.LabelSelectorOperator]selection.Operator{
		metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
		metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
	}
	all := labels.NewSelector()
	for _, r := range in.Requirements {
		if one, err := labels.NewRequirement(r.Key, operators[r.Operator], r.Values); err == nil {
			all = all.Add(*one)
		}
	}
	return all.String()
}
