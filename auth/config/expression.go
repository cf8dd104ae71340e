package config

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types/ref"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// scope is what an expression sees: one variable.
type scope struct {
	variable string
	of       func() *apiservercel.DeclType
}

// expression is a compiled one.
type expression struct {
	text    string
	scope   scope
	ast     *cel.Ast
	program cel.Program
}

// compiler compiles expressions. What they compile in is dear: it is made for
// the first one and lives as long as the compiler.
type compiler map[string]*cel.Env

func (c compiler) env(s scope) (*cel.Env, error) {
	if env := c[s.variable]; env != nil {
		return env, nil
	}
	t := s.of()
	set, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Extend(environment.VersionedOptions{
		IntroducedVersion: version.MajorMinor(1, 0),
		EnvOptions:        []cel.EnvOption{cel.Variable(s.variable, t.CelType())},
		DeclTypes:         []*apiservercel.DeclType{t},
	})
	if err != nil {
		return nil, err
	}
	c[s.variable] = set.StoredExpressionsEnv()
	return c[s.variable], nil
}

// compile compiles an expression whose result mismatch, unless it is nil, has
// no objection to.
func (c compiler) compile(text string, s scope, p *field.Path, mismatch func(*cel.Type) string) (*expression, *field.Error) {
	env, err := c.env(s)
	if err != nil {
		return nil, field.InternalError(p, fmt.Errorf("unexpected error loading CEL environment: %w", err))
	}
	ast, issues := env.Compile(text)
	if issues != nil {
		return nil, field.Invalid(p, text, "compilation failed: "+issues.String())
	}
	if mismatch != nil {
		if why := mismatch(ast.OutputType()); why != "" {
			return nil, field.Invalid(p, text, why)
		}
	}
	program, err := env.Program(ast)
	if err != nil {
		return nil, field.InternalError(p, fmt.Errorf("program instantiation failed: %w", err))
	}
	return &expression{text, s, ast, program}, nil
}

// eval evaluates the expression on its variable's value.
func (x *expression) eval(ctx context.Context, value any) (ref.Val, error) {
	v, _, err := x.program.ContextEval(ctx, map[string]any{x.scope.variable: value})
	if err == nil && v == nil {
		err = errors.New("it has no value")
	}
	return v, err
}

// selects says whether the expression selects a field, of the named variable
// or, without a name, of anything; optionally (.?) counts.
func (x *expression) selects(variable, name string) bool {
	found := false
	of := func(e ast.Expr) bool {
		return variable == "" || e.Kind() == ast.IdentKind && e.AsIdent() == variable
	}
	ast.PreOrderVisit(ast.NavigateAST(x.ast.NativeRep()), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.SelectKind:
			found = found || e.AsSelect().FieldName() == name && of(e.AsSelect().Operand())
		case ast.CallKind:
			call := e.AsCall()
			if call.FunctionName() != operators.OptSelect || len(call.Args()) != 2 || call.Args()[1].Kind() != ast.LiteralKind {
				return
			}
			literal, _ := call.Args()[1].AsLiteral().Value().(string)
			found = found || literal == name && of(call.Args()[0])
		}
	}))
	return found
}

type fields map[string]*apiservercel.DeclType

// object declares a type whose fields are all optional.
func object(name string, of fields) *apiservercel.DeclType {
	out := map[string]*apiservercel.DeclField{}
	for n, t := range of {
		out[n] = apiservercel.NewDeclField(n, t, false, nil, nil)
	}
	return apiservercel.NewObjectType("kubernetes."+name, out)
}
