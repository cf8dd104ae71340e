// Package policy enforces ValidatingAdmissionPolicies and
// MutatingAdmissionPolicies: which of them a request concerns, with which
// parameters, what their expressions say, and what follows. All I/O is behind
// what Config names.
package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/match"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth"
)

// Config is what policies need besides the request. All fields but Kinds are required.
type Config struct {
	Reader admission.Reader
	// Authorizer answers the authorizer variable, and whether who writes a
	// policy or binding may read the parameters it names.
	Authorizer auth.Authorizer
	// Kinds are all served kinds; the server that runs the plugins gives them to Serve.
	Kinds Kinds
}

// Plugin is either plugin. Serve must be called before the first request.
type Plugin interface {
	admission.Plugin
	Serve(Kinds)
}

// Serve implements Plugin.
func (c *Config) Serve(k Kinds) { c.Kinds = k }

// Kinds knows the kinds the API server serves.
type Kinds interface {
	// Stored finds a kind that is stored; ok is false where there is none.
	Stored(ctx context.Context, kind schema.GroupVersionKind) (k Stored, ok bool)
	// Types knows how objects of a kind are merged.
	Types(ctx context.Context, kind schema.GroupVersionKind) (managedfields.TypeConverter, error)
}

// Stored is one stored kind.
type Stored struct {
	Resource *api.Resource
	Registry *registry.Registry
	// Show makes a stored object one of the kind; with Verbatim it is one already.
	Show     func(api.Object) (api.Object, error)
	Verbatim bool
}

// New returns the two plugins, which go before the webhooks of their sort.
func New(c Config) (mutate, validate Plugin) {
	envs := &expression.Environments{}
	of := func(policies, bindings string) *source {
		return &source{read: c.Reader, envs: envs, policies: policies, bindings: bindings}
	}
	return &mutating{Config: c, checks: mutationChecks(), source: of("mutatingadmissionpolicies", "mutatingadmissionpolicybindings")},
		&validating{Config: c, checks: validationChecks(), source: of("validatingadmissionpolicies", "validatingadmissionpolicybindings")}
}

// policy is one stored policy of either sort with its bindings.
type policy struct {
	name    string
	uid     types.UID
	version int64 // generation
	failure *admissionv1.FailurePolicyType
	params  *admissionv1.ParamKind
	match   *admissionv1.MatchResources

	conditions  []admissionv1.MatchCondition
	variables   []admissionv1.Variable
	validations []admissionv1.Validation
	annotations []admissionv1.AuditAnnotation
	mutations   []admissionv1.Mutation
	reinvoke    bool

	bindings    []binding
	chooses     *match.Criteria
	chooseError error
	// program compiles the expressions, once, when they are first needed.
	program func() *program
}

// binding is one stored binding of either sort.
type binding struct {
	name, policy string
	param        *admissionv1.ParamRef
	match        *admissionv1.MatchResources
	actions      []admissionv1.ValidationAction
	chooses      *match.Criteria
	chooseError  error
}

// ignores tells that what goes wrong with the policy itself is to be passed over.
func (p *policy) ignores() bool { return p.failure != nil && *p.failure == admissionv1.Ignore }

func asPolicy(obj api.Object) policy {
	p := policy{name: obj.GetName(), uid: obj.GetUID(), version: obj.GetGeneration()}
	switch o := obj.(type) {
	case *admissionv1.ValidatingAdmissionPolicy:
		s := &o.Spec
		p.failure, p.params, p.match, p.conditions, p.variables = s.FailurePolicy, s.ParamKind, s.MatchConstraints, s.MatchConditions, s.Variables
		p.validations, p.annotations = s.Validations, s.AuditAnnotations
	case *admissionv1.MutatingAdmissionPolicy:
		s := &o.Spec
		p.failure, p.params, p.match, p.conditions, p.variables = s.FailurePolicy, s.ParamKind, s.MatchConstraints, s.MatchConditions, s.Variables
		p.mutations, p.reinvoke = s.Mutations, s.ReinvocationPolicy == admissionv1.IfNeededReinvocationPolicy
	}
	p.chooses, p.chooseError = match.New(p.match)
	return p
}

func asBinding(obj api.Object) binding {
	b := binding{name: obj.GetName()}
	switch o := obj.(type) {
	case *admissionv1.ValidatingAdmissionPolicyBinding:
		b.policy, b.param, b.match, b.actions = o.Spec.PolicyName, o.Spec.ParamRef, o.Spec.MatchResources, o.Spec.ValidationActions
	case *admissionv1.MutatingAdmissionPolicyBinding:
		b.policy, b.param, b.match = o.Spec.PolicyName, o.Spec.ParamRef, o.Spec.MatchResources
	}
	b.chooses, b.chooseError = match.New(b.match)
	return b
}

// program is a policy's compiled expressions.
type program struct {
	variables             []*expression.Expression
	conditions            []expression.Condition
	validations, messages []*expression.Expression // of validations; nil: it has no message expression
	annotations           []*expression.Expression
	mutations             []*expression.Expression
}

func (p *policy) compile(envs *expression.Environments) *program {
	c := envs.Compiler(len(p.variables) > 0)
	sees := expression.Sees{Params: p.params != nil, Authorizer: true}
	out := &program{}
	for _, v := range p.variables {
		c.Variable(v.Name, v.Expression, sees, true)
	}
	out.variables, out.conditions = c.Variables(), c.Conditions(p.conditions, sees)
	for _, v := range p.validations {
		var message *expression.Expression
		if v.MessageExpression != "" {
			message = c.Message(v.MessageExpression, expression.Sees{Params: sees.Params}, true)
		}
		out.validations = append(out.validations, c.Condition(v.Expression, sees, true))
		out.messages = append(out.messages, message)
	}
	for _, a := range p.annotations {
		out.annotations = append(out.annotations, c.Annotation(a.ValueExpression, sees, true))
	}
	for _, m := range p.mutations {
		if m.ApplyConfiguration != nil {
			out.mutations = append(out.mutations, c.Apply(m.ApplyConfiguration.Expression, sees, true))
		} else if m.JSONPatch != nil {
			out.mutations = append(out.mutations, c.Patch(m.JSONPatch.Expression, sees, true))
		}
	}
	return out
}

// source is the stored policies of one sort. What was made of them is used as
// long as they are stored in that very version, so there is one program for
// each stored policy at most.
type source struct {
	read               admission.Reader
	envs               *expression.Environments
	policies, bindings string

	mu    sync.Mutex
	seen  [2][]api.Object // policies and bindings rules were made of
	rules []*policy
}

// current returns the policies that have bindings.
func (s *source) current() ([]*policy, error) {
	policies, err := s.read.List(admissionv1.GroupName, s.policies, "")
	if err != nil || len(policies) == 0 {
		return nil, err
	}
	bindings, err := s.read.List(admissionv1.GroupName, s.bindings, "")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.seen[0], policies) && slices.Equal(s.seen[1], bindings) {
		return s.rules, nil
	}
	have := map[types.UID]*policy{}
	for _, p := range s.rules {
		have[p.uid] = p
	}
	bound := map[string][]binding{}
	for _, obj := range bindings {
		b := asBinding(obj)
		bound[b.policy] = append(bound[b.policy], b)
	}
	s.rules = nil
	for _, obj := range policies {
		if bound[obj.GetName()] == nil {
			continue
		}
		p := asPolicy(obj)
		p.bindings = bound[p.name]
		if old := have[p.uid]; old != nil && old.version == p.version {
			p.program = old.program
		} else {
			p.program = sync.OnceValue(func() *program { return p.compile(s.envs) })
		}
		s.rules = append(s.rules, &p)
	}
	s.seen = [2][]api.Object{policies, bindings}
	return s.rules, nil
}

// stored finds the parameters' kind; nil: the policy has none.
func (c *Config) stored(ctx context.Context, p *policy) (*Stored, error) {
	if p.params == nil {
		return nil, nil
	}
	k, ok := c.Kinds.Stored(ctx, p.paramKind())
	if !ok {
		return nil, fmt.Errorf("failed to find resource referenced by paramKind: '%v'", p.paramKind())
	}
	return &k, nil
}

// paramKind is the kind of the parameters, if there are any.
func (p *policy) paramKind() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(p.params.APIVersion, p.params.Kind)
}

// findParams returns the parameters a binding names for a request in a
// namespace: one nil where the policy or the binding has none, and none where
// there are none but that is allowed. It errs where they cannot be read, or
// must be there.
func (c *Config) findParams(ctx context.Context, stored *Stored, ref *admissionv1.ParamRef, namespace string) ([]api.Object, error) {
	if stored == nil || ref == nil {
		return []api.Object{nil}, nil
	}
	switch {
	case !stored.Resource.Namespaced && ref.Namespace != "":
		return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
	case !stored.Resource.Namespaced:
		namespace = ""
	case ref.Namespace != "":
		namespace = ref.Namespace
	case namespace == "":
		return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
	}
	found, err := c.readParams(ctx, stored, ref, namespace)
	if err == nil && len(found) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admissionv1.DenyAction {
		err = errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return found, err
}

func (c *Config) readParams(ctx context.Context, stored *Stored, ref *admissionv1.ParamRef, namespace string) (out []api.Object, err error) {
	if ref.Name != "" {
		obj, err := c.getParam(ctx, stored, namespace, ref.Name)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return []api.Object{obj}, err
	}
	selector, err := metav1.LabelSelectorAsSelector(ref.Selector)
	if err != nil {
		return nil, err
	}
	page, err := stored.Registry.List(ctx, registry.ListOptions{Selection: registry.Selection{Namespace: namespace, Labels: selector}, ResourceVersion: "0"})
	for _, kv := range page.Items {
		obj, err := stored.show(stored.Registry.Object(registry.Item{KV: kv, ResourceVersion: kv.ModRevision}))
		if err != nil {
			return nil, err
		}
		out = append(out, obj)
	}
	return out, err
}

func (c *Config) getParam(ctx context.Context, stored *Stored, namespace, name string) (api.Object, error) {
	if stored.Verbatim { // and decoded once
		return c.Reader.Get(stored.Resource.Group, stored.Resource.Name, namespace, name)
	}
	it, err := stored.Registry.Get(ctx, namespace, name, "0")
	if err != nil {
		return nil, err
	}
	return stored.show(stored.Registry.Object(it))
}

func (s *Stored) show(obj api.Object, err error) (api.Object, error) {
	if err != nil {
		return nil, err
	}
	return s.Show(obj)
}
