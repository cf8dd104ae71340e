package networking

import (
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func ingressClassResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "ingressclasses", Singular: "ingressclass", Kind: "IngressClass",
		Versions: []api.Version{api.Versioned[networkingv1.IngressClass, networkingv1.IngressClassList]("v1", func(c *networkingv1.IngressClass) {
			if p := c.Spec.Parameters; p != nil && p.Scope == nil {
				scope := networkingv1.IngressClassParametersReferenceScopeCluster
				p.Scope = &scope
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *networkingv1.IngressClass) { c.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(c, old *networkingv1.IngressClass) {
				api.BumpGeneration(c, old, api.Changed(c.Spec, old.Spec))
			}),
			Validate: api.Check(validateClass),
			ValidateUpdate: api.CheckUpdate(func(c, old *networkingv1.IngressClass) field.ErrorList {
				l := &check.List{}
				l.Immutable(specPath.Child("controller"), c.Spec.Controller, old.Spec.Controller)
				l.Add(validateClass(c))
				return l.Errors
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Controller", "string", "Controller that is responsible for handling this class"),
			api.Column("Parameters", "string", "A reference to a resource with additional parameters"),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *networkingv1.IngressClass, now metav1.Time) []any {
			name, params := c.Name, "<none>"
			if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
				name += " (default)"
			}
			if p := c.Spec.Parameters; p != nil {
				params = p.Kind
				if p.APIGroup != nil {
					params += "." + *p.APIGroup
				}
				params += "/" + p.Name
			}
			return []any{name, c.Spec.Controller, params, api.Age(c.CreationTimestamp, now)}
		}),
	}
}

const maxController = 250

func validateClass(c *networkingv1.IngressClass) field.ErrorList {
	l := &check.List{}
	if len(c.Spec.Controller) > maxController {
		l.TooLong(specPath.Child("controller"), maxController)
	}
	l.Add(validation.IsDomainPrefixedPath(specPath.Child("controller"), c.Spec.Controller))
	r, p := c.Spec.Parameters, specPath.Child("parameters")
	if r == nil {
		return l.Errors
	}
	if r.APIGroup != nil {
		l.Subdomain(p.Child("apiGroup"), *r.APIGroup)
	}
	checkSegment(l, p.Child("kind"), r.Kind)
	checkSegment(l, p.Child("name"), r.Name)
	switch {
	case r.Scope == nil:
		l.Required(p.Child("scope"), "")
	case *r.Scope == networkingv1.IngressClassParametersReferenceScopeNamespace:
		if r.Namespace == nil {
			l.Required(p.Child("namespace"), "`parameters.scope` is set to 'Namespace'")
		} else {
			l.Messages(p.Child("namespace"), *r.Namespace, apivalidation.ValidateNamespaceName(*r.Namespace, false))
		}
	case *r.Scope == networkingv1.IngressClassParametersReferenceScopeCluster:
		if r.Namespace != nil {
			l.Forbidden(p.Child("namespace"), "`parameters.scope` is set to 'Cluster'")
		}
	default:
		check.OneOf(l, p.Child("scope"), *r.Scope, networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace)
	}
	return l.Errors
}
