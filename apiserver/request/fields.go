package request

import (
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// FieldRequirements reads the field selector of an access review. What it
// cannot read is left out, which can only make a decision stricter.
func FieldRequirements(in *authorizationv1.FieldSelectorAttributes) fields.Requirements {
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

// LabelSelector is that of an access review as text. What it cannot read is
// left out, which can only make a decision stricter.
func LabelSelector(in *authorizationv1.LabelSelectorAttributes) string {
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
