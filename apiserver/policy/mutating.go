package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/cel-go/common/types"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/match"
)

// mutating applies MutatingAdmissionPolicies.
type mutating struct {
	Config
	*checks
	source *source
}

// Name implements admission.Plugin.
func (*mutating) Name() string { return "MutatingAdmissionPolicy" }

// Validate implements admission.Plugin.
func (*mutating) Validate(context.Context, *admission.Request) error { return nil }

// invocation is a policy that is about the request, with one parameter; nil: none.
type invocation struct {
	p     *policy
	b     *binding
	param api.Object
	form  admission.Form
}

// key tells invocations of one request apart.
type key struct{ policy, binding, param string }

func (i *invocation) key() key {
	k := key{policy: i.p.name, binding: i.b.name}
	if i.param != nil {
		k.param = i.param.GetNamespace() + "/" + i.param.GetName()
	}
	return k
}

// rounds is what the first round of admission leaves to the second: done are
// the invocations to be made again if something changes after them, due those
// after which something did, and left the object as policies left it.
type rounds struct {
	done, due map[key]bool
	left      api.Object
}

// changed makes everything done so far due.
func (m *rounds) changed() {
	maps.Copy(m.due, m.done)
	clear(m.done)
}

// Admit implements admission.Plugin.
func (m *mutating) Admit(ctx context.Context, r *admission.Request) error {
	if r.Operation() == admission.Delete {
		return nil
	}
	policies, err := m.source.current()
	if err != nil || len(policies) == 0 || match.Exempt(r) {
		return err
	}
	x := change{mutating: m, r: r}
	todo := x.choose(ctx, policies)
	if len(todo) > 0 {
		if err := x.run(ctx, todo); err != nil {
			return err
		}
	}
	if x.denied == nil {
		return nil
	}
	return x.denied
}

// change is what policies do to one request.
type change struct {
	*mutating
	r      *admission.Request
	denied *apierrors.StatusError
}

// fail denies because of a policy, unless its failures are to be ignored. The
// first failure is the message, all are causes.
func (x *change) fail(p *policy, b *binding, reason metav1.StatusReason, err error) {
	if p.ignores() {
		return
	}
	text := fmt.Sprintf("policy %q denied request: %v", p.name, err)
	if b != nil {
		text = fmt.Sprintf("policy '%s' with binding '%s' denied request: %v", p.name, b.name, err)
	}
	if x.denied == nil {
		x.denied = admission.Forbidden(x.r, errors.New("admission request denied by policy"))
		x.denied.ErrStatus.Message = text
		if reason != "" {
			x.denied.ErrStatus.Reason = reason
		}
	}
	x.denied.ErrStatus.Details.Causes = append(x.denied.ErrStatus.Details.Causes, metav1.StatusCause{Message: text})
}

// choose finds what is to be done, before anything is.
func (x *change) choose(ctx context.Context, policies []*policy) (todo []invocation) {
	for _, p := range policies {
		f, ok, err := p.choose(x.r, x.Reader)
		var stored *Stored
		if ok && err == nil {
			stored, err = x.stored(ctx, p)
		}
		if err != nil {
			x.fail(p, nil, "", fmt.Errorf("failed to configure policy: %w", err))
		}
		if !ok || err != nil {
			continue
		}
		for i := range p.bindings {
			b := &p.bindings[i]
			ok, err := b.choose(x.r, x.Reader)
			var params []api.Object
			if ok && err == nil {
				params, err = x.findParams(ctx, stored, b.param, x.r.Namespace)
			}
			if err != nil {
				x.fail(p, b, "", fmt.Errorf("failed to configure binding: %w", err))
				continue
			}
			for _, param := range params {
				todo = append(todo, invocation{p, b, param, f})
			}
		}
	}
	return todo
}

// run makes the invocations in order, each on what the ones before left.
func (x *change) run(ctx context.Context, todo []invocation) error {
	m, _ := x.r.State(x.Name()).(*rounds)
	if m == nil {
		m = &rounds{done: map[key]bool{}, due: map[key]bool{}}
		x.r.SetState(x.Name(), m)
	}
	if x.r.Again() && !apiequality.Semantic.DeepEqual(m.left, x.r.Object) {
		m.changed() // by a plugin that came after
	}
	any := false
	for i := range todo {
		inv := &todo[i]
		ran, changed, err := x.invoke(ctx, m, inv)
		if err != nil {
			return err
		}
		if any = any || changed; changed {
			m.changed()
		}
		if ran && inv.p.reinvoke {
			m.done[inv.key()] = true
		}
	}
	if any {
		m.changed()
		x.r.Reinvoke()
	}
	m.left = nil
	if x.r.Object != nil {
		m.left = x.r.Object.DeepCopyObject().(api.Object)
	}
	return nil
}

// invoke makes one invocation and tells whether it had its turn, and changed the object.
func (x *change) invoke(ctx context.Context, m *rounds, inv *invocation) (ran, changed bool, err error) {
	in, err := x.inputs(x.r, inv.form)
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return false, false, err
	} else if err != nil {
		x.fail(inv.p, nil, "", fmt.Errorf("failed to configure policy: %w", err))
		return false, false, nil
	}
	in.Params = types.NullValue
	if inv.param != nil {
		in.Params = valueOf(inv.param, inv.p.paramKind())
	}
	code := inv.p.program()
	if len(code.conditions) > 0 {
		if ok, err := match.Conditions(ctx, x.r, inv.p.name, code.conditions, in, code.variables, inv.p.failure); err != nil {
			x.fail(inv.p, inv.b, metav1.StatusReasonInvalid, err)
			return false, false, nil
		} else if !ok {
			return false, false, nil
		}
	}
	if x.r.Again() && !m.due[inv.key()] {
		return false, false, nil
	}
	for i := range code.mutations {
		if x.r.Object == nil {
			break
		}
		began := time.Now()
		did, err := x.mutate(ctx, inv, in, code, i)
		x.observe(inv.p, inv.b, time.Since(began), mutationFailure(err))
		if status := apierrors.APIStatus(nil); errors.As(err, &status) {
			return false, false, err
		} else if err != nil {
			x.fail(inv.p, inv.b, metav1.StatusReasonInvalid, err)
			continue
		}
		if changed = changed || did; did {
			if in.Object, err = show(x.r.Object, inv.form); err != nil {
				return false, false, apierrors.NewInternalError(err)
			}
		}
	}
	return true, changed, nil
}

// mutate evaluates one mutation and puts what it makes of the object into the
// request. It tells whether that differs.
func (x *change) mutate(ctx context.Context, inv *invocation, in expression.Inputs, code *program, i int) (bool, error) {
	now, err := inv.form.Show(x.r.Object)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	v, err := evaluateMutation(ctx, in, code, i)
	if err != nil {
		return false, err
	}
	var made api.Object
	if inv.p.mutations[i].ApplyConfiguration != nil {
		types, typesErr := x.Kinds.Types(ctx, inv.form.Kind)
		if typesErr != nil {
			return false, apierrors.NewServiceUnavailable(fmt.Sprintf("Resource kind %s not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.", inv.form.Kind))
		}
		made, err = apply(types, now, v, inv.form)
	} else {
		made, err = patch(now, v, inv.form)
	}
	if err != nil || made == nil {
		return false, err
	}
	if inv.form.Default != nil {
		inv.form.Default(made)
	}
	if apiequality.Semantic.DeepEqual(now, made) {
		return false, nil
	}
	made, err = inv.form.Store(made)
	if err != nil {
		return false, apierrors.NewInternalError(fmt.Errorf("failed to convert object: %w", err))
	}
	x.r.Replace(made)
	return true, nil
}
