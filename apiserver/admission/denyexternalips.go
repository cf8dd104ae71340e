package admission

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// denyServiceExternalIPs refuses external IPs a Service does not have already.
type denyServiceExternalIPs struct{ noAdmit }

func (denyServiceExternalIPs) Name() string { return "DenyServiceExternalIPs" }

func (denyServiceExternalIPs) Validate(_ context.Context, r *Request) error {
	service, ok := r.Object.(*corev1.Service)
	if !ok || !r.is("", "services") {
		return nil
	}
	var had []string
	if old, ok := r.Old.(*corev1.Service); ok {
		had = old.Spec.ExternalIPs
	}
	if slices.ContainsFunc(service.Spec.ExternalIPs, func(ip string) bool { return !slices.Contains(had, ip) }) {
		return forbidden(r, errors.New("Use of external IPs is denied by admission control")) //nolint:staticcheck // upstream's words
	}
	return nil
}
