package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/skiff-project/skiff/api"
)

func validatingWebhookConfigurationResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "validatingwebhookconfigurations", Singular: "validatingwebhookconfiguration", Kind: "ValidatingWebhookConfiguration",
		Categories:    []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[admissionv1.ValidatingWebhookConfiguration, admissionv1.ValidatingWebhookConfigurationList]("v1", nil)},
		StoragePrefix: "validatingwebhookconfigurations",
	}
}
