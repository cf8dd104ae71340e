// Package match decides which requests the configurations of admission
// (webhooks, policies, their bindings) are about: by rules, in any version the
// same object is served in, and by selectors on namespaces and objects.
package match

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
)

// Criteria are what one configuration chooses requests by. They never change
// once made, and are safe for concurrent use.
type Criteria struct {
	// Rules choose, unless Exclude does; with no Rules all else is chosen.
	Rules, Exclude []admissionv1.NamedRuleWithOperations
	// Equivalent lets rules choose by the object's other resources and versions.
	Equivalent bool
	// Namespaces and Objects choose by labels; nil: all.
	Namespaces, Objects labels.Selector
}

// New returns the criteria of a policy or binding; nil chooses everything. It
// errs where a selector cannot be read.
func New(m *admissionv1.MatchResources) (*Criteria, error) {
	if m == nil {
		return &Criteria{}, nil
	}
	c := &Criteria{Rules: m.ResourceRules, Exclude: m.ExcludeResourceRules, Equivalent: m.MatchPolicy != nil && *m.MatchPolicy == admissionv1.Equivalent}
	return c, c.Select(m.NamespaceSelector, m.ObjectSelector)
}

// Select sets the selectors; nil chooses everything.
func (c *Criteria) Select(namespaces, objects *metav1.LabelSelector) (err error) {
	for _, s := range []struct {
		from *metav1.LabelSelector
		to   *labels.Selector
	}{{namespaces, &c.Namespaces}, {objects, &c.Objects}} {
		if s.from == nil {
			continue
		}
		if *s.to, err = metav1.LabelSelectorAsSelector(s.from); err != nil {
			return err
		}
	}
	return nil
}

// Match returns the form of r the criteria choose. now is the object as it is
// (r.Object, or what earlier webhooks made of it), nil for none. An error is an
// API status, and one only if the rules choose the request.
func (c *Criteria) Match(r *admission.Request, now api.Object, read admission.Reader) (f admission.Form, ok bool, err error) {
	ok, namespaceErr := c.namespace(r, now, read)
	if !ok && namespaceErr == nil || !c.object(r, now) {
		return f, false, nil
	}
	if len(c.Exclude) > 0 {
		if _, out := c.rules(c.Exclude, r); out {
			return f, false, nil
		}
	}
	if f, ok = r.Own(), true; len(c.Rules) > 0 {
		f, ok = c.rules(c.Rules, r)
	}
	if !ok {
		return f, false, nil
	}
	return f, namespaceErr == nil, namespaceErr
}

// rules finds the form some rule chooses; the client's own goes first.
func (c *Criteria) rules(rules []admissionv1.NamedRuleWithOperations, r *admission.Request) (f admission.Form, ok bool) {
	f = r.Own()
	if slices.ContainsFunc(rules, func(rule admissionv1.NamedRuleWithOperations) bool { return chooses(&rule, r, f.Resource) }) {
		return f, true
	}
	if !c.Equivalent {
		return f, false
	}
	for i := range rules {
		for _, f := range r.Equivalents() {
			if chooses(&rules[i], r, f.Resource) {
				return f, true
			}
		}
	}
	return f, false
}

func chooses(rule *admissionv1.NamedRuleWithOperations, r *admission.Request, res schema.GroupVersionResource) bool {
	any := func(list []string, value string) bool {
		return slices.Contains(list, "*") || slices.Contains(list, value)
	}
	return scope(rule.Scope, r, res) &&
		slices.ContainsFunc(rule.Operations, func(op admissionv1.OperationType) bool {
			return op == admissionv1.OperationAll || string(op) == string(r.Operation())
		}) &&
		any(rule.APIGroups, res.Group) && any(rule.APIVersions, res.Version) &&
		slices.ContainsFunc(rule.Resources, func(text string) bool {
			name, sub, _ := strings.Cut(text, "/")
			return (name == "*" || name == res.Resource) && (sub == "*" || sub == r.Subresource)
		}) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, r.ObjectName()))
}

// scope: a Namespace is cluster-wide although its requests name a namespace.
func scope(s *admissionv1.ScopeType, r *admission.Request, res schema.GroupVersionResource) bool {
	cluster := r.Namespace == "" || res == corev1.SchemeGroupVersion.WithResource("namespaces")
	switch {
	case s == nil || *s == admissionv1.AllScopes:
		return true
	case *s == admissionv1.NamespacedScope:
		return !cluster
	}
	return *s == admissionv1.ClusterScope && cluster
}

// namespace never keeps out what is in no namespace and is none.
func (c *Criteria) namespace(r *admission.Request, now api.Object, read admission.Reader) (bool, error) {
	if c.Namespaces == nil || c.Namespaces.Empty() || r.Namespace == "" && r.Resource != "namespaces" {
		return true, nil
	}
	if op := r.Operation(); r.Resource == "namespaces" && r.Subresource == "" && now != nil && (op == admission.Create || op == admission.Update) {
		return c.Namespaces.Matches(labels.Set(now.GetLabels())), nil
	}
	ns, err := read.Get("", "namespaces", "", r.Namespace)
	if err != nil {
		if status := apierrors.APIStatus(nil); apierrors.IsNotFound(err) && errors.As(err, &status) {
			return false, err
		}
		return false, apierrors.NewInternalError(fmt.Errorf("the labels of namespace %s cannot be read: %w", r.Namespace, err))
	}
	return c.Namespaces.Matches(labels.Set(ns.GetLabels())), nil
}

// object chooses by the old object or the new.
func (c *Criteria) object(r *admission.Request, now api.Object) bool {
	if c.Objects == nil || c.Objects.Empty() {
		return true
	}
	return now != nil && c.Objects.Matches(labels.Set(now.GetLabels())) || r.Old != nil && c.Objects.Matches(labels.Set(r.Old.GetLabels()))
}

// Exempt tells requests no webhook or policy may touch: on their own
// configurations, so that a broken one can be repaired, and reviews of
// authentication and authorization, without which nobody could.
func Exempt(r *admission.Request) bool {
	switch r.APIGroup {
	case admissionv1.GroupName:
		switch r.Resource {
		case "validatingwebhookconfigurations", "mutatingwebhookconfigurations",
			"validatingadmissionpolicies", "validatingadmissionpolicybindings",
			"mutatingadmissionpolicies", "mutatingadmissionpolicybindings":
			return true
		}
	case "authentication.k8s.io":
		return r.Resource == "selfsubjectreviews" || r.Resource == "tokenreviews"
	case "authorization.k8s.io":
		switch r.Resource {
		case "localsubjectaccessreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews", "subjectaccessreviews":
			return true
		}
	}
	return false
}
