package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiservercel "k8s.io/apiserver/pkg/cel"

	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/match"
)

// Bounds of what policies tell: a message and an annotation in bytes, failures in one annotation.
const (
	maxMessage    = 5 * 1024
	maxAnnotation = 10 * 1024
	maxFailures   = 50
)

// validating enforces ValidatingAdmissionPolicies.
type validating struct {
	Config
	*checks
	source *source
}

// Name implements admission.Plugin.
func (*validating) Name() string { return "ValidatingAdmissionPolicy" }

// Admit implements admission.Plugin.
func (*validating) Admit(context.Context, *admission.Request) error { return nil }

// Validate implements admission.Plugin.
func (v *validating) Validate(ctx context.Context, r *admission.Request) error {
	if r.APIGroup == admissionv1.GroupName {
		switch r.Resource {
		case "validatingadmissionpolicies", "validatingadmissionpolicybindings":
			return v.guard(ctx, r, "validatingadmissionpolicies")
		case "mutatingadmissionpolicies", "mutatingadmissionpolicybindings":
			return v.guard(ctx, r, "mutatingadmissionpolicies")
		}
	}
	policies, err := v.source.current()
	if err != nil || len(policies) == 0 || match.Exempt(r) {
		return err
	}
	d := decision{config: &v.Config, checks: v.checks, r: r}
	for _, p := range policies {
		f, ok, err := p.choose(r, v.Reader)
		if err != nil {
			d.broken(p, nil, err)
		}
		if ok {
			if err := d.policy(ctx, p, f); err != nil {
				return err
			}
		}
	}
	d.publish(ctx)
	return d.denied
}

// choose tells whether the policy is about the request, and in which form.
func (p *policy) choose(r *admission.Request, read admission.Reader) (admission.Form, bool, error) {
	if p.chooseError != nil {
		return admission.Form{}, false, p.chooseError
	}
	return p.chooses.Match(r, r.Object, read)
}

// choose tells whether the binding is about the request.
func (b *binding) choose(r *admission.Request, read admission.Reader) (bool, error) {
	if b.chooseError != nil {
		return false, b.chooseError
	}
	_, ok, err := b.chooses.Match(r, r.Object, read)
	return ok, err
}

// decision is what policies make of one request.
type decision struct {
	config   *Config
	checks   *checks
	r        *admission.Request
	denied   error // the first denial
	failures []failure
}

// failure is one failed validation in an audit annotation.
type failure struct {
	Message           string                         `json:"message"`
	Policy            string                         `json:"policy"`
	Binding           string                         `json:"binding"`
	ExpressionIndex   int                            `json:"expressionIndex"`
	ValidationActions []admissionv1.ValidationAction `json:"validationActions"`
}

// broken denies because the policy, or with b the binding, cannot be used.
func (d *decision) broken(p *policy, b *binding, err error) {
	if p.ignores() {
		return
	}
	what := "policy"
	if b != nil {
		what = "binding"
	}
	d.deny(p, b, fmt.Sprintf("failed to configure %s: %v", what, err), "")
}

func (d *decision) deny(p *policy, b *binding, message string, reason metav1.StatusReason) {
	if d.denied != nil {
		return
	}
	by := ""
	if b != nil {
		by = fmt.Sprintf(" with binding '%s'", b.name)
	}
	text := fmt.Sprintf("ValidatingAdmissionPolicy '%s'%s denied request: %s", p.name, by, message)
	err := admission.Forbidden(d.r, errors.New(text))
	if reason == "" {
		reason = metav1.StatusReasonInvalid
	}
	err.ErrStatus.Reason, err.ErrStatus.Code = reason, http.StatusUnprocessableEntity
	switch reason {
	case metav1.StatusReasonForbidden:
		err.ErrStatus.Code = http.StatusForbidden
	case metav1.StatusReasonUnauthorized:
		err.ErrStatus.Code = http.StatusUnauthorized
	case metav1.StatusReasonRequestEntityTooLarge:
		err.ErrStatus.Code = http.StatusRequestEntityTooLarge
	}
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: text})
	d.denied = err
}

// policy evaluates one policy for each of its bindings and their parameters.
// An error is that of a request nothing can be said of.
func (d *decision) policy(ctx context.Context, p *policy, f admission.Form) error {
	stored, err := d.config.stored(ctx, p)
	if err != nil {
		d.broken(p, nil, err)
		return nil
	}
	notes := map[string][]string{}
	var in *expression.Inputs
	for i := range p.bindings {
		b := &p.bindings[i]
		if ok, err := b.choose(d.r, d.config.Reader); err != nil {
			d.broken(p, b, err)
			continue
		} else if !ok {
			continue
		}
		params, err := d.config.findParams(ctx, stored, b.param, d.r.Namespace)
		if err != nil {
			d.broken(p, b, err)
			continue
		}
		if in == nil && len(params) > 0 {
			made, err := d.config.inputs(d.r, f)
			if status := apierrors.APIStatus(nil); errors.As(err, &status) {
				return err
			} else if err != nil {
				d.broken(p, b, fmt.Errorf("failed to convert object version: %w", err))
				continue
			}
			in = &made
		}
		for _, param := range params {
			with := *in
			with.Params = types.NullValue
			if param != nil {
				with.Params = valueOf(param, p.paramKind())
			}
			d.evaluate(ctx, p, b, with, notes)
		}
	}
	for key, values := range notes {
		admission.Annotate(ctx, p.name+"/"+key, strings.Join(values, ", "))
	}
	return nil
}

// evaluate evaluates a policy once. Annotations go to notes.
func (d *decision) evaluate(ctx context.Context, p *policy, b *binding, in expression.Inputs, notes map[string][]string) {
	fault := func(i int, took time.Duration, message string) { // of the policy, not of the object
		if p.ignores() {
			d.checks.observe(p, b, took, failureOf(message), "allow")
			return
		}
		d.act(ctx, p, b, i, took, message, "")
	}
	failed := func(err error) { fault(0, 0, err.Error()) }
	code := p.program()
	if len(code.conditions) > 0 {
		if ok, err := match.Conditions(ctx, d.r, p.name, code.conditions, in, code.variables, p.failure); err != nil {
			failed(err)
			return
		} else if !ok {
			return
		}
	}
	// All are evaluated before anything is done, so that a spent budget is the only thing said.
	e := expression.Evaluate(ctx, in, code.variables, expression.Budget)
	results := make([]result, len(code.validations))
	for i, x := range code.validations {
		began := time.Now()
		v, err, fatal := e.Eval(x)
		if fatal != nil {
			failed(fatal)
			return
		}
		results[i] = result{v == types.True, err, time.Since(began)}
	}
	messages, messageErr := evaluateMessages(ctx, code, in, e.Remaining)
	notesOK, err := annotate(ctx, code, in)
	if err != nil {
		failed(err)
		return
	}
	for i, res := range results {
		v := &p.validations[i]
		switch {
		case res.err != nil:
			fault(i, res.took, res.err.Error())
		case messageErr != nil:
			fault(i, res.took, fmt.Sprintf("failed messageExpression: %s", messageErr))
		case !res.ok:
			reason := metav1.StatusReasonInvalid
			if v.Reason != nil {
				reason = *v.Reason
			}
			d.act(ctx, p, b, i, res.took, message(v, messages[i]), reason)
		}
	}
	for i, note := range notesOK {
		key := p.annotations[i].Key
		switch {
		case note.err != nil:
			if !p.ignores() {
				d.deny(p, b, note.err.Error(), "")
				d.checks.observe(p, b, note.took, failureOf(note.err.Error()), "deny")
			}
		case note.text != "" && !slices.Contains(notes[key], note.text):
			notes[key] = append(notes[key], note.text)
		}
	}
}

type result struct {
	ok   bool
	err  error
	took time.Duration
}

// evaluateMessages makes the texts of message expressions, "" where there is
// none. They are made of all validations, failed or not: their cost is upstream's.
func evaluateMessages(ctx context.Context, code *program, in expression.Inputs, budget int64) ([]string, error) {
	out := make([]string, len(code.messages))
	e := expression.Evaluate(ctx, in, code.variables, budget)
	for i, x := range code.messages {
		if x == nil {
			continue
		}
		v, err, fatal := e.Eval(x)
		if fatal != nil {
			if errors.Is(fatal, apiservercel.ErrInternal) || errors.Is(fatal, apiservercel.ErrOutOfBudget) {
				return out, fatal
			}
			return out, nil
		}
		if err != nil || v == nil {
			continue
		}
		text, _ := v.Value().(string)
		if text = strings.TrimSpace(text); len(text) <= maxMessage && !strings.Contains(text, "\n") {
			out[i] = text
		}
	}
	return out, nil
}

// message says why a validation failed.
func message(v *admissionv1.Validation, evaluated string) string {
	if evaluated != "" {
		return evaluated
	}
	if text := strings.TrimSpace(v.Message); text != "" {
		return text
	}
	return "failed expression: " + strings.TrimSpace(v.Expression)
}

type note struct {
	text string
	err  error
	took time.Duration
}

// annotate makes the values of annotations. An error is that of all of them.
func annotate(ctx context.Context, code *program, in expression.Inputs) ([]note, error) {
	e := expression.Evaluate(ctx, in, code.variables, expression.Budget)
	out := make([]note, len(code.annotations))
	for i, x := range code.annotations {
		began := time.Now()
		v, err, fatal := e.Eval(x)
		if fatal != nil {
			return nil, fatal
		}
		out[i].took = time.Since(began)
		if out[i].err = err; err != nil || v == types.NullValue {
			continue
		}
		text, ok := v.Value().(string)
		if !ok {
			out[i].err = fmt.Errorf("valueExpression '%v' resulted in unsupported return type: %v. Return type must be either string or null.", x.Text, v.Type())
			continue
		}
		text = strings.TrimSpace(text)
		out[i].text = text[:min(len(text), maxAnnotation)]
	}
	return out, nil
}

// act does what the binding says about a failed validation.
func (d *decision) act(ctx context.Context, p *policy, b *binding, i int, took time.Duration, message string, reason metav1.StatusReason) {
	for _, action := range b.actions {
		d.checks.observe(p, b, took, failureOf(message), strings.ToLower(string(action)))
		switch action {
		case admissionv1.Deny:
			d.deny(p, b, message, reason)
		case admissionv1.Warn:
			admission.Warn(ctx, fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", p.name, b.name, message))
		case admissionv1.Audit:
			d.failures = append(d.failures, failure{message, p.name, b.name, i, b.actions})
		}
	}
}

// publish annotates the request with the failures that are to be audited.
func (d *decision) publish(ctx context.Context) {
	if len(d.failures) == 0 {
		return
	}
	if text, err := json.Marshal(d.failures[:min(len(d.failures), maxFailures)]); err == nil {
		admission.Annotate(ctx, "validation.policy.admission.k8s.io/validation_failure", string(text))
	}
}
