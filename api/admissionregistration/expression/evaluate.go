package expression

import (
	"context"
	"fmt"
	"math"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/interpreter"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/lazy"

	admissionv1 "k8s.io/api/admissionregistration/v1"
)

// Inputs are the values of the variables; nil is null. They are used by one
// goroutine at a time.
type Inputs struct {
	Object, OldObject, Request, Params, Namespace ref.Val
	Authorizer, RequestResource                   ref.Val // nil: not to be seen
}

// Evaluation evaluates expressions on the same inputs against one budget.
// Each variable is evaluated once, when an expression first asks for it.
type Evaluation struct {
	Remaining int64 // of the budget

	ctx       context.Context
	inputs    Inputs
	variables ref.Val
	lazily    int64 // what variables cost since the last expression
}

// Evaluate begins an evaluation; variables are those a Compiler made.
func Evaluate(ctx context.Context, in Inputs, variables []*Expression, budget int64) *Evaluation {
	e := &Evaluation{Remaining: budget, ctx: ctx, inputs: in}
	if len(variables) > 0 {
		m := lazy.NewMapValue(types.NewObjectType("kubernetes.variables"))
		for _, v := range variables {
			m.Append(v.name, func(*lazy.MapValue) ref.Val { return e.variable(v) })
		}
		e.variables = m
	}
	return e
}

// Variables are those compiled so far.
func (c *Compiler) Variables() []*Expression { return c.vars }

func (e *Evaluation) variable(x *Expression) ref.Val {
	if x.Err != nil {
		return types.NewErr("composited variable %q fails to compile: %v", x.name, x.Err)
	}
	v, details, err := x.program.ContextEval(e.ctx, e)
	if details == nil {
		return types.NewErr("unable to get evaluation details of variable %q", x.name)
	}
	cost := details.ActualCost()
	if cost == nil {
		return types.NewErr("unable to calculate cost of variable %q", x.name)
	}
	e.lazily = int64(min(uint64(e.lazily)+min(*cost, math.MaxInt64), math.MaxInt64))
	if err != nil {
		return types.NewErr("composited variable %q fails to evaluate: %v", x.name, err)
	}
	return v
}

// Eval evaluates one expression. err says why it has no value; with fatal the
// budget is spent and nothing more may be evaluated.
func (e *Evaluation) Eval(x *Expression) (v ref.Val, err, fatal error) {
	if x.Err != nil {
		return nil, &apiservercel.Error{Type: apiservercel.ErrorTypeInvalid, Detail: fmt.Sprintf("compilation error: %v", x.Err), Cause: x.Err}, nil
	}
	v, details, err := x.program.ContextEval(e.ctx, e)
	if !e.spend(uint64(e.lazily)) {
		return nil, nil, outOfBudget()
	}
	e.lazily = 0
	if details == nil {
		return nil, nil, &apiservercel.Error{Type: apiservercel.ErrorTypeInternal, Detail: noCost(x)}
	}
	cost := details.ActualCost()
	if cost == nil {
		return nil, nil, &apiservercel.Error{Type: apiservercel.ErrorTypeInvalid, Detail: noCost(x), Cause: apiservercel.ErrOutOfBudget}
	}
	if !e.spend(*cost) {
		return nil, nil, outOfBudget()
	}
	if err != nil {
		return nil, &apiservercel.Error{Type: apiservercel.ErrorTypeInvalid, Detail: fmt.Sprintf("expression '%v' resulted in error: %v", x.Text, err)}, nil
	}
	return v, nil, nil
}

func noCost(x *Expression) string {
	return fmt.Sprintf("runtime cost could not be calculated for expression: %v, no further expression will be run", x.Text)
}

func (e *Evaluation) spend(cost uint64) bool {
	if cost > math.MaxInt64 || int64(cost) > e.Remaining {
		return false
	}
	e.Remaining -= int64(cost)
	return true
}

func outOfBudget() error {
	return &apiservercel.Error{
		Type: apiservercel.ErrorTypeInvalid, Cause: apiservercel.ErrOutOfBudget,
		Detail: "validation failed due to running out of cost budget, no further validation rules will be run",
	}
}

// ResolveName implements interpreter.Activation.
func (e *Evaluation) ResolveName(name string) (any, bool) {
	switch name {
	case "object":
		return e.inputs.Object, true
	case "oldObject":
		return e.inputs.OldObject, true
	case "params":
		return e.inputs.Params, true
	case "request":
		return e.inputs.Request, true
	case "namespaceObject":
		return e.inputs.Namespace, true
	case "authorizer":
		return e.inputs.Authorizer, e.inputs.Authorizer != nil
	case "authorizer.requestResource":
		return e.inputs.RequestResource, e.inputs.RequestResource != nil
	case "variables":
		return e.variables, true
	}
	return nil, false
}

// Parent implements interpreter.Activation.
func (*Evaluation) Parent() interpreter.Activation { return nil }

// Condition is one compiled match condition.
type Condition struct {
	Name string
	*Expression
}

// Conditions compiles match conditions, which may be stored already.
func (c *Compiler) Conditions(list []admissionv1.MatchCondition, s Sees) []Condition {
	out := make([]Condition, len(list))
	for i, m := range list {
		out[i] = Condition{m.Name, c.Condition(m.Expression, s, true)}
	}
	return out
}

// Match tells whether all conditions hold. One that is false decides, whatever
// else went wrong; otherwise an error is one unless failures are to be ignored:
// then nothing matches. Errors is how many have no value, up to that which is false.
func Match(ctx context.Context, conditions []Condition, in Inputs, variables []*Expression, failure *admissionv1.FailurePolicyType) (ok bool, errors int, err error) {
	in.Namespace = nil
	e := Evaluate(ctx, in, variables, ConditionsBudget)
	failed := func(errors int, err error) (bool, int, error) {
		if failure != nil && *failure == admissionv1.Ignore {
			return false, errors, nil
		}
		return false, errors, err
	}
	values, errs := make([]ref.Val, len(conditions)), []error(nil)
	for i, c := range conditions {
		v, err, fatal := e.Eval(c.Expression)
		if fatal != nil {
			return failed(0, fatal)
		}
		if err != nil {
			errs = append(errs, err)
		}
		values[i] = v
	}
	for _, v := range values {
		switch v {
		case nil:
			errors++
		case types.False:
			return false, errors, nil
		}
	}
	if len(errs) > 0 {
		return failed(errors, utilerrors.NewAggregate(errs))
	}
	return true, 0, nil
}
