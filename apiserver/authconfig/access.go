package authconfig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	authorizationv1 "k8s.io/api/authorization/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/skiff-project/skiff/apiserver/authwebhook"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/config"
)

// access decides by the configured authorizers.
type access struct {
	own       Own
	hooks     *authwebhook.Metrics
	decisions *prometheus.CounterVec
	reloads   *reloads
	log       *slog.Logger

	file     []byte   // what was read of the file
	required []string // types that may neither come nor go while the server runs
	current  atomic.Pointer[chain]
}

// chain is what one version of the configuration makes.
type chain struct {
	authorizer auth.Authorizer
	types      []string
}

func newDecisions() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "apiserver_authorization_decisions_total",
		Help: "Total number of terminal decisions made by an authorizer split by authorizer type, name, and decision.",
	}, []string{"type", "name", "decision"})
}

// open reads the file or takes what flags say.
func (s *access) open(file string, list []config.Authorizer) error {
	if file != "" {
		var c *config.Authorization
		var err error
		if s.file, err = os.ReadFile(file); err == nil {
			c, err = config.ParseAuthorization(s.file, os.Stat, nil)
		}
		if err != nil {
			return fmt.Errorf("--authorization-config: %w", err)
		}
		list = c.Authorizers
		s.reloads.use(s.file)
	}
	if len(list) == 0 {
		list = []config.Authorizer{{Type: config.Node, Name: "node"}, {Type: config.RBAC, Name: "rbac"}}
	}
	for _, z := range list {
		if z.Type != config.Webhook {
			s.required = append(s.required, z.Type)
		}
	}
	made, err := s.build(list)
	if err != nil {
		return err
	}
	s.current.Store(made)
	return nil
}

// build makes a chain: members of system:masters may do everything, whatever
// is configured; then the authorizers are asked in order.
func (s *access) build(list []config.Authorizer) (*chain, error) {
	all, made := []auth.Authorizer{auth.Masters()}, &chain{}
	for _, z := range list {
		var of auth.Authorizer
		switch z.Type {
		case config.Node, config.RBAC:
			if !slices.Contains(s.required, z.Type) {
				return nil, fmt.Errorf("authorizer type %s is not allowed if it was not enabled at initial server startup", z.Type)
			}
			if of = s.own.Node; z.Type == config.RBAC {
				of = s.own.RBAC
			}
		case config.AlwaysAllow:
			of = always{auth.Allow, ""}
		case config.AlwaysDeny:
			of = always{auth.NoOpinion, "Everything is forbidden."}
		case config.Webhook:
			hook, err := s.webhook(z)
			if err != nil {
				return nil, fmt.Errorf("authorization webhook %s: %w", z.Name, err)
			}
			of = hook
		default:
			return nil, fmt.Errorf("unknown authorization mode %s specified", z.Type)
		}
		all = append(all, counted{z.Name, of, s.decisions.WithLabelValues(z.Type, z.Name, "allowed"), s.decisions.WithLabelValues(z.Type, z.Name, "denied")})
		made.types = append(made.types, z.Type)
	}
	made.authorizer = auth.Authorizers(all...)
	return made, nil
}

func (s *access) webhook(z config.Authorizer) (auth.Authorizer, error) {
	w := z.Webhook
	c := authwebhook.AccessConfig{
		Name: z.Name, Kubeconfig: *w.ConnectionInfo.KubeConfigFile, Version: w.SubjectAccessReviewVersion,
		AllowedTTL: w.AuthorizedTTL.Duration, RefusedTTL: w.UnauthorizedTTL.Duration,
		Timeout: w.Timeout.Duration, Conditions: w.Conditions, Metrics: s.hooks,
	}
	if !*w.CacheAuthorizedRequests {
		c.AllowedTTL = 0
	}
	if !*w.CacheUnauthorizedRequests {
		c.RefusedTTL = 0
	}
	if w.FailurePolicy == "Deny" {
		c.Failed = auth.Deny
	}
	return authwebhook.NewAccess(c)
}

// follow takes over what is written to the file, until ctx ends.
func (s *access) follow(ctx context.Context, file string) {
	follow(ctx, file, s.file, s.reloads, s.log, func(data []byte) (again bool, err error) {
		c, err := config.ParseAuthorization(data, os.Stat, s.required)
		if err != nil {
			return false, err
		}
		made, err := s.build(c.Authorizers)
		if err != nil {
			return false, err
		}
		s.current.Store(made)
		return false, nil
	})
}

// Authorize implements auth.Authorizer.
func (a *Auth) Authorize(ctx context.Context, x auth.Attributes) (auth.Decision, string, error) {
	return a.access.current.Load().authorizer.Authorize(ctx, x)
}

// ReviewRules lists what the authorizers know a user may do in a namespace.
func (a *Auth) ReviewRules(user auth.User, namespace string) authorizationv1.SubjectRulesReviewStatus {
	out := authorizationv1.SubjectRulesReviewStatus{ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
	var errs []error
	cannot := func(who string) {
		out.Incomplete = true
		errs = append(errs, fmt.Errorf("%s authorizer does not support user rule resolution", who))
	}
	for _, t := range a.access.current.Load().types {
		switch {
		case t == config.Webhook:
			cannot("webhook")
		case t == config.Node && slices.Contains(user.Groups, auth.GroupNodes):
			cannot("node")
		case t == config.AlwaysAllow:
			out.ResourceRules = append(out.ResourceRules, authorizationv1.ResourceRule{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}})
			out.NonResourceRules = append(out.NonResourceRules, authorizationv1.NonResourceRule{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}})
		case t == config.RBAC:
			more := a.own.RBAC.ReviewRules(user, namespace)
			out.ResourceRules = append(out.ResourceRules, more.ResourceRules...)
			out.NonResourceRules = append(out.NonResourceRules, more.NonResourceRules...)
			if more.EvaluationError != "" {
				errs = append(errs, errors.New(more.EvaluationError))
			}
		}
	}
	if err := utilerrors.NewAggregate(errs); err != nil {
		out.EvaluationError = err.Error()
	}
	return out
}

// always gives the same answer to everything.
type always struct {
	decision auth.Decision
	reason   string
}

func (z always) Authorize(context.Context, auth.Attributes) (auth.Decision, string, error) {
	return z.decision, z.reason, nil
}

// counted counts what an authorizer decides, and names it where it gives a reason and does not decide.
type counted struct {
	name            string
	of              auth.Authorizer
	allowed, denied prometheus.Counter
}

func (z counted) Authorize(ctx context.Context, a auth.Attributes) (auth.Decision, string, error) {
	d, reason, err := z.of.Authorize(ctx, a)
	switch d {
	case auth.Allow:
		z.allowed.Inc()
	case auth.Deny:
		z.denied.Inc()
	case auth.NoOpinion:
		if reason != "" {
			reason = z.name + ": " + reason
		}
	}
	return d, reason, err
}
