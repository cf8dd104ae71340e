// Package policystatus checks the types in the expressions of
// ValidatingAdmissionPolicies against the schemas of the kinds they are about,
// and writes what it finds into their status.
package policystatus

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/openapi"
	applyv1 "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/controller/engine"
)

const (
	name     = "validatingadmissionpolicy-status-controller"
	policies = engine.Resource("validatingadmissionpolicies.admissionregistration.k8s.io")
)

// maxKinds bounds the kinds a rule's expressions are checked against.
const maxKinds = 10

// New returns the controller.
func New(env engine.Env) (*engine.Controller, error) {
	inf := env.Informers.Admissionregistration().V1().ValidatingAdmissionPolicies()
	lister := inf.Lister()
	reconcile := func(ctx context.Context, key string) error {
		p, err := lister.Get(key)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil || p.Generation <= p.Status.ObservedGeneration {
			return err
		}
		warnings := []*applyv1.ExpressionWarningApplyConfiguration{}
		for _, w := range Check(p, &published{discovery: env.Client.Discovery()}) {
			warnings = append(warnings, applyv1.ExpressionWarning().WithFieldRef(w.FieldRef).WithWarning(w.Warning))
		}
		status := applyv1.ValidatingAdmissionPolicyStatus().WithObservedGeneration(p.Generation).
			WithTypeChecking(applyv1.TypeChecking().WithExpressionWarnings(warnings...))
		_, err = env.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies().ApplyStatus(ctx,
			applyv1.ValidatingAdmissionPolicy(p.Name).WithStatus(status), metav1.ApplyOptions{FieldManager: name, Force: true})
		return err
	}
	return &engine.Controller{
		Name: name, Outputs: []engine.Resource{policies},
		Sources: []engine.Source{engine.On(policies, inf.Informer(), func(q engine.Queue, _, p *admissionv1.ValidatingAdmissionPolicy) {
			if p != nil {
				q.Add(p.Name)
			}
		})},
		Reconcile: reconcile,
	}, nil
}

// Schemas finds the kinds and schemas an API server has. What it cannot find is not checked.
type Schemas interface {
	// Kind is the kind of a resource; empty: there is none.
	Kind(schema.GroupVersionResource) schema.GroupVersionKind
	// Schema is that of a kind, with no references in it; nil: there is none.
	Schema(schema.GroupVersionKind) *spec.Schema
}

// Check returns what is wrong with the types in a policy's validations.
func Check(p *admissionv1.ValidatingAdmissionPolicy, s Schemas) (warnings []admissionv1.ExpressionWarning) {
	sees := expression.Sees{Authorizer: true, Params: p.Spec.ParamKind != nil}
	var params *apiservercel.DeclType
	if k := p.Spec.ParamKind; k != nil {
		params = declare(s, schema.FromAPIVersionAndKind(k.APIVersion, k.Kind), "Params")
	}
	type checker struct {
		kind schema.GroupVersionKind
		*expression.Compiler
	}
	var checkers []checker
	for _, kind := range kindsOf(p, s) {
		object := declare(s, kind, "")
		if object == nil {
			continue
		}
		c, err := expression.TypeChecker(sees, object, params)
		if err != nil {
			continue
		}
		for _, v := range p.Spec.Variables {
			c.Variable(v.Name, v.Expression, sees, true)
		}
		checkers = append(checkers, checker{kind, c})
	}
	check := func(at *field.Path, text string) {
		if text == "" {
			return
		}
		var found []string
		for _, c := range checkers {
			if x := c.Compile(text, sees, true); x.Err != nil {
				found = append(found, fmt.Sprintf("%v: %s\n", c.kind, x.Err))
			}
		}
		if len(found) > 0 {
			warnings = append(warnings, admissionv1.ExpressionWarning{FieldRef: at.String(), Warning: strings.Join(found, "\n")})
		}
	}
	for i, v := range p.Spec.Validations {
		at := field.NewPath("spec", "validations").Index(i)
		check(at.Child("expression"), v.Expression)
		check(at.Child("messageExpression"), v.MessageExpression)
	}
	return warnings
}

// kindsOf are the kinds a policy names without wildcards, in order.
func kindsOf(p *admissionv1.ValidatingAdmissionPolicy, s Schemas) (kinds []schema.GroupVersionKind) {
	if p.Spec.MatchConstraints == nil {
		return nil
	}
	for _, r := range p.Spec.MatchConstraints.ResourceRules {
		if slices.Contains(r.APIGroups, "*") || slices.Contains(r.APIVersions, "*") {
			continue
		}
		sorted := func(list []string) []string { return slices.Sorted(slices.Values(list)) }
		n := 0
		for _, g := range sorted(r.APIGroups) {
			for _, v := range sorted(r.APIVersions) {
				for _, res := range sorted(r.Resources) {
					if n == maxKinds || strings.ContainsAny(res, "*/") {
						continue
					}
					if k := s.Kind(schema.GroupVersionResource{Group: g, Version: v, Resource: res}); !k.Empty() {
						kinds = append(kinds, k)
						n++
					}
				}
			}
		}
	}
	slices.SortFunc(kinds, func(a, b schema.GroupVersionKind) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Kind, b.Kind))
	})
	return slices.Compact(kinds)
}

// declare makes a kind's schema a type, whose name no other of the same expression has.
func declare(s Schemas, kind schema.GroupVersionKind, suffix string) *apiservercel.DeclType {
	found := s.Schema(kind)
	if found == nil {
		return nil
	}
	t := common.SchemaDeclType(&openapi.Schema{Schema: found}, true)
	if t == nil {
		return nil
	}
	return t.MaybeAssignTypeName(kind.Kind + suffix)
}

// published is what an API server publishes. It reads each group's document once.
type published struct {
	discovery discovery.DiscoveryInterface
	documents map[schema.GroupVersion]*spec3.OpenAPI
}

// Kind implements Schemas.
func (p *published) Kind(r schema.GroupVersionResource) schema.GroupVersionKind {
	list, err := p.discovery.ServerResourcesForGroupVersion(r.GroupVersion().String())
	if err == nil {
		for _, res := range list.APIResources {
			if res.Name == r.Resource {
				return r.GroupVersion().WithKind(res.Kind)
			}
		}
	}
	return schema.GroupVersionKind{}
}

// Schema implements Schemas.
func (p *published) Schema(kind schema.GroupVersionKind) *spec.Schema {
	doc := p.document(kind.GroupVersion())
	if doc == nil || doc.Components == nil {
		return nil
	}
	for name, s := range doc.Components.Schemas {
		var kinds []schema.GroupVersionKind
		if s.Extensions.GetObject("x-kubernetes-group-version-kind", &kinds) == nil && slices.Contains(kinds, kind) {
			return resolve(doc.Components.Schemas, s, []string{name})
		}
	}
	return nil
}

func (p *published) document(gv schema.GroupVersion) *spec3.OpenAPI {
	if doc, ok := p.documents[gv]; ok {
		return doc
	}
	if p.documents == nil {
		p.documents = map[schema.GroupVersion]*spec3.OpenAPI{}
	}
	path := "apis/" + gv.String()
	if gv.Group == "" {
		path = "api/" + gv.Version
	}
	p.documents[gv] = nil
	paths, err := p.discovery.OpenAPIV3().Paths()
	if err != nil || paths[path] == nil {
		return nil
	}
	data, err := paths[path].Schema(runtime.ContentTypeJSON)
	doc := &spec3.OpenAPI{}
	if err == nil && json.Unmarshal(data, doc) == nil {
		p.documents[gv] = doc
	}
	return p.documents[gv]
}

// resolve returns a copy of s with what its references name in their place;
// above are the names s is within: one of them again is just an object.
func resolve(all map[string]*spec.Schema, s *spec.Schema, above []string) *spec.Schema {
	if name := reference(s); name != "" {
		to := all[name]
		if to == nil || slices.Contains(above, name) {
			return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
		}
		return resolve(all, to, append(slices.Clip(above), name))
	}
	out := *s
	out.Properties = nil
	for name, p := range s.Properties {
		out.SetProperty(name, *resolve(all, &p, above))
	}
	if a := s.AdditionalProperties; a != nil && a.Schema != nil {
		out.AdditionalProperties = &spec.SchemaOrBool{Allows: a.Allows, Schema: resolve(all, a.Schema, above)}
	}
	if s.Items != nil && s.Items.Schema != nil {
		out.Items = &spec.SchemaOrArray{Schema: resolve(all, s.Items.Schema, above)}
	}
	return &out
}

// reference is the name s refers to, maybe from within an allOf.
func reference(s *spec.Schema) string {
	if s.Ref.GetURL() != nil {
		return strings.TrimPrefix(s.Ref.String(), "#/components/schemas/")
	}
	for i := range s.AllOf {
		if name := reference(&s.AllOf[i]); name != "" {
			return name
		}
	}
	return ""
}
