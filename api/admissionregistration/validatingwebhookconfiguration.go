package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/api/check"
)

func validatingWebhookConfigurationResource(envs *expression.Environments) *api.Resource {
	return &api.Resource{
		Group: Group, Name: "validatingwebhookconfigurations", Singular: "validatingwebhookconfiguration", Kind: "ValidatingWebhookConfiguration",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.ValidatingWebhookConfiguration, admissionv1.ValidatingWebhookConfigurationList]("v1", func(c *admissionv1.ValidatingWebhookConfiguration) {
			for i := range c.Webhooks {
				validatingHook(&c.Webhooks[i]).setDefaults()
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *admissionv1.ValidatingWebhookConfiguration) { c.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(c, old *admissionv1.ValidatingWebhookConfiguration) {
				api.BumpGeneration(c, old, api.Changed(c.Webhooks, old.Webhooks))
			}),
			Validate: api.Check(func(c *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
				return validateValidatingWebhookConfiguration(envs, c, nil)
			}),
			ValidateUpdate: api.CheckUpdate(func(c, old *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
				return validateValidatingWebhookConfiguration(envs, c, old)
			}),
			DenyUnconditionalUpdate: true,
		},
		Columns: webhookColumns(),
		Cells: api.Row(func(c *admissionv1.ValidatingWebhookConfiguration, now metav1.Time) []any {
			return []any{c.Name, int64(len(c.Webhooks)), api.Age(c.CreationTimestamp, now)}
		}),
	}
}

func validatingHook(w *admissionv1.ValidatingWebhook) *hook {
	return &hook{
		w.Name, &w.ClientConfig, w.Rules, &w.FailurePolicy, &w.MatchPolicy, &w.NamespaceSelector, &w.ObjectSelector,
		w.SideEffects, &w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions,
	}
}

// validateValidatingWebhookConfiguration checks a configuration; old is nil on create.
func validateValidatingWebhookConfiguration(envs *expression.Environments, c, old *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
	l, names, stored := &check.List{}, sets.Set[string]{}, sets.Set[string]{}
	if old != nil {
		for _, w := range old.Webhooks {
			stored.Insert(expressionsOf(w.MatchConditions, nil)...)
		}
	}
	for i := range c.Webhooks {
		at := field.NewPath("webhooks").Index(i)
		validatingHook(&c.Webhooks[i]).check(l, at, envs, stored)
		if name := c.Webhooks[i].Name; name != "" {
			if names.Has(name) {
				l.Duplicate(at.Child("name"), name)
			}
			names.Insert(name)
		}
	}
	return l.Errors
}
