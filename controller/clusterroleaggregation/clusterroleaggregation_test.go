package clusterroleaggregation_test

import (
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/clusterroleaggregation"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func part(name string, resources ...string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"to-view": "true"}}}
	for _, x := range resources {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{Verbs: []string{"get"}, Resources: []string{x}})
	}
	return r
}

func TestAggregates(t *testing.T) {
	view := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "view"}, AggregationRule: &rbacv1.AggregationRule{
		ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to-view": "true"}}}}}
	w := enginetest.New(t, view, part("b", "pods", "nodes"), part("a", "pods"))
	w.Build(clusterroleaggregation.New(w.Env)).Settle()
	rules := func() string {
		r, _ := w.Client.RbacV1().ClusterRoles().Get(t.Context(), "view", metav1.GetOptions{})
		var out []string
		for _, x := range r.Rules {
			out = append(out, x.Resources...)
		}
		return strings.Join(out, " ")
	}
	if got := rules(); got != "pods nodes" {
		t.Errorf("rules %q", got)
	}
	w.Put(part("c", "widgets"))
	w.Settle()
	if got := rules(); got != "pods nodes widgets" {
		t.Errorf("rules after c came %q", got)
	}
	w.Remove(part("b"))
	w.Settle()
	if got := rules(); got != "pods widgets" {
		t.Errorf("rules after b went %q", got)
	}
	w.Writes()
	w.Settle()
	if again := w.Writes(); len(again) > 0 {
		t.Errorf("writes without need: %v", again)
	}
}
