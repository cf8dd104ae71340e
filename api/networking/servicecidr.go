package networking

import (
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func serviceCIDRResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "servicecidrs", Singular: "servicecidr", Kind: "ServiceCIDR",
		Versions: []api.Version{api.Versioned[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList]("v1", nil)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *networkingv1.ServiceCIDR) { c.Status = networkingv1.ServiceCIDRStatus{} }),
			PrepareForUpdate: api.OnUpdate(func(c, old *networkingv1.ServiceCIDR) { c.Status = old.Status }),
			Validate: api.Check(func(c *networkingv1.ServiceCIDR) field.ErrorList {
				l := &check.List{}
				checkCIDRs(l, c.Spec.CIDRs)
				return l.Errors
			}),
			ValidateUpdate: api.CheckUpdate(validateCIDRUpdate),
		},
		Subresources: []api.Subresource{api.StatusOnly(func(c, old *networkingv1.ServiceCIDR) { c.Spec = old.Spec }, nil)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("CIDRs", "string", networkingv1.ServiceCIDRSpec{}.SwaggerDoc()["cidrs"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *networkingv1.ServiceCIDR, now metav1.Time) []any {
			return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), api.Age(c.CreationTimestamp, now)}
		}),
	}
}

func checkCIDRs(l *check.List, cidrs []string) {
	at := specPath.Child("cidrs")
	switch len(cidrs) {
	case 0:
		l.Required(at, "at least one CIDR required")
		return
	case 1:
	case 2:
		a, errA := netip.ParsePrefix(cidrs[0])
		b, errB := netip.ParsePrefix(cidrs[1])
		if errA == nil && errB == nil && a.Addr().Is4() == b.Addr().Is4() {
			l.Invalid(at, cidrs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64")
		}
	default:
		l.Invalid(at, cidrs, "may only hold up to 2 values")
	}
	for i, c := range cidrs {
		l.Add(validation.IsValidCIDR(at.Index(i), c))
	}
}

// validateCIDRUpdate lets a second family be added, and nothing else change.
func validateCIDRUpdate(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	l, at, now, was := &check.List{}, specPath.Child("cidrs"), c.Spec.CIDRs, old.Spec.CIDRs
	if len(now) != len(was) && (len(was) != 1 || len(now) != 2) {
		l.Invalid(at, now, apivalidation.FieldImmutableErrorMsg)
		return l.Errors
	}
	for i := range was {
		if now[i] != was[i] {
			l.Invalid(at.Index(i), now[i], apivalidation.FieldImmutableErrorMsg)
		}
	}
	if len(now) > len(was) {
		checkCIDRs(l, now)
	}
	return l.Errors
}
