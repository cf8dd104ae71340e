package networking

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

const classAnnotation = "kubernetes.io/ingress.class"

func ingressResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "ingresses", Singular: "ingress", Kind: "Ingress",
		ShortNames:    []string{"ing"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[networkingv1.Ingress, networkingv1.IngressList]("v1", nil)},
		StoragePrefix: "ingress",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(i *networkingv1.Ingress) { i.Status, i.Generation = networkingv1.IngressStatus{}, 1 }),
			PrepareForUpdate: api.OnUpdate(func(i, old *networkingv1.Ingress) {
				i.Status = old.Status
				api.BumpGeneration(i, old, api.Changed(i.Spec, old.Spec))
			}),
			Validate: api.Check(func(i *networkingv1.Ingress) field.ErrorList {
				l := &check.List{Errors: validateIngress(i)}
				class, ok := i.Annotations[classAnnotation]
				if ok && i.Spec.IngressClassName != nil && class != *i.Spec.IngressClassName {
					l.Invalid(field.NewPath("annotations").Child(classAnnotation), class, "must match `ingressClassName` when both are specified")
				}
				return l.Errors
			}),
			ValidateUpdate: api.CheckUpdate(func(i, _ *networkingv1.Ingress) field.ErrorList { return validateIngress(i) }),
			Warnings: api.Warn(func(i, old *networkingv1.Ingress) []string {
				if _, ok := i.Annotations[classAnnotation]; ok && old == nil && i.Spec.IngressClassName == nil {
					return []string{fmt.Sprintf("annotation %q is deprecated, please use 'spec.ingressClassName' instead", classAnnotation)}
				}
				return nil
			}),
		},
		Subresources: []api.Subresource{api.StatusView(func(i, old *networkingv1.Ingress) { i.Spec = old.Spec }, validateIngressStatus)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Class", "string", "The name of the IngressClass resource that should be used for additional configuration"),
			api.Column("Hosts", "string", "Hosts that incoming requests are matched against before the ingress rule"),
			api.Column("Address", "string", "Address is a list containing ingress points for the load-balancer"),
			api.Column("Ports", "string", "Ports of TLS configurations that open"),
			api.AgeColumn(),
		},
		Cells: api.Row(ingressCells),
	}
}

func ingressCells(i *networkingv1.Ingress, now metav1.Time) []any {
	class, ports := "<none>", "80"
	if i.Spec.IngressClassName != nil {
		class = *i.Spec.IngressClassName
	}
	if len(i.Spec.TLS) != 0 {
		ports = "80, 443"
	}
	points := sets.Set[string]{}
	for _, p := range i.Status.LoadBalancer.Ingress {
		if p.IP != "" {
			points.Insert(p.IP)
		} else if p.Hostname != "" {
			points.Insert(p.Hostname)
		}
	}
	return []any{i.Name, class, hosts(i.Spec.Rules), strings.Join(sets.List(points), ","), ports, api.Age(i.CreationTimestamp, now)}
}

func hosts(rules []networkingv1.IngressRule) string {
	const most = 3
	var list []string
	more := false
	for _, r := range rules {
		if more = more || len(list) == most; !more && r.Host != "" {
			list = append(list, r.Host)
		}
	}
	switch text := strings.Join(list, ","); {
	case len(list) == 0:
		return "*"
	case more:
		return fmt.Sprintf("%s + %d more...", text, len(rules)-most)
	default:
		return text
	}
}

func checkHost(l *check.List, p *field.Path, host string) {
	if strings.Contains(host, "*") {
		l.Messages(p, host, validation.IsWildcardDNS1123Subdomain(host))
		return
	}
	l.Subdomain(p, host)
}

func validateIngress(ing *networkingv1.Ingress) field.ErrorList {
	l, s := &check.List{}, &ing.Spec
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		l.Invalid(specPath, s.Rules, "either `defaultBackend` or `rules` must be specified")
	}
	if s.DefaultBackend != nil {
		checkBackend(l, specPath.Child("defaultBackend"), s.DefaultBackend)
	}
	for i := range s.Rules {
		r, at := &s.Rules[i], specPath.Child("rules").Index(i)
		if r.Host != "" {
			if _, err := netip.ParseAddr(r.Host); err == nil {
				l.Invalid(at.Child("host"), r.Host, "must be a DNS name, not an IP address")
			}
			checkHost(l, at.Child("host"), r.Host)
		}
		if r.HTTP == nil {
			continue
		}
		paths := at.Child("http", "paths")
		if len(r.HTTP.Paths) == 0 {
			l.Required(paths, "")
		}
		for j := range r.HTTP.Paths {
			checkHTTPPath(l, paths.Index(j), &r.HTTP.Paths[j])
		}
	}
	for i, t := range s.TLS {
		at := specPath.Child("tls").Index(i)
		for j, h := range t.Hosts {
			checkHost(l, at.Child("hosts").Index(j), h)
		}
		if t.SecretName != "" {
			l.Messages(at.Child("secretName"), t.SecretName, apivalidation.NameIsDNSSubdomain(t.SecretName, false))
		}
	}
	if c := s.IngressClassName; c != nil {
		l.Messages(specPath.Child("ingressClassName"), *c, apivalidation.NameIsDNSSubdomain(*c, false))
	}
	return l.Errors
}

func checkHTTPPath(l *check.List, p *field.Path, h *networkingv1.HTTPIngressPath) {
	if h.PathType == nil {
		l.Required(p.Child("pathType"), "pathType must be specified")
		return
	}
	at := p.Child("path")
	absolute := strings.HasPrefix(h.Path, "/")
	switch *h.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if !absolute {
			l.Invalid(at, h.Path, "must be an absolute path")
		}
		for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(h.Path, bad) {
				l.Invalid(at, h.Path, fmt.Sprintf("must not contain '%s'", bad))
			}
		}
		for _, bad := range []string{"/..", "/."} {
			if strings.HasSuffix(h.Path, bad) {
				l.Invalid(at, h.Path, fmt.Sprintf("cannot end with '%s'", bad))
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if h.Path != "" && !absolute {
			l.Invalid(at, h.Path, "must be an absolute path")
		}
	default:
		check.OneOf(l, p.Child("pathType"), *h.PathType, networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix)
	}
	checkBackend(l, p.Child("backend"), &h.Backend)
}

func checkBackend(l *check.List, p *field.Path, b *networkingv1.IngressBackend) {
	switch {
	case b.Resource != nil && b.Service != nil:
		l.Invalid(p, "", "cannot set both resource and service backends")
	case b.Resource != nil:
		checkLocalRef(l, p.Child("resource"), b.Resource)
	case b.Service == nil:
		l.Invalid(p, "", "resource or service backend is required")
	default:
		if b.Service.Name == "" {
			l.Required(p.Child("service", "name"), "")
		} else {
			l.Messages(p.Child("service", "name"), b.Service.Name, apivalidation.NameIsDNSLabel(b.Service.Name, false))
		}
		port := &b.Service.Port
		switch {
		case port.Name != "" && port.Number != 0:
			l.Invalid(p, "", "cannot set both port name & port number")
		case port.Name != "":
			l.Messages(p.Child("service", "port", "name"), port.Name, validation.IsValidPortName(port.Name))
		case port.Number != 0:
			l.Port(p.Child("service", "port", "number"), port.Number)
		default:
			l.Required(p, "port name or number is required")
		}
	}
}

func checkLocalRef(l *check.List, p *field.Path, r *corev1.TypedLocalObjectReference) {
	if r.APIGroup != nil {
		l.Subdomain(p.Child("apiGroup"), *r.APIGroup)
	}
	checkSegment(l, p.Child("kind"), r.Kind)
	checkSegment(l, p.Child("name"), r.Name)
}

// checkSegment checks a required text that has to fit into a URL path.
func checkSegment(l *check.List, p *field.Path, s string) {
	if s == "" {
		l.Required(p, "")
		return
	}
	l.Messages(p, s, path.IsValidPathSegmentName(s))
}

func validateIngressStatus(i, _ *networkingv1.Ingress) field.ErrorList {
	l := &check.List{}
	for n, p := range i.Status.LoadBalancer.Ingress {
		at := field.NewPath("status", "loadBalancer", "ingress").Index(n)
		if p.IP != "" {
			l.IP(at.Child("ip"), p.IP)
		}
		if p.Hostname != "" {
			l.Subdomain(at.Child("hostname"), p.Hostname)
			if _, err := netip.ParseAddr(p.Hostname); err == nil {
				l.Invalid(at.Child("hostname"), p.Hostname, "must be a DNS name, not an IP address")
			}
		}
	}
	return l.Errors
}
