// Package expression compiles and evaluates the CEL expressions of admission:
// those of policies and the match conditions of webhooks. It knows the
// variables they see, what they may cost and upstream's words for what is
// wrong with them; it reads nothing.
package expression

import (
	"fmt"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/traits"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/mutation"
)

// What expressions may cost, in CEL's units. One expression alone may cost
// a million, which the environment itself sets.
const (
	Budget           = 10_000_000 // all of a binding's, for one request and parameter
	ConditionsBudget = 2_500_000  // all match conditions, for one request
)

// interruptEvery is how many steps of a comprehension pass before the context is looked at.
const interruptEvery = 100

// Sees says which of the optional variables an expression sees.
type Sees struct {
	Params     bool // params
	Authorizer bool // authorizer and authorizer.requestResource
	Patches    bool // the types Object and JSONPatch
}

// Expression is one compiled expression.
type Expression struct {
	Text string
	Err  *apiservercel.Error // why it did not compile; nil: it did
	Type *cel.Type           // of its result; nil with Err

	name    string // of a variable
	program cel.Program
}

// FieldError is Err as the error of a field whose value is text.
func (x *Expression) FieldError(p *field.Path, text string) *field.Error {
	if x.Err.Type == apiservercel.ErrorTypeInvalid {
		return field.Invalid(p, text, x.Err.Detail)
	}
	return field.InternalError(p, x.Err)
}

// Environments makes compilers. Making what expressions compile in is dear, so
// it is made on first need and kept: at most one for each Sees. Safe for concurrent use.
type Environments struct {
	mu   sync.Mutex
	sets map[Sees]*environment.EnvSet
}

func (e *Environments) get(s Sees) (*environment.EnvSet, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if set := e.sets[s]; set != nil {
		return set, nil
	}
	set, err := extend(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()), s, cel.DynType, cel.DynType)
	if err != nil {
		return nil, err
	}
	if e.sets == nil {
		e.sets = map[Sees]*environment.EnvSet{}
	}
	e.sets[s] = set
	return set, nil
}

// extend declares the variables of admission; object is also oldObject's type.
func extend(base *environment.EnvSet, s Sees, object, params *cel.Type, more ...*apiservercel.DeclType) (*environment.EnvSet, error) {
	request, namespace := requestType(), namespaceType()
	o := environment.VersionedOptions{
		IntroducedVersion: always(),
		DeclTypes:         append(more, namespace, request),
		EnvOptions: []cel.EnvOption{
			cel.Variable("object", object), cel.Variable("oldObject", object),
			cel.Variable("request", request.CelType()), cel.Variable("namespaceObject", namespace.CelType()),
		},
	}
	if s.Params {
		o.EnvOptions = append(o.EnvOptions, cel.Variable("params", params))
	}
	if s.Authorizer {
		o.EnvOptions = append(o.EnvOptions, cel.Variable("authorizer", library.AuthorizerType),
			cel.Variable("authorizer.requestResource", library.ResourceCheckType))
	}
	set, err := base.Extend(o, environment.StrictCostOpt)
	if err != nil || !s.Patches {
		return set, err
	}
	return set.Extend(environment.VersionedOptions{ // after the other types, or it would not see them
		IntroducedVersion: always(),
		EnvOptions:        []cel.EnvOption{common.ResolverEnvOption(&mutation.DynamicTypeResolver{}), library.JSONPatch()},
	})
}

// always is the version of what every expression may use, however old.
func always() *version.Version { return version.MajorMinor(1, 0) }

// Compiler compiles the expressions of one policy or webhook. Not safe for concurrent use.
type Compiler struct {
	base   func(Sees) (*environment.EnvSet, error)
	sets   map[Sees]*environment.EnvSet // with variables
	fields *apiservercel.DeclType       // the type of variables; nil: there is none
	vars   []*Expression
	// typed compilers check types only: they make no programs and ask for no type of result.
	typed bool
}

// Compiler returns a compiler; with variables, expressions see those of
// earlier calls to Variable as variables.<name>.
func (e *Environments) Compiler(variables bool) *Compiler {
	return newCompiler(e.get, variables)
}

func newCompiler(base func(Sees) (*environment.EnvSet, error), variables bool) *Compiler {
	c := &Compiler{base: base, sets: map[Sees]*environment.EnvSet{}}
	if variables {
		c.fields = apiservercel.NewObjectType("kubernetes.variables", map[string]*apiservercel.DeclField{})
	}
	return c
}

// TypeChecker returns a compiler that sees variables and knows the types of
// object (and oldObject) and params; nil: anything goes.
func TypeChecker(s Sees, object, params *apiservercel.DeclType) (*Compiler, error) {
	var more []*apiservercel.DeclType
	of := func(t *apiservercel.DeclType) *cel.Type {
		if t == nil {
			return cel.DynType
		}
		more = append(more, t)
		return t.CelType()
	}
	objectType := of(object)
	set, err := extend(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()), s, objectType, of(params), more...)
	c := newCompiler(func(Sees) (*environment.EnvSet, error) { return set, nil }, true)
	c.typed = true
	return c, err
}

func (c *Compiler) env(s Sees, stored bool) (*cel.Env, error) {
	set := c.sets[s]
	if set == nil {
		var err error
		if set, err = c.base(s); err != nil {
			return nil, err
		}
		if c.fields != nil {
			set, err = set.Extend(environment.VersionedOptions{
				IntroducedVersion: always(), DeclTypes: []*apiservercel.DeclType{c.fields},
				EnvOptions: []cel.EnvOption{cel.Variable("variables", c.fields.CelType())},
			})
			if err != nil {
				return nil, err
			}
		}
		c.sets[s] = set
	}
	if stored {
		return set.StoredExpressionsEnv(), nil
	}
	return set.NewExpressionsEnv(), nil
}

// Variable compiles the expression of a variable, which later ones see.
func (c *Compiler) Variable(name, text string, s Sees, stored bool) *Expression {
	x := c.Compile(text, s, stored, cel.AnyType)
	x.name = name
	c.vars = append(c.vars, x)
	c.fields.Fields[name] = apiservercel.NewDeclField(name, declared(x.Type), true, nil, nil)
	return x
}

// Compile compiles an expression whose result is of one of the types. One
// that is stored already may use what new ones may not yet.
func (c *Compiler) Compile(text string, s Sees, stored bool, results ...*cel.Type) *Expression {
	x := &Expression{Text: text}
	fail := func(kind apiservercel.ErrorType, cause error, format string, args ...any) *Expression {
		x.Type, x.Err = nil, &apiservercel.Error{Type: kind, Detail: fmt.Sprintf(format, args...), Cause: cause}
		return x
	}
	env, err := c.env(s, stored)
	if err != nil {
		return fail(apiservercel.ErrorTypeInternal, nil, "unexpected error loading CEL environment: %v", err)
	}
	ast, issues := env.Compile(text)
	if issues != nil {
		if c.typed {
			return fail(apiservercel.ErrorTypeInvalid, nil, "%s", issues.String())
		}
		return fail(apiservercel.ErrorTypeInvalid, apiservercel.NewCompilationError(issues), "compilation failed: %s", issues.String())
	}
	if x.Type = ast.OutputType(); c.typed {
		return x
	}
	if !oneOf(x.Type, results) {
		if len(results) == 1 {
			return fail(apiservercel.ErrorTypeInvalid, nil, "must evaluate to %v but got %v", results[0].String(), x.Type.String())
		}
		return fail(apiservercel.ErrorTypeInvalid, nil, "must evaluate to one of %v but got %v", results, x.Type.String())
	}
	if x.program, err = env.Program(ast, cel.InterruptCheckFrequency(interruptEvery)); err != nil {
		return fail(apiservercel.ErrorTypeInternal, nil, "program instantiation failed: %v", err)
	}
	return x
}

func oneOf(t *cel.Type, allowed []*cel.Type) bool {
	for _, a := range allowed {
		if t.IsExactType(a) || cel.AnyType.IsExactType(a) {
			return true
		}
	}
	return false
}

// declared is the type a variable has for the expressions that use it.
func declared(t *cel.Type) *apiservercel.DeclType {
	plain := map[*cel.Type]*apiservercel.DeclType{
		cel.AnyType: apiservercel.AnyType, cel.BoolType: apiservercel.BoolType, cel.BytesType: apiservercel.BytesType,
		cel.DoubleType: apiservercel.DoubleType, cel.DurationType: apiservercel.DurationType, cel.IntType: apiservercel.IntType,
		cel.NullType: apiservercel.NullType, cel.StringType: apiservercel.StringType,
		cel.TimestampType: apiservercel.TimestampType, cel.UintType: apiservercel.UintType,
	}
	if d := plain[t]; d != nil {
		return d
	}
	if t != nil && t.HasTrait(traits.ContainerType) && t.HasTrait(traits.IndexerType) {
		switch of := t.Parameters(); len(of) {
		case 1:
			return apiservercel.NewListType(declared(of[0]), -1)
		case 2:
			return apiservercel.NewMapType(declared(of[0]), declared(of[1]), -1)
		}
	}
	return apiservercel.DynType
}

type fields map[string]*apiservercel.DeclType

// object declares a type; names ending in ? are optional fields.
func object(name string, of fields) *apiservercel.DeclType {
	out := map[string]*apiservercel.DeclField{}
	for n, t := range of {
		optional := n[len(n)-1] == '?'
		if optional {
			n = n[:len(n)-1]
		}
		out[n] = apiservercel.NewDeclField(n, t, !optional, nil, nil)
	}
	return apiservercel.NewObjectType("kubernetes."+name, out)
}

func requestType() *apiservercel.DeclType {
	str := apiservercel.StringType
	strs := apiservercel.NewListType(str, -1)
	kind := object("GroupVersionKind", fields{"group": str, "version": str, "kind": str})
	resource := object("GroupVersionResource", fields{"group": str, "version": str, "resource": str})
	user := object("UserInfo", fields{"username?": str, "uid?": str, "groups?": strs, "extra?": apiservercel.NewMapType(str, strs, -1)})
	return object("AdmissionRequest", fields{
		"kind": kind, "resource": resource, "subResource?": str,
		"requestKind": kind, "requestResource": resource, "requestSubResource?": str,
		"name": str, "namespace?": str, "operation": str, "userInfo": user,
		"dryRun?": apiservercel.BoolType, "options?": apiservercel.DynType,
	})
}

func namespaceType() *apiservercel.DeclType {
	str, time, num := apiservercel.StringType, apiservercel.TimestampType, apiservercel.IntType
	strs, strMap := apiservercel.NewListType(str, -1), apiservercel.NewMapType(str, str, -1)
	condition := object("NamespaceCondition", fields{"status": str, "type": str, "lastTransitionTime": time, "message": str, "reason": str})
	return object("Namespace", fields{
		"metadata": object("NamespaceMetadata", fields{
			"name": str, "generateName": str, "namespace": str, "labels": strMap, "annotations": strMap, "UID": str,
			"creationTimestamp": time, "deletionGracePeriodSeconds": num, "deletionTimestamp": time, "generation": num,
			"resourceVersion": str, "finalizers": strs,
		}),
		"spec":   object("NamespaceSpec", fields{"finalizers": strs}),
		"status": object("NamespaceStatus", fields{"conditions": apiservercel.NewListType(condition, -1), "phase": str}),
	})
}

// The sorts of expressions, by the type of their result.

// Condition compiles one that is true or false.
func (c *Compiler) Condition(text string, s Sees, stored bool) *Expression {
	return c.Compile(text, s, stored, cel.BoolType)
}

// Message compiles one that makes a text.
func (c *Compiler) Message(text string, s Sees, stored bool) *Expression {
	return c.Compile(text, s, stored, cel.StringType)
}

// Annotation compiles one that makes a text, or null for none.
func (c *Compiler) Annotation(text string, s Sees, stored bool) *Expression {
	return c.Compile(text, s, stored, cel.StringType, cel.NullType)
}

// Apply compiles one that makes an apply configuration.
func (c *Compiler) Apply(text string, s Sees, stored bool) *Expression {
	s.Patches = true
	return c.Compile(text, s, stored, types.NewObjectType(mutation.ObjectTypeName))
}

// Patch compiles one that makes a list of JSON patch operations.
func (c *Compiler) Patch(text string, s Sees, stored bool) *Expression {
	s.Patches = true
	return c.Compile(text, s, stored, cel.ListType(types.NewObjectType(mutation.JSONPatchTypeName)))
}
