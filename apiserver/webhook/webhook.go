// Package webhook asks the webhooks of Mutating- and
// ValidatingWebhookConfigurations about requests, as two admission plugins.
// Nothing is kept in step with the configurations: each request looks at what
// is stored, and what was made of a configuration is used while it is unchanged.
package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/match"
	"github.com/skiff-project/skiff/apiserver/callout"
	"github.com/skiff-project/skiff/apiserver/connect"
	"github.com/skiff-project/skiff/auth"
)

// Config makes the plugins. Reader and Authorizer are required.
type Config struct {
	Reader admission.Reader
	// Authorizer is whom match conditions ask.
	Authorizer auth.Authorizer
	// Dial connects to webhooks; default net.Dialer.
	Dial connect.DialFunc
	// Host is where a Service's port is reached ("address:port"); default: at a
	// ready endpoint, see connect.Routes.
	Host func(namespace, service, port string) (string, error)
	Log  *slog.Logger // default: discard
}

// maxAnswer bounds what a webhook says, in bytes.
const maxAnswer = 12 * 1024 * 1024

// New returns the plugins MutatingAdmissionWebhook, which asks webhooks one
// after the other, and ValidatingAdmissionWebhook, which asks all at once.
func New(c Config) (mutate, validate admission.Plugin) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	}
	if c.Host == nil {
		c.Host = connect.Routes{Reader: c.Reader}.Route
	}
	s := source{
		Config: c, environments: &expression.Environments{}, counters: newCounters(),
		clients: callout.New(callout.Config{Dial: c.Dial, Host: c.Host, Answers: answers(), Body: maxAnswer}),
	}
	m, v := s, s
	m.resource, m.of = "mutatingwebhookconfigurations", mutatingHooks
	v.resource, v.of = "validatingwebhookconfigurations", validatingHooks
	m.kind, v.kind = "admit", "validating"
	m.made, v.made = &made{}, &made{}
	return mutating{&m}, validating{&v}
}

// hook is one webhook of a configuration.
type hook struct {
	v1.ValidatingWebhook
	configuration string
	uid           string // unique among all configurations
	criteria      match.Criteria
	unreadable    error // a selector
	reinvoke      bool
	target        callout.Target
	conditions    func() []expression.Condition // compiled on first use
}

// ignored tells that failures to call the webhook do not matter.
func (h *hook) ignored() bool { return h.FailurePolicy != nil && *h.FailurePolicy == v1.Ignore }

// source makes the hooks of all configurations of one sort.
type source struct {
	Config
	clients      *callout.Clients
	environments *expression.Environments
	counters     *counters
	resource     string
	kind         string // of the calls, in metrics
	of           func(api.Object) []hook
	made         *made
}

// made is what was made of the configurations last seen.
type made struct {
	mu    sync.Mutex
	objs  []api.Object
	hooks []hook
}

// list returns the webhooks in the order they are called: configurations by
// name, and theirs in turn.
func (s *source) list() ([]hook, error) {
	objs, err := s.Reader.List(v1.GroupName, s.resource, "")
	if err != nil || len(objs) == 0 {
		return nil, err
	}
	m := s.made
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Equal(objs, m.objs) {
		return m.hooks, nil
	}
	m.objs, m.hooks = objs, nil
	for _, obj := range objs { // sorted by name, as keys are
		names := map[string]int{}
		for _, h := range s.of(obj) {
			h.configuration = obj.GetName()
			h.uid = fmt.Sprintf("%s/%s/%d", obj.GetName(), h.Name, names[h.Name])
			names[h.Name]++
			s.prepare(&h)
			m.hooks = append(m.hooks, h)
		}
	}
	return m.hooks, nil
}

func (s *source) prepare(h *hook) {
	for _, r := range h.Rules {
		h.criteria.Rules = append(h.criteria.Rules, v1.NamedRuleWithOperations{RuleWithOperations: r})
	}
	h.criteria.Equivalent = h.MatchPolicy != nil && *h.MatchPolicy == v1.Equivalent
	h.unreadable = h.criteria.Select(h.NamespaceSelector, h.ObjectSelector)
	h.target.CABundle = h.ClientConfig.CABundle
	if h.ClientConfig.URL != nil {
		h.target.URL = *h.ClientConfig.URL
	}
	if svc := h.ClientConfig.Service; svc != nil {
		h.target.Service = &callout.Service{Namespace: svc.Namespace, Name: svc.Name}
		if svc.Path != nil {
			h.target.Service.Path = *svc.Path
		}
		if svc.Port != nil {
			h.target.Service.Port = *svc.Port
		}
	}
	list := h.MatchConditions
	h.conditions = sync.OnceValue(func() []expression.Condition {
		return s.environments.Compiler(false).Conditions(list, expression.Sees{Authorizer: true})
	})
}

// wants tells whether a webhook is to be asked, and in which form.
func (s *source) wants(ctx context.Context, h *hook, v *view) (f admission.Form, ok bool, err error) {
	if len(h.Rules) == 0 {
		return f, false, nil
	}
	if h.unreadable != nil {
		return f, false, apierrors.NewInternalError(h.unreadable)
	}
	if f, ok, err = h.criteria.Match(v.r, v.object(), s.Reader); err != nil || !ok || len(h.MatchConditions) == 0 {
		return f, ok, err
	}
	if err := v.in(f); err != nil {
		return f, false, apierrors.NewInternalError(err)
	}
	began := time.Now()
	ok, failed, err := expression.Match(ctx, h.conditions(), match.Inputs(v.r, f, v.now, v.old, s.Authorizer), nil, h.FailurePolicy)
	v.r.Conditioned(h.Name, "webhook", s.kind, time.Since(began), failed, err == nil && !ok)
	if err != nil {
		s.Log.Warn("the match conditions of a webhook cannot be evaluated; the request fails", "webhook", h.Name, "error", err)
		return f, false, apierrors.NewForbidden(schema.GroupResource{Group: v.r.APIGroup, Resource: v.r.Resource}, v.r.ObjectName(), err)
	}
	return f, ok, nil
}

// failed turns what came of asking a webhook into the request's answer; nil:
// the failure does not matter.
func (s *source) failed(ctx context.Context, h *hook, err error, failOpen func()) error {
	var call *callError
	if !errors.As(err, &call) {
		return err
	}
	if !h.ignored() {
		s.Log.Warn("a webhook cannot be called; the request fails", "error", err)
		return apierrors.NewInternalError(err)
	}
	if !errors.Is(err, context.Canceled) {
		s.Log.Warn("a webhook cannot be called; the request goes on without it", "error", err)
		s.counters.passedFor.WithLabelValues(h.Name, s.kind).Inc()
		failOpen()
	}
	return timedOut(ctx)
}

// timedOut is the answer once the request's time is over.
func timedOut(ctx context.Context) error {
	if ctx.Err() != nil {
		return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
	}
	return nil
}
