// Package plugins puts the admission plugins of the API server together.
package plugins

import (
	"log/slog"

	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/connect"
	"github.com/skiff-project/skiff/apiserver/policy"
	"github.com/skiff-project/skiff/apiserver/webhook"
)

// All are the plugins that are on by default, in upstream's order: those built
// in, then those that follow policies and webhook configurations, mutating
// ones first. clusterIP sends what is for a webhook's Service to its cluster
// IP. With an empty cfg they have names and nothing else.
func All(cfg admission.Config, clusterIP bool, log *slog.Logger) []admission.Plugin {
	mutatingPolicies, validatingPolicies := policy.New(policy.Config{Reader: cfg.Reader, Authorizer: cfg.Authorizer})
	mutatingHooks, validatingHooks := webhook.New(webhook.Config{
		Reader: cfg.Reader, Authorizer: cfg.Authorizer, Log: log, Host: connect.Routes{Reader: cfg.Reader, ClusterIP: clusterIP}.Route,
	})
	cfg.Last = []admission.Plugin{mutatingPolicies, mutatingHooks, validatingPolicies, validatingHooks}
	return admission.New(cfg)
}
