package apiextensions

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// Bounds of what rules may cost: PerCall for one evaluation and Budget for all
// of one request, in CEL's units; the others for the estimates.
const (
	PerCall       = 1_000_000
	Budget        = 10_000_000
	ruleLimit     = 10_000_000
	wholeLimit    = 100_000_000
	mostExpensive = 4 // rules named when a schema is too costly as a whole
)

// celSettings knows the expressions a stored definition has: they may use
// what new ones may not yet.
type celSettings struct {
	env             *environment.EnvSet
	rules, messages map[string]bool
}

func newCELSettings(old *apiextensions.CustomResourceDefinition) celSettings {
	c := celSettings{rules: map[string]bool{}, messages: map[string]bool{}}
	if old != nil {
		anySchema(&old.Spec, func(s *props) bool {
			for _, v := range s.XValidations {
				c.rules[v.Rule] = true
				c.messages[v.MessageExpression] = v.MessageExpression != ""
			}
			return false
		})
	}
	return c
}

// RuleEnv implements cel.EnvLoader.
func (c celSettings) RuleEnv(set *environment.EnvSet, expression string) *celgo.Env {
	return loadEnv(set, c.rules[expression])
}

// MessageExpressionEnv implements cel.EnvLoader.
func (c celSettings) MessageExpressionEnv(set *environment.EnvSet, expression string) *celgo.Env {
	return loadEnv(set, c.messages[expression])
}

func loadEnv(set *environment.EnvSet, stored bool) *celgo.Env {
	if stored {
		return set.StoredExpressionsEnv()
	}
	return set.NewExpressionsEnv()
}

// celNode is a schema as its rules see it. A nil node is below something
// rules do not reach.
type celNode struct {
	schema  *props
	parent  *celNode
	inScope bool   // it, or one above, has rules
	times   uint64 // how often it may occur in an object; MaxUint64: no bound is set
	bounded bool
	total   *ruleCosts
	types   *celTypes
	err     error
	// fromParent finds the node's types among its parent's, which is cheaper than making them.
	fromParent func(*celTypes) *celTypes
}

type celTypes struct {
	schema *structuralschema.Structural
	decl   *apiservercel.DeclType
}

func rootNode(s *props) *celNode {
	return &celNode{schema: s, inScope: len(s.XValidations) > 0, times: 1, bounded: true, total: &ruleCosts{}}
}

func (n *celNode) child(s *props, fromParent func(*celTypes) *celTypes) *celNode {
	if n == nil {
		return nil
	}
	c := &celNode{schema: s, parent: n, inScope: n.inScope || s != nil && len(s.XValidations) > 0, total: n.total, fromParent: fromParent}
	if n.schema == nil || !n.bounded {
		return c
	}
	most := uint64(1)
	bound := func(limit *int64) {
		if c.bounded = limit != nil; c.bounded {
			most = uint64(max(*limit, 0))
		}
	}
	c.bounded = true
	switch {
	case n.schema.Type == "array":
		bound(n.schema.MaxItems)
	case n.schema.Type == "object" && n.schema.AdditionalProperties != nil:
		bound(n.schema.MaxProperties)
	}
	c.times = multiply(n.times, most)
	return c
}

func (n *celNode) property(s *props, name string) *celNode {
	return n.child(s, func(t *celTypes) *celTypes {
		escaped, ok := apiservercel.Escape(name)
		if !ok {
			return nil
		}
		f, ok := t.decl.Fields[escaped]
		if !ok {
			return nil
		}
		below := t.schema.Properties[name]
		return &celTypes{&below, f.Type}
	})
}

func (n *celNode) values(s *props) *celNode {
	return n.child(s, func(t *celTypes) *celTypes {
		if t.schema.AdditionalProperties == nil {
			return nil
		}
		return &celTypes{t.schema.AdditionalProperties.Structural, t.decl.ElemType}
	})
}

func (n *celNode) items(s *props) *celNode {
	return n.child(s, func(t *celTypes) *celTypes {
		if t.schema.Items == nil {
			return nil
		}
		return &celTypes{t.schema.Items, t.decl.ElemType}
	})
}

// typed makes the node's types on first need.
func (n *celNode) typed() (*celTypes, error) {
	if !n.inScope || n.types != nil || n.err != nil {
		return n.types, n.err
	}
	if n.parent != nil {
		above, err := n.parent.typed()
		if err != nil {
			n.err = err
			return nil, err
		}
		if above != nil {
			if n.types = n.fromParent(above); n.types != nil {
				return n.types, nil
			}
		}
	}
	ss, err := structuralschema.NewStructural(n.schema)
	if err != nil {
		n.err = err
		return nil, err
	}
	decl := model.SchemaDeclType(ss, n.parent == nil || n.schema.XEmbeddedResource)
	if decl == nil {
		n.err = fmt.Errorf("unable to convert structural schema to CEL declarations")
		return nil, n.err
	}
	n.types = &celTypes{ss, decl}
	return n.types, nil
}

func multiply(a, b uint64) uint64 {
	if a != 0 && math.MaxUint64/a < b {
		return math.MaxUint64
	}
	return a * b
}

// ruleCosts sums the estimated costs of a schema's rules.
type ruleCosts struct {
	sum  uint64
	most []ruleCost // dearest first
}

type ruleCost struct {
	path *field.Path
	cost uint64
}

func (t *ruleCosts) add(p *field.Path, cost uint64) {
	if t.sum += cost; t.sum < cost {
		t.sum = math.MaxUint64
	}
	if cost < wholeLimit/100 {
		return
	}
	t.most = append(t.most, ruleCost{p, cost})
	slices.SortStableFunc(t.most, func(a, b ruleCost) int { return cmp.Compare(b.cost, a.cost) })
	t.most = t.most[:min(len(t.most), mostExpensive)]
}

func (t *ruleCosts) check(p *field.Path) (errs field.ErrorList) {
	if t.sum <= wholeLimit {
		return nil
	}
	for _, r := range t.most {
		errs = append(errs, field.Forbidden(r.path, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"))
	}
	return append(errs, field.Forbidden(p, overBudget("x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema", t.sum, wholeLimit)))
}

func overBudget(what string, cost, limit uint64) string {
	by := float64(cost) / float64(limit)
	factor := fmt.Sprintf("%.1fx", by)
	switch {
	case by > 100:
		factor = "more than 100x"
	case by < 1.5:
		factor = fmt.Sprintf("%fx", by)
	}
	return fmt.Sprintf("%s exceeds budget by factor of %s (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)", what, factor)
}

var ruleReasons = []apiextensions.FieldValueErrorReason{apiextensions.FieldValueDuplicate, apiextensions.FieldValueForbidden, apiextensions.FieldValueInvalid, apiextensions.FieldValueRequired}

// rules checks the rules of s; before is how many errors there were when the
// walk came to s: with more, the schema cannot be compiled against.
func (w *walk) rules(p *field.Path, s *props, at place, node *celNode, before int) {
	for i := range s.XValidations {
		w.ruleTexts(p.Child("x-kubernetes-validations").Index(i), s, &s.XValidations[i])
	}
	if len(s.XValidations) == 0 || len(w.Errors) > before || node == nil {
		return
	}
	all := p.Child("x-kubernetes-validations")
	types, err := node.typed()
	if err != nil {
		w.celErrors = append(w.celErrors, field.InternalError(all, fmt.Errorf("internal error: failed to construct type information for x-kubernetes-validations rules: %w", err)))
		return
	}
	if w.cel.env == nil {
		w.cel.env = environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
	}
	results, err := cel.Compile(types.schema, types.decl, PerCall, w.cel.env, w.cel)
	if err != nil {
		w.celErrors = append(w.celErrors, field.InternalError(all, err))
		return
	}
	for i := range results {
		w.rule(all.Index(i), &s.XValidations[i], results[i], at, node)
	}
}

func (w *walk) rule(p *field.Path, rule *apiextensions.ValidationRule, r cel.CompilationResult, at place, node *celNode) {
	bad := func(e *field.Error) { w.celErrors = append(w.celErrors, e) }
	costs := func(at *field.Path, what string, cost uint64) {
		if !w.unchanged && cost > ruleLimit {
			bad(field.Forbidden(at, overBudget(what, cost, ruleLimit)))
		}
		node.total.add(at, cost)
	}
	times := r.MaxCardinality
	if node.bounded {
		times = node.times
	}
	costs(p.Child("rule"), "estimated rule cost", multiply(r.MaxCost, times))
	if r.Error != nil {
		if r.Error.Type == apiservercel.ErrorTypeRequired {
			bad(field.Required(p.Child("rule"), r.Error.Detail))
		} else {
			bad(field.Invalid(p.Child("rule"), *rule, r.Error.Detail))
		}
	}
	if r.MessageExpressionError != nil {
		bad(field.Invalid(p.Child("messageExpression"), *rule, r.MessageExpressionError.Detail))
	} else if r.MessageExpression != nil {
		costs(p.Child("messageExpression"), "estimated messageExpression cost", r.MessageExpressionMaxCost)
	}
	switch {
	case r.UsesOldSelf && at.uncertain != nil:
		bad(field.Invalid(p.Child("rule"), rule.Rule, fmt.Sprintf("oldSelf cannot be used on the uncorrelatable portion of the schema within %v", at.uncertain)))
	case !r.UsesOldSelf && rule.OptionalOldSelf != nil:
		bad(field.Invalid(p.Child("optionalOldSelf"), *rule.OptionalOldSelf, "may not be set if oldSelf is not used in rule"))
	}
}

func (w *walk) ruleTexts(p *field.Path, s *props, r *apiextensions.ValidationRule) {
	broken := func(text string) bool { return strings.ContainsAny(text, "\n\r") }
	rule, message := strings.TrimSpace(r.Rule), strings.TrimSpace(r.Message)
	switch {
	case rule == "":
		w.Required(p.Child("rule"), "rule is not specified")
	case r.Message != "" && message == "":
		w.Invalid(p.Child("message"), r.Message, "must be non-empty if specified")
	case broken(message):
		w.Invalid(p.Child("message"), r.Message, "must not contain line breaks")
	case broken(rule) && message == "":
		w.Required(p.Child("message"), "message must be specified if rule contains line breaks")
	}
	if r.MessageExpression != "" && strings.TrimSpace(r.MessageExpression) == "" {
		w.Required(p.Child("messageExpression"), "messageExpression must be non-empty if specified")
	}
	if r.Reason != nil && !slices.Contains(ruleReasons, *r.Reason) {
		w.Add(field.ErrorList{field.NotSupported(p.Child("reason"), *r.Reason, ruleReasons)})
	}
	if r.FieldPath == "" {
		return
	}
	at := p.Child("fieldPath")
	if strings.TrimSpace(r.FieldPath) == "" {
		w.Invalid(at, r.FieldPath, "must be non-empty if specified")
	}
	if broken(r.FieldPath) {
		w.Invalid(at, r.FieldPath, "must not contain line breaks")
	}
	if ss, err := structuralschema.NewStructural(s); err == nil {
		if _, _, err := cel.ValidFieldPath(r.FieldPath, ss); err != nil {
			w.Invalid(at, r.FieldPath, "must be a valid path")
		}
	}
}

// warnings are told on create and, where new, on update.
func warnings(c, old *CRD) []string {
	texts := schemaWarnings(c)
	if old == nil {
		return texts
	}
	known := schemaWarnings(old)
	return slices.DeleteFunc(texts, func(t string) bool { return slices.Contains(known, t) })
}
