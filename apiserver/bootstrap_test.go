package apiserver_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth/rbac/policy"
	"github.com/skiff-project/skiff/store/embedded"
)

// lines hands out what is logged.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

func TestInvalidBootstrapObjectHoldsUpNoOther(t *testing.T) {
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	p := policy.Bootstrap()
	bad := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "no-verbs"}, Rules: []rbacv1.PolicyRule{{Resources: []string{"pods"}, APIGroups: []string{""}}}}
	p.ClusterRoles = append([]*rbacv1.ClusterRole{bad}, p.ClusterRoles...)
	logged := make(lines, 1)
	s, err := apiserver.New(apiserver.Config{
		Store: st, Resources: all.Resources(), Authorizer: allowAll{}, Policy: p,
		Log: slog.New(slog.NewTextHandler(logged, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	if line := <-logged; !strings.Contains(line, "no-verbs") {
		t.Fatalf("first complaint: %s", line)
	}
	c := typed(t, s)
	roles, err := c.RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{})
	if err != nil || len(roles.Items) != len(p.ClusterRoles)-1 {
		t.Errorf("after the first attempt: %d roles of %d, %v", len(roles.Items), len(p.ClusterRoles)-1, err)
	}
	bindings, err := c.RbacV1().RoleBindings("").List(ctx, metav1.ListOptions{})
	if err != nil || len(bindings.Items) != len(p.RoleBindings) {
		t.Errorf("after the first attempt: %d bindings of %d, %v", len(bindings.Items), len(p.RoleBindings), err)
	}
}
