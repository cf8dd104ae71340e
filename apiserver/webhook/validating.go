package webhook

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/match"
	"github.com/skiff-project/skiff/apiserver/request"
)

// validating is the plugin ValidatingAdmissionWebhook.
type validating struct{ *source }

func validatingHooks(obj api.Object) (out []hook) {
	config, ok := obj.(*v1.ValidatingWebhookConfiguration)
	for i := 0; ok && i < len(config.Webhooks); i++ {
		out = append(out, hook{ValidatingWebhook: config.Webhooks[i]})
	}
	return out
}

// Name implements admission.Plugin.
func (validating) Name() string { return "ValidatingAdmissionWebhook" }

// Admit implements admission.Plugin.
func (validating) Admit(context.Context, *admission.Request) error { return nil }

// invocation is one webhook to be asked, and what came of it.
type invocation struct {
	*hook
	f   admission.Form
	v   *view
	a   answer
	err error
}

// Validate implements admission.Plugin. Of several failures the client sees the first webhook's.
func (p validating) Validate(ctx context.Context, r *admission.Request) error {
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
	calls, err := p.calls(ctx, r, hooks)
	if err == nil && len(calls) > 0 {
		err = timedOut(ctx)
	}
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	began := time.Now()
	for _, c := range calls {
		wg.Go(func() {
			start := time.Now()
			c.a, c.err = p.ask(ctx, c.hook, c.f, c.v, false)
			p.count(c.hook, r.Operation(), time.Since(start), c.err)
		})
	}
	wg.Wait()
	request.Waited(ctx, time.Since(began))
	for i, c := range calls {
		c.a.tell(ctx, c.hook)
		if c.err == nil {
			continue
		}
		failed := p.failed(context.WithoutCancel(ctx), c.hook, c.err, func() {
			admission.Annotate(ctx, fmt.Sprintf("failed-open.validating.webhook.admission.k8s.io/round_0_index_%d", i), c.Name)
		})
		if failed != nil && err == nil {
			err = failed
		}
	}
	return err
}

// calls are the webhooks that want to be asked; each form is made once.
func (p validating) calls(ctx context.Context, r *admission.Request, hooks []hook) (out []*invocation, err error) {
	views := map[schema.GroupVersionKind]*view{}
	plain := &view{r: r}
	for i := range hooks {
		probe := *plain // match conditions need a form of their own
		f, ok, err := p.wants(ctx, &hooks[i], &probe)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if views[f.Kind] == nil {
			views[f.Kind] = &probe
			if err := probe.in(f); err != nil {
				return nil, apierrors.NewInternalError(err)
			}
		}
		out = append(out, &invocation{hook: &hooks[i], f: f, v: views[f.Kind]})
	}
	return out, nil
}
