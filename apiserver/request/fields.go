package request

import (
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
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
