package config

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiservercel "k8s.io/apiserver/pkg/cel"
)

// maxConditions is upstream's bound.
const maxConditions = 64

// Conditions are compiled match conditions; nil match everything.
type Conditions struct {
	list           []*expression
	fields, labels bool // whether any looks at selectors, which are only then shown
}

func requestScope() scope {
	return scope{"request", func() *apiservercel.DeclType {
		str, strs := apiservercel.StringType, apiservercel.NewListType(apiservercel.StringType, -1)
		requirement := object("SelectorRequirement", fields{"key": str, "operator": str, "values": strs})
		selector := fields{"rawSelector": str, "requirements": apiservercel.NewListType(requirement, -1)}
		return object("SubjectAccessReviewSpec", fields{
			"resourceAttributes": object("ResourceAttributes", fields{
				"namespace": str, "verb": str, "group": str, "version": str, "resource": str, "subresource": str, "name": str,
				"fieldSelector": object("FieldSelectorAttributes", selector), "labelSelector": object("LabelSelectorAttributes", selector),
			}),
			"nonResourceAttributes": object("NonResourceAttributes", fields{"path": str, "verb": str}),
			"user":                  str, "groups": strs, "uid": str, "extra": apiservercel.NewMapType(str, strs, -1),
		})
	}}
}

func compileConditions(k compiler, list []MatchCondition, root *field.Path) (*Conditions, field.ErrorList) {
	if len(list) > maxConditions {
		return nil, field.ErrorList{field.TooMany(root, len(list), maxConditions)}
	}
	mismatch := func(t *cel.Type) string {
		if t == cel.BoolType {
			return ""
		}
		return fmt.Sprintf("must evaluate to bool but got %v", t)
	}
	c, seen := &Conditions{}, map[string]bool{}
	var errs field.ErrorList
	for i, m := range list {
		p := root.Index(i).Child("expression")
		switch {
		case strings.TrimSpace(m.Expression) == "":
			errs = append(errs, field.Required(p, ""))
			continue
		case seen[m.Expression]:
			errs = append(errs, field.Duplicate(p, m.Expression))
			continue
		}
		seen[m.Expression] = true
		x, err := k.compile(m.Expression, requestScope(), p, mismatch)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.list = append(c.list, x)
		c.fields = c.fields || x.selects("", "fieldSelector")
		c.labels = c.labels || x.selects("", "labelSelector")
	}
	if len(c.list) == 0 {
		return nil, errs
	}
	return c, errs
}

// Match says whether all conditions hold. One that is false decides, whatever
// went wrong with others.
func (c *Conditions) Match(ctx context.Context, spec *authorizationv1.SubjectAccessReviewSpec) (bool, error) {
	if c == nil {
		return true, nil
	}
	request := c.show(spec)
	var errs []error
	for _, x := range c.list {
		v, err := x.eval(ctx, request)
		if err != nil {
			errs = append(errs, fmt.Errorf("cel evaluation error: expression '%v' resulted in error: %w", x.text, err))
			continue
		}
		if v == types.False {
			return false, nil
		}
		if v != types.True {
			errs = append(errs, fmt.Errorf("cel evaluation error: expression '%v' eval result type should be bool but got %v", x.text, v.Type()))
		}
	}
	return len(errs) == 0, utilerrors.NewAggregate(errs)
}

// show is a review as expressions see it: texts are there even when they are empty.
func (c *Conditions) show(spec *authorizationv1.SubjectAccessReviewSpec) map[string]any {
	extra := spec.Extra
	if extra == nil {
		extra = map[string]authorizationv1.ExtraValue{}
	}
	out := map[string]any{"user": spec.User, "groups": spec.Groups, "uid": spec.UID, "extra": extra}
	if n := spec.NonResourceAttributes; n != nil {
		out["nonResourceAttributes"] = map[string]string{"path": n.Path, "verb": n.Verb}
	}
	r := spec.ResourceAttributes
	if r == nil {
		return out
	}
	shown := map[string]any{
		"namespace": r.Namespace, "verb": r.Verb, "group": r.Group, "version": r.Version,
		"resource": r.Resource, "subresource": r.Subresource, "name": r.Name,
	}
	if f := r.FieldSelector; f != nil && c.fields {
		showSelector(shown, "fieldSelector", f.RawSelector, f.Requirements, func(q metav1.FieldSelectorRequirement) map[string]any {
			return map[string]any{"key": q.Key, "operator": string(q.Operator), "values": q.Values}
		})
	}
	if l := r.LabelSelector; l != nil && c.labels {
		showSelector(shown, "labelSelector", l.RawSelector, l.Requirements, func(q metav1.LabelSelectorRequirement) map[string]any {
			return map[string]any{"key": q.Key, "operator": string(q.Operator), "values": q.Values}
		})
	}
	out["resourceAttributes"] = shown
	return out
}

func showSelector[T any](in map[string]any, name, raw string, list []T, show func(T) map[string]any) {
	if len(list) > 0 {
		var shown []map[string]any
		for _, q := range list {
			shown = append(shown, show(q))
		}
		in[name] = map[string]any{"requirements": shown}
	}
	if raw != "" {
		in[name] = map[string]any{"rawSelector": raw}
	}
}
