package expression_test

import (
	"strings"
	"testing"

	"github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api/admissionregistration/expression"
)

var sees = expression.Sees{Params: true}

func pod() expression.Inputs {
	return expression.Inputs{
		Object: common.SchemalessTypedToVal(&corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1", Containers: make([]corev1.Container, 300)}}),
		Params: common.SchemalessTypedToVal(&corev1.ConfigMap{Data: map[string]string{"max": "5"}}),
	}
}

func TestEvaluate(t *testing.T) {
	var envs expression.Environments
	c := envs.Compiler(true)
	c.Variable("node", "object.spec.nodeName", sees, true)
	c.Variable("bad", "object.spec.nothing", sees, true)
	for text, want := range map[string]string{
		"variables.node == 'n1' && oldObject == null && namespaceObject == null": "true",
		"int(params.data.max) > object.spec.containers.size()":                   "false",
		"variables.bad == 1": `expression 'variables.bad == 1' resulted in error: composited variable "bad" fails to evaluate: no such key: nothing`,
		"unknown":            "compilation error: compilation failed: ERROR: <input>:1:1: undeclared reference to 'unknown' (in container '')\n | unknown\n | ^",
	} {
		v, err, fatal := expression.Evaluate(t.Context(), pod(), c.Variables(), expression.Budget).Eval(c.Condition(text, sees, true))
		got := ""
		if err != nil {
			got = err.Error()
		} else if v != nil {
			got = map[bool]string{true: "true", false: "false"}[v == types.True]
		}
		if fatal != nil || got != want {
			t.Errorf("%s: %s (%v), want %s", text, got, fatal, want)
		}
	}
}

// Cost: one expression may not cost too much, nor all together; variables count.
func TestBudgets(t *testing.T) {
	var envs expression.Environments
	c := envs.Compiler(true)
	all := "object.spec.containers.all(a, object.spec.containers.all(b, a.name == b.name))"
	c.Variable("dear", all, sees, true)
	x := c.Condition(all, sees, true)
	e := expression.Evaluate(t.Context(), pod(), c.Variables(), expression.Budget)
	if _, err, fatal := e.Eval(x); err != nil || fatal != nil || e.Remaining > expression.Budget-90_000 {
		t.Fatalf("%v %v, %d left", err, fatal, e.Remaining)
	}
	e = expression.Evaluate(t.Context(), pod(), c.Variables(), 1000)
	for _, text := range []string{all, "variables.dear"} {
		_, _, fatal := e.Eval(c.Condition(text, sees, true))
		if fatal == nil || fatal.Error() != "validation failed due to running out of cost budget, no further validation rules will be run" {
			t.Errorf("%s: %v", text, fatal)
		}
	}
	most := "object.spec.containers.all(a, object.spec.containers.all(b, object.spec.containers.all(c, a.name == b.name)))"
	_, err, fatal := expression.Evaluate(t.Context(), pod(), nil, expression.Budget).Eval(c.Condition(most, sees, true))
	if fatal == nil || !strings.Contains(fatal.Error(), "running out of cost budget") {
		t.Logf("the limit of one expression: %v, %v", err, fatal)
		if err == nil || !strings.Contains(err.Error(), "operation cancelled: actual cost limit exceeded") {
			t.Errorf("%v %v", err, fatal)
		}
	}
}

func TestMatch(t *testing.T) {
	var envs expression.Environments
	for name, c := range map[string]struct {
		texts   []string
		failure admissionv1.FailurePolicyType
		want    bool
		err     string
	}{
		"all true":             {[]string{"true", "object.spec.nodeName == 'n1'"}, admissionv1.Fail, true, ""},
		"false":                {[]string{"true", "false"}, admissionv1.Fail, false, ""},
		"false beats an error": {[]string{"object.no.such == 1", "false"}, admissionv1.Fail, false, ""},
		"error":                {[]string{"object.no.such == 1", "true"}, admissionv1.Fail, false, "expression 'object.no.such == 1' resulted in error: no such key: no"},
		"error ignored":        {[]string{"object.no.such == 1", "true"}, admissionv1.Ignore, false, ""},
	} {
		var list []admissionv1.MatchCondition
		for _, text := range c.texts {
			list = append(list, admissionv1.MatchCondition{Name: "c", Expression: text})
		}
		got, _, err := expression.Match(t.Context(), envs.Compiler(false).Conditions(list, sees), pod(), nil, ptr.To(c.failure))
		if got != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	var envs expression.Environments
	for b.Loop() {
		c := envs.Compiler(true)
		c.Variable("node", "object.spec.nodeName", sees, true)
		c.Condition("variables.node == 'n1'", sees, true)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	var envs expression.Environments
	c := envs.Compiler(false)
	x := c.Condition("object.spec.nodeName == 'n1'", sees, true)
	for b.Loop() {
		if v, err, _ := expression.Evaluate(b.Context(), pod(), nil, expression.Budget).Eval(x); err != nil || v != types.True {
			b.Fatal(v, err)
		}
	}
}
