package networking

import (
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func ipAddressResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "ipaddresses", Singular: "ipaddress", Kind: "IPAddress",
		ShortNames: []string{"ip"},
		Versions:   []api.Version{api.Versioned[networkingv1.IPAddress, networkingv1.IPAddressList]("v1", nil)},
		Strategy: api.Strategy{
			Validate: api.Check(validateIPAddress),
			ValidateUpdate: api.CheckUpdate(func(a, old *networkingv1.IPAddress) field.ErrorList {
				l := &check.List{Errors: validateIPAddress(a)}
				l.Immutable(specPath.Child("parentRef"), a.Spec.ParentRef, old.Spec.ParentRef)
				return l.Errors
			}),
			NameValid: canonicalIP,
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("ParentRef", "string", networkingv1.IPAddressSpec{}.SwaggerDoc()["parentRef"]),
		},
		Cells: api.Row(func(a *networkingv1.IPAddress, _ metav1.Time) []any {
			parent := "<none>"
			if r := a.Spec.ParentRef; r != nil {
				parent = strings.ToLower(schema.GroupResource{Group: r.Group, Resource: r.Resource}.String())
				if r.Namespace != "" {
					parent += "/" + r.Namespace
				}
				parent += "/" + r.Name
			}
			return []any{a.Name, parent}
		}),
	}
}

// canonicalIP wants addresses as names, in the one form that is canonical.
func canonicalIP(name string, _ bool) (msgs []string) {
	for _, e := range validation.IsValidIP(&field.Path{}, name) {
		msgs = append(msgs, e.Detail)
	}
	return msgs
}

func validateIPAddress(a *networkingv1.IPAddress) field.ErrorList {
	l, p, r := &check.List{}, specPath.Child("parentRef"), a.Spec.ParentRef
	if r == nil {
		l.Required(p, "")
		return l.Errors
	}
	if r.Group != "" {
		l.Subdomain(p.Child("group"), r.Group)
	}
	checkSegment(l, p.Child("resource"), r.Resource)
	checkSegment(l, p.Child("name"), r.Name)
	if r.Namespace != "" {
		checkSegment(l, p.Child("namespace"), r.Namespace)
	}
	return l.Errors
}
