package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	v1 "k8s.io/api/admissionregistration/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/match"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/object/patch"
)

// mutating is the plugin MutatingAdmissionWebhook.
type mutating struct{ *source }

func mutatingHooks(obj api.Object) (out []hook) {
	config, ok := obj.(*v1.MutatingWebhookConfiguration)
	for i := 0; ok && i < len(config.Webhooks); i++ {
		w := &config.Webhooks[i]
		out = append(out, hook{
			ValidatingWebhook: v1.ValidatingWebhook{
				Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules, FailurePolicy: w.FailurePolicy, MatchPolicy: w.MatchPolicy,
				NamespaceSelector: w.NamespaceSelector, ObjectSelector: w.ObjectSelector, SideEffects: w.SideEffects,
				TimeoutSeconds: w.TimeoutSeconds, AdmissionReviewVersions: w.AdmissionReviewVersions, MatchConditions: w.MatchConditions,
			},
			reinvoke: w.ReinvocationPolicy != nil && *w.ReinvocationPolicy == v1.IfNeededReinvocationPolicy,
		})
	}
	return out
}

// Name implements admission.Plugin.
func (mutating) Name() string { return "MutatingAdmissionWebhook" }

// Validate implements admission.Plugin.
func (mutating) Validate(context.Context, *admission.Request) error { return nil }

// rounds is which webhooks a second round of admission asks again.
type rounds struct {
	asked map[string]bool // that are to be asked again if the object changes
	again map[string]bool
	last  runtime.Object // the object when the webhooks were through
}

// changed: all that were asked so far and care are asked again.
func (m *rounds) changed() {
	for uid := range m.asked {
		m.again[uid] = true
	}
	clear(m.asked)
}

// Admit implements admission.Plugin.
func (p mutating) Admit(ctx context.Context, r *admission.Request) error {
	if match.Exempt(r) {
		return nil
	}
	hooks, err := p.list()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if len(hooks) == 0 {
		return nil
	}
	m, _ := r.State(p.Name()).(*rounds)
	if m == nil {
		m = &rounds{asked: map[string]bool{}, again: map[string]bool{}}
		r.SetState(p.Name(), m)
	}
	if r.Again() && r.Object != nil && !apiequality.Semantic.DeepEqual(m.last, r.Object) {
		m.changed() // by other plugins
	}
	v := &view{r: r}
	for i := range hooks {
		if err := p.mutate(ctx, &hooks[i], i, v, m); err != nil {
			return err
		}
	}
	if err := v.done(); err != nil {
		return apierrors.NewInternalError(err)
	}
	if r.Object != nil {
		m.last = r.Object.DeepCopyObject()
	}
	return nil
}

// mutate asks one webhook, if it wants to be, and does what it says.
func (p mutating) mutate(ctx context.Context, h *hook, index int, v *view, m *rounds) error {
	f, ok, err := p.wants(ctx, h, v)
	if err != nil || !ok {
		return err
	}
	if v.r.Again() && !m.again[h.uid] {
		return nil // nothing is asked for the first time in the second round
	}
	if err := v.in(f); err != nil {
		return apierrors.NewInternalError(err)
	}
	round := 0
	if v.r.Again() {
		round = 1
	}
	start := time.Now()
	a, err := p.ask(ctx, h, f, v, true)
	a.tell(ctx, h)
	changed := false
	if err == nil {
		changed, err = apply(h, a, v)
	}
	took := time.Since(start)
	request.Waited(ctx, took)
	p.count(h, v.r.Operation(), took, err)
	turn := fmt.Sprintf("webhook.admission.k8s.io/round_%d_index_%d", round, index)
	note(ctx, turn, h, a, changed)
	if changed {
		m.changed()
		v.r.Reinvoke()
	}
	if h.reinvoke {
		m.asked[h.uid] = true
	}
	if err != nil {
		return p.failed(ctx, h, err, func() { admission.Annotate(ctx, "failed-open.mutation."+turn, h.Name) })
	}
	return nil
}

// note tells the audit log what a webhook did in its turn, and, where bodies
// are logged, how.
func note(ctx context.Context, turn string, h *hook, a answer, mutated bool) {
	type who struct {
		Configuration string `json:"configuration"`
		Webhook       string `json:"webhook"`
	}
	by := who{h.configuration, h.Name}
	if text, err := json.Marshal(struct {
		who
		Mutated bool `json:"mutated"`
	}{by, mutated}); err == nil {
		admission.Annotate(ctx, "mutation."+turn, string(text))
	}
	if !mutated {
		return
	}
	if text, err := json.Marshal(struct {
		who
		Patch     json.RawMessage `json:"patch"`
		PatchType string          `json:"patchType"`
	}{by, a.Patch, string(*a.PatchType)}); err == nil {
		admission.AnnotateBody(ctx, "patch."+turn, string(text))
	}
}

// apply patches the object as a webhook says and tells whether that changed it.
func apply(h *hook, a answer, v *view) (changed bool, err error) {
	if len(a.Patch) == 0 {
		return false, nil
	}
	var ops []json.RawMessage
	if err := json.Unmarshal(a.Patch, &ops); err != nil {
		return false, &callError{h.Name, fmt.Errorf("received undecodable patch in webhook response: %w", err)}
	}
	if len(ops) == 0 {
		return false, nil
	}
	if v.now == nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.Name))
	}
	if *a.PatchType != admissionv1.PatchTypeJSONPatch {
		return false, &callError{h.Name, fmt.Errorf("unsupported patch type %q", *a.PatchType)}
	}
	if _, ok := v.now.(api.Object); !ok {
		return false, apierrors.NewInternalError(errors.New("the options of a connect request cannot be changed by webhooks"))
	}
	doc, err := v.json()
	if err == nil {
		doc, _, err = patch.JSON(doc, a.Patch, false)
	}
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	before, err := v.set(doc)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	return !apiequality.Semantic.DeepEqual(before, v.now), nil
}
