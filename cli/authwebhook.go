package cli

import (
	"fmt"
	"slices"
	"time"

	"github.com/skiff-project/skiff/apiserver/authwebhook"
)

// webhookFlags are upstream's of servers that are asked who a token belongs to
// and what a user may do.
type webhookFlags struct {
	tokens authwebhook.TokenConfig
	access authwebhook.AccessConfig
	modes  []string
}

func (f *webhookFlags) add(p *program) {
	fs, t, a := p.fs, &f.tokens, &f.access
	fs.StringVar(&t.Kubeconfig, "authentication-token-webhook-config-file", "", "kubeconfig of a server that is asked who a token belongs to (default: none)")
	fs.StringVar(&t.Version, "authentication-token-webhook-version", "v1beta1", "of the TokenReviews it is sent: v1 or v1beta1")
	fs.DurationVar(&t.CacheTTL, "authentication-token-webhook-cache-ttl", 2*time.Minute, "how long its answers are good")
	fs.StringSliceVar(&f.modes, "authorization-mode", []string{"Node", "RBAC"}, "order of the authorizers: Node and RBAC, which are always on, and Webhook")
	fs.StringVar(&a.Kubeconfig, "authorization-webhook-config-file", "", "kubeconfig of the server that mode Webhook asks")
	fs.StringVar(&a.Version, "authorization-webhook-version", "v1beta1", "of the SubjectAccessReviews it is sent: v1 or v1beta1")
	fs.DurationVar(&a.AllowedTTL, "authorization-webhook-cache-authorized-ttl", 5*time.Minute, "how long an answer that allows is good")
	fs.DurationVar(&a.RefusedTTL, "authorization-webhook-cache-unauthorized-ttl", 30*time.Second, "how long another answer is good")
}

// settle is handed the audiences of the server.
func (f *webhookFlags) settle(audiences []string) (o authwebhook.Options, err error) {
	for flag, v := range map[string]string{"authentication-token-webhook-version": f.tokens.Version, "authorization-webhook-version": f.access.Version} {
		if v != "v1" && v != "v1beta1" {
			return o, fmt.Errorf("--%s: %q is neither v1 nor v1beta1", flag, v)
		}
	}
	for i, m := range f.modes {
		if !slices.Contains([]string{"Node", "RBAC", "Webhook"}, m) {
			return o, fmt.Errorf("--authorization-mode: %q is not supported; Node, RBAC and Webhook are", m)
		}
		if slices.Contains(f.modes[:i], m) {
			return o, fmt.Errorf("--authorization-mode: %s is there twice", m)
		}
	}
	hook := slices.Contains(f.modes, "Webhook")
	switch {
	case hook && len(f.modes) < 3:
		return o, fmt.Errorf("--authorization-mode: Webhook is supported beside Node and RBAC, not in their place")
	case hook != (f.access.Kubeconfig != ""):
		return o, fmt.Errorf("--authorization-mode=Webhook and --authorization-webhook-config-file must be given together")
	case hook:
		o.Access, o.Order = &f.access, f.modes
	}
	if f.tokens.Kubeconfig != "" {
		f.tokens.Audiences = audiences
		o.Tokens = &f.tokens
	}
	return o, nil
}
