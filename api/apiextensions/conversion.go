package apiextensions

import (
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/transport"
)

// reviewVersions are the versions of ConversionReview the server can send.
var reviewVersions = []string{"v1", "v1beta1"}

func knownReview(versions []string) bool {
	return slices.ContainsFunc(versions, func(v string) bool { return slices.Contains(reviewVersions, v) })
}

func (l *specChecks) checkConversion(p *field.Path) {
	c := l.spec.Conversion
	if c == nil {
		return
	}
	if c.Strategy != apiextensions.NoneConverter && (l.spec.PreserveUnknownFields == nil || *l.spec.PreserveUnknownFields) {
		l.Invalid(p.Child("strategy"), c.Strategy, "must be None if spec.preserveUnknownFields is true")
	}
	hook, versions := p.Child("webhookClientConfig"), p.Child("conversionReviewVersions")
	switch c.Strategy {
	case apiextensions.WebhookConverter:
		if c.WebhookClientConfig == nil {
			l.Required(hook, "required when strategy is set to Webhook")
		} else {
			l.checkClient(hook, c.WebhookClientConfig)
		}
		l.checkReviews(versions, c.ConversionReviewVersions)
		return
	case apiextensions.NoneConverter:
	case "":
		l.Required(p.Child("strategy"), "")
	default:
		l.Add(field.ErrorList{field.NotSupported(p.Child("strategy"), c.Strategy, []string{"None", "Webhook"})})
	}
	l.ForbidIf(hook, c.WebhookClientConfig != nil, "should not be set when strategy is not set to Webhook")
	l.ForbidIf(versions, len(c.ConversionReviewVersions) > 0, "should not be set when strategy is not set to Webhook")
}

func (l *specChecks) checkReviews(p *field.Path, versions []string) {
	if len(versions) == 0 {
		l.Required(p, "")
		return
	}
	for i, v := range versions {
		if slices.Contains(versions[:i], v) {
			l.Invalid(p.Index(i), v, "duplicate version")
			continue
		}
		l.Messages(p.Index(i), v, validation.IsDNS1035Label(v))
	}
	required := l.old == nil || l.old.Spec.Conversion == nil || len(l.old.Spec.Conversion.ConversionReviewVersions) == 0 || knownReview(l.old.Spec.Conversion.ConversionReviewVersions)
	if required && !knownReview(versions) {
		l.Invalid(p, versions, "must include at least one of "+strings.Join(reviewVersions, ", "))
	}
}

func (l *specChecks) checkClient(p *field.Path, c *apiextensions.WebhookClientConfig) {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		l.Required(p, "exactly one of url or service is required")
	case c.URL != nil:
		l.WebhookURL(p.Child("url"), *c.URL)
	default:
		l.checkService(p.Child("service"), c.Service)
	}
	if len(c.CABundle) > 0 && !l.mayKeepBadCA() {
		if err := checkCABundle(c.CABundle); err != nil {
			l.Invalid(p.Child("caBundle"), c.CABundle, err.Error())
		}
	}
}

// mayKeepBadCA: until the definition is established, or where it was bad before.
func (l *specChecks) mayKeepBadCA() bool {
	if l.old == nil || !apiextensions.IsCRDConditionTrue(l.old, apiextensions.Established) {
		return true
	}
	c := l.old.Spec.Conversion
	return c != nil && c.WebhookClientConfig != nil && len(c.WebhookClientConfig.CABundle) > 0 && checkCABundle(c.WebhookClientConfig.CABundle) != nil
}

func checkCABundle(pem []byte) error {
	_, err := transport.TLSConfigFor(&transport.Config{TLS: transport.TLSConfig{CAData: pem}})
	return err
}

func (l *specChecks) checkService(p *field.Path, s *apiextensions.ServiceReference) {
	// Upstream hands name and namespace over the wrong way round; its messages name the other field.
	if s.Namespace == "" {
		l.Required(p.Child("name"), "")
	}
	if s.Name == "" {
		l.Required(p.Child("namespace"), "")
	}
	l.WebhookPort(p.Child("port"), s.Port)
	l.WebhookPath(p.Child("path"), s.Path)
}
