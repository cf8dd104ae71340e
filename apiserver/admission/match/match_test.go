package match

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/auth"
)

// shown is a Shower with forms as "group/version/resource".
type shown []string

func (s shown) Forms(*admission.Request) (out []admission.Form) {
	for _, text := range s {
		p := strings.Split(text, "/")
		out = append(out, admission.Form{Resource: schema.GroupVersionResource{Group: p[0], Version: p[1], Resource: p[2]}})
	}
	return out
}

// namespaces is a Reader of namespaces: their label "env" by name.
type namespaces map[string]string

func (n namespaces) Get(_, _, _, name string) (api.Object, error) {
	env, ok := n[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, name)
	}
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"env": env}}}, nil
}

func (namespaces) List(string, string, string) ([]api.Object, error) { return nil, nil }

func pod(labels ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}}}
	for _, l := range labels {
		p.Labels[l] = "yes"
	}
	return p
}

// rule is "OPERATION group version resource [names…]".
func rule(text string, scope admissionv1.ScopeType) admissionv1.NamedRuleWithOperations {
	f := strings.Fields(text)
	if f[1] == "core" {
		f[1] = ""
	}
	r := admissionv1.NamedRuleWithOperations{ResourceNames: f[4:]}
	r.Operations = []admissionv1.OperationType{admissionv1.OperationType(f[0])}
	r.Rule = admissionv1.Rule{APIGroups: []string{f[1]}, APIVersions: []string{f[2]}, Resources: []string{f[3]}, Scope: &scope}
	return r
}

func TestMatch(t *testing.T) {
	read := namespaces{"prod": "prod", "dev": "dev"}
	create := func(ns string, obj api.Object) *admission.Request {
		return &admission.Request{
			Attributes: auth.Attributes{ResourceRequest: true, Verb: "create", APIVersion: "v1", Resource: "pods", Namespace: ns},
			Object:     obj, Forms: shown{"/v1/pods"},
		}
	}
	events := create("dev", pod())
	events.Resource, events.Forms = "events", shown{"/v1/events", "events.k8s.io/v1/events"}
	exec := create("dev", nil)
	exec.Verb, exec.Subresource = "connect", "exec"
	space := create("prod", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", Labels: map[string]string{"env": "dev"}}})
	space.Resource, space.Forms = "namespaces", shown{"/v1/namespaces"}
	gone := create("dev", nil)
	gone.Verb, gone.Name, gone.Old = "delete", "a", pod("old")
	env := &metav1.LabelSelector{MatchLabels: map[string]string{"env": "dev"}}
	for _, c := range []struct {
		name             string
		rules, exclude   []string
		scope            admissionv1.ScopeType
		exact            bool
		nsSel, objectSel *metav1.LabelSelector
		r                *admission.Request
		want             string // group/version/resource, "no" or an error's reason
	}{
		{name: "no rules", r: create("dev", pod()), want: "/v1/pods"},
		{name: "wildcards", rules: []string{"* * * *"}, r: create("dev", pod()), want: "/v1/pods"},
		{name: "other operation", rules: []string{"DELETE * * *"}, r: create("dev", pod()), want: "no"},
		{name: "a star is no subresource", rules: []string{"* * * *"}, r: exec, want: "no"},
		{name: "all subresources", rules: []string{"CONNECT * * */*"}, r: exec, want: "/v1/pods"},
		{name: "one subresource", rules: []string{"CONNECT core v1 pods/exec"}, r: exec, want: "/v1/pods"},
		{name: "another subresource", rules: []string{"CONNECT core v1 pods/attach"}, r: exec, want: "no"},
		{name: "equivalent", rules: []string{"CREATE events.k8s.io v1 events"}, r: events, want: "events.k8s.io/v1/events"},
		{name: "own form first", rules: []string{"CREATE events.k8s.io v1 events", "CREATE core v1 events"}, r: events, want: "/v1/events"},
		{name: "exact", rules: []string{"CREATE events.k8s.io v1 events"}, exact: true, r: events, want: "no"},
		{name: "named", rules: []string{"DELETE core v1 pods a b"}, r: gone, want: "/v1/pods"},
		{name: "other name", rules: []string{"DELETE core v1 pods b"}, r: gone, want: "no"},
		{name: "excluded", rules: []string{"* * * *"}, exclude: []string{"CREATE core v1 pods"}, r: create("dev", pod()), want: "no"},
		{name: "excluded by equivalent", exclude: []string{"* events.k8s.io v1 events"}, r: events, want: "no"},
		{name: "namespaced", rules: []string{"* * * *"}, scope: admissionv1.NamespacedScope, r: create("dev", pod()), want: "/v1/pods"},
		{name: "not cluster", rules: []string{"* * * *"}, scope: admissionv1.ClusterScope, r: create("dev", pod()), want: "no"},
		{name: "a namespace is cluster-wide", rules: []string{"* * * *"}, scope: admissionv1.ClusterScope, r: space, want: "/v1/namespaces"},
		{name: "namespace chosen", nsSel: env, r: create("dev", pod()), want: "/v1/pods"},
		{name: "namespace not chosen", nsSel: env, r: create("prod", pod()), want: "no"},
		{name: "no namespace", nsSel: env, r: create("", pod()), want: "/v1/pods"},
		{name: "namespace missing", nsSel: env, r: create("gone", pod()), want: "NotFound"},
		{name: "namespace missing, but no rule", rules: []string{"DELETE * * *"}, nsSel: env, r: create("gone", pod()), want: "no"},
		{name: "a namespace's own new labels", nsSel: env, r: space, want: "/v1/namespaces"},
		{name: "object chosen", objectSel: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "yes"}}, r: create("dev", pod("a")), want: "/v1/pods"},
		{name: "object not chosen", objectSel: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "yes"}}, r: create("dev", pod("b")), want: "no"},
		{name: "old object chosen", objectSel: &metav1.LabelSelector{MatchLabels: map[string]string{"old": "yes"}}, r: gone, want: "/v1/pods"},
		{name: "no object", objectSel: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "yes"}}, r: exec, want: "no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.scope == "" {
				c.scope = admissionv1.AllScopes
			}
			m := &admissionv1.MatchResources{MatchPolicy: ptr.To(admissionv1.Equivalent), NamespaceSelector: c.nsSel, ObjectSelector: c.objectSel}
			if c.exact {
				m.MatchPolicy = ptr.To(admissionv1.Exact)
			}
			for _, text := range c.rules {
				m.ResourceRules = append(m.ResourceRules, rule(text, c.scope))
			}
			for _, text := range c.exclude {
				m.ExcludeResourceRules = append(m.ExcludeResourceRules, rule(text, c.scope))
			}
			criteria, err := New(m)
			if err != nil {
				t.Fatal(err)
			}
			f, ok, err := criteria.Match(c.r, c.r.Object, read)
			got := "no"
			if err != nil {
				got = string(apierrors.ReasonForError(err))
			} else if ok {
				got = f.Resource.Group + "/" + f.Resource.Version + "/" + f.Resource.Resource
			}
			if got != c.want {
				t.Errorf("matched %s, want %s", got, c.want)
			}
		})
	}
}
