// Package plugins puts the admission plugins of the API server together.
package plugins

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/config"
	"github.com/skiff-project/skiff/apiserver/connect"
	"github.com/skiff-project/skiff/apiserver/policy"
	"github.com/skiff-project/skiff/apiserver/webhook"
	"github.com/skiff-project/skiff/auth"
)

// Choice says which plugins run and what they are told. The zero value is what
// is on by default; Choose makes others.
type Choice struct {
	enable, disable []string
	config          config.Plugins
}

// Choose takes the values of --enable-admission-plugins,
// --disable-admission-plugins and --admission-control-config-file ("": none),
// which its errors name.
func Choose(enable, disable []string, file string) (Choice, error) {
	c := Choice{enable: enable, disable: disable}
	var on []string
	for _, p := range (Choice{enable: admission.Optional()}).Plugins(admission.Config{Authorizer: auth.Masters()}, false, nil) {
		if !slices.Contains(admission.Optional(), p.Name()) {
			on = append(on, p.Name())
		}
	}
	has := func(name string) bool {
		return slices.Contains(on, name) || slices.Contains(admission.Optional(), name)
	}
	for _, name := range enable {
		switch {
		case slices.Contains(disable, name):
			return c, fmt.Errorf("--enable-admission-plugins and --disable-admission-plugins both name %s: take it out of one", name)
		case slices.Contains(absent(), name):
			return c, fmt.Errorf("--enable-admission-plugins: %s is one of upstream's that is not supported: leave it out; it can add %s", name, strings.Join(admission.Optional(), ", "))
		case !has(name):
			return c, fmt.Errorf("--enable-admission-plugins: there is no plugin %q; it can add %s; on already are %s",
				name, strings.Join(admission.Optional(), ", "), strings.Join(on, ", "))
		}
	}
	for _, name := range disable {
		if !has(name) && !slices.Contains(absent(), name) {
			return c, fmt.Errorf("--disable-admission-plugins: there is no plugin %q; on are %s", name, strings.Join(on, ", "))
		}
	}
	if file != "" {
		var err error
		if c.config, err = config.Load(file, os.ReadFile); err != nil {
			return c, fmt.Errorf("--admission-control-config-file: %w", err)
		}
	}
	if slices.Contains(enable, "EventRateLimit") && len(c.config.EventLimits) == 0 {
		return c, fmt.Errorf("--enable-admission-plugins: EventRateLimit has no limits of its own: " +
			"configure it (eventratelimit.admission.k8s.io/v1alpha1 Configuration) in the file of --admission-control-config-file")
	}
	return c, nil
}

// TolerationSeconds has DefaultTolerationSeconds use others than 300.
func (c *Choice) TolerationSeconds(notReady, unreachable int64) {
	c.config.Tolerations = config.TolerationSeconds{NotReady: &notReady, Unreachable: &unreachable}
}

// absent are upstream's that are not there.
func absent() []string {
	return strings.Fields("AlwaysAdmit AlwaysDeny ExtendedResourceToleration ImagePolicyWebhook " +
		"LimitPodHardAntiAffinityTopology NamespaceAutoProvision NamespaceExists OwnerReferencesPermissionEnforcement " +
		"PodGroupProtection PodTolerationRestriction")
}

// Plugins are the chosen ones, in upstream's order: those built in, then those
// that follow policies and webhook configurations, mutating ones first.
// clusterIP sends what is for a webhook's Service to its cluster IP. With an
// empty cfg they have names and nothing else.
func (c Choice) Plugins(cfg admission.Config, clusterIP bool, log *slog.Logger) []admission.Plugin {
	mutatingPolicies, validatingPolicies := policy.New(policy.Config{Reader: cfg.Reader, Authorizer: cfg.Authorizer})
	mutatingHooks, validatingHooks := webhook.New(webhook.Config{
		Reader: cfg.Reader, Authorizer: cfg.Authorizer, Log: log, Host: connect.Routes{Reader: cfg.Reader, ClusterIP: clusterIP}.Route,
	})
	cfg.Last = []admission.Plugin{mutatingPolicies, mutatingHooks, validatingPolicies, validatingHooks}
	cfg.Enable, cfg.Plugins = c.enable, c.config
	return slices.DeleteFunc(admission.New(cfg), func(p admission.Plugin) bool { return slices.Contains(c.disable, p.Name()) })
}
