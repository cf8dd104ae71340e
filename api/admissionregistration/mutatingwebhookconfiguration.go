package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/skiff-project/skiff/api"
)

func mutatingWebhookConfigurationResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "mutatingwebhookconfigurations", Singular: "mutatingwebhookconfiguration", Kind: "MutatingWebhookConfiguration",
		Categories:    []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList]("v1", nil)},
		StoragePrefix: "mutatingwebhookconfigurations",
	}
}
