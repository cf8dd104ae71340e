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

func mutatingWebhookConfigurationResource(envs *expression.Environments) *api.Resource {
	return &api.Resource{
		Group: Group, Name: "mutatingwebhookconfigurations", Singular: "mutatingwebhookconfiguration", Kind: "MutatingWebhookConfiguration",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList]("v1", func(c *admissionv1.MutatingWebhookConfiguration) {
			for i := range c.Webhooks {
				mutatingHook(&c.Webhooks[i]).setDefaults()
				api.SetIfNil(&c.Webhooks[i].ReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *admissionv1.MutatingWebhookConfiguration) { c.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(c, old *admissionv1.MutatingWebhookConfiguration) {
				api.BumpGeneration(c, old, api.Changed(c.Webhooks, old.Webhooks))
			}),
			Validate: api.Check(func(c *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
				return validateMutatingWebhookConfiguration(envs, c, nil)
			}),
			ValidateUpdate: api.CheckUpdate(func(c, old *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
				return validateMutatingWebhookConfiguration(envs, c, old)
			}),
			DenyUnconditionalUpdate: true,
		},
		Columns: webhookColumns(),
		Cells: api.Row(func(c *admissionv1.MutatingWebhookConfiguration, now metav1.Time) []any {
			return []any{c.Name, int64(len(c.Webhooks)), api.Age(c.CreationTimestamp, now)}
		}),
	}
}

func mutatingHook(w *admissionv1.MutatingWebhook) *hook {
	return &hook{
		w.Name, &w.ClientConfig, w.Rules, &w.FailurePolicy, &w.MatchPolicy, &w.NamespaceSelector, &w.ObjectSelector,
		w.SideEffects, &w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions,
	}
}

// validateMutatingWebhookConfiguration checks a configuration; old is nil on create.
func validateMutatingWebhookConfiguration(envs *expression.Environments, c, old *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
	l, names, stored := &check.List{}, sets.Set[string]{}, sets.Set[string]{}
	if old != nil {
		for _, w := range old.Webhooks {
			stored.Insert(expressionsOf(w.MatchConditions, nil)...)
		}
	}
	for i := range c.Webhooks {
		at := field.NewPath("webhooks").Index(i)
		mutatingHook(&c.Webhooks[i]).check(l, at, envs, stored)
		if r := c.Webhooks[i].ReinvocationPolicy; r != nil {
			check.OneOf(l, at.Child("reinvocationPolicy"), *r, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
		}
		if name := c.Webhooks[i].Name; name != "" {
			if names.Has(name) {
				l.Duplicate(at.Child("name"), name)
			}
			names.Insert(name)
		}
	}
	return l.Errors
}
