package fairness

import (
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/skiff-project/skiff/auth"
)

// matches tells whether a flow schema is about a request.
func matches(spec *flowcontrolv1.FlowSchemaSpec, a *auth.Attributes) bool {
	for i := range spec.Rules {
		r := &spec.Rules[i]
		if !slices.ContainsFunc(r.Subjects, func(s flowcontrolv1.Subject) bool { return subject(&s, &a.User) }) {
			continue
		}
		if a.ResourceRequest {
			for j := range r.ResourceRules {
				if resource(&r.ResourceRules[j], a) {
					return true
				}
			}
			continue
		}
		for j := range r.NonResourceRules {
			if n := &r.NonResourceRules[j]; has(n.Verbs, a.Verb) && slices.ContainsFunc(n.NonResourceURLs, func(u string) bool { return path(u, a.Path) }) {
				return true
			}
		}
	}
	return false
}

// has: "*" is only ever there alone.
func has(list []string, one string) bool {
	return len(list) == 1 && list[0] == "*" || slices.Contains(list, one)
}

func subject(s *flowcontrolv1.Subject, u *auth.User) bool {
	switch {
	case s.Kind == flowcontrolv1.SubjectKindUser && s.User != nil:
		return s.User.Name == "*" || s.User.Name == u.Name
	case s.Kind == flowcontrolv1.SubjectKindGroup && s.Group != nil:
		return s.Group.Name == "*" || slices.Contains(u.Groups, s.Group.Name)
	case s.Kind == flowcontrolv1.SubjectKindServiceAccount && s.ServiceAccount != nil:
		rest, ok := strings.CutPrefix(u.Name, auth.ServiceAccountPrefix)
		ns, name, _ := strings.Cut(rest, ":")
		return ok && ns == s.ServiceAccount.Namespace && (s.ServiceAccount.Name == "*" || name == s.ServiceAccount.Name)
	}
	return false
}

func resource(r *flowcontrolv1.ResourcePolicyRule, a *auth.Attributes) bool {
	if !has(r.Verbs, a.Verb) || !has(r.APIGroups, a.APIGroup) {
		return false
	}
	if len(r.Resources) != 1 || r.Resources[0] != "*" {
		whole := a.Resource
		if a.Subresource != "" {
			whole += "/" + a.Subresource
		}
		if !slices.Contains(r.Resources, whole) {
			return false
		}
	}
	if a.Namespace == "" {
		return r.ClusterScope
	}
	return has(r.Namespaces, a.Namespace)
}

func path(rule, p string) bool {
	if rule == "*" || rule == p {
		return true
	}
	prefix := strings.TrimSuffix(rule, "*")
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	return strings.HasPrefix(p, prefix)
}
