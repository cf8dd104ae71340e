package cluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver"
)

// policyReader shows the API server's own reader to the authorizers and token
// validators in the types they ask for. What it returns is shared.
type policyReader struct{ reader *apiserver.Reader }

func get[T any](p policyReader, group, resource, namespace, name string) (T, error) {
	var zero T
	obj, err := p.reader.Get(group, resource, namespace, name)
	if err != nil {
		return zero, err
	}
	t, ok := any(obj).(T)
	if !ok {
		return zero, fmt.Errorf("%s %s/%s is stored as %T", resource, namespace, name, obj)
	}
	return t, nil
}

func list[T any](p policyReader, group, resource, namespace string) ([]T, error) {
	objs, err := p.reader.List(group, resource, namespace)
	return typed[T](objs, err, resource)
}

func typed[T any](objs []api.Object, err error, resource string) ([]T, error) {
	if err != nil {
		return nil, err
	}
	out := make([]T, len(objs))
	for i, obj := range objs {
		t, ok := any(obj).(T)
		if !ok {
			return nil, fmt.Errorf("%s %s/%s is stored as %T", resource, obj.GetNamespace(), obj.GetName(), obj)
		}
		out[i] = t
	}
	return out, nil
}

const rbacGroup = rbacv1.GroupName

// Role, ClusterRole, RoleBindings and ClusterRoleBindings make it an rbac.Source.

func (p policyReader) Role(namespace, name string) (*rbacv1.Role, error) {
	return get[*rbacv1.Role](p, rbacGroup, "roles", namespace, name)
}

func (p policyReader) ClusterRole(name string) (*rbacv1.ClusterRole, error) {
	return get[*rbacv1.ClusterRole](p, rbacGroup, "clusterroles", "", name)
}

func (p policyReader) RoleBindings(namespace string) ([]*rbacv1.RoleBinding, error) {
	return list[*rbacv1.RoleBinding](p, rbacGroup, "rolebindings", namespace)
}

func (p policyReader) ClusterRoleBindings() ([]*rbacv1.ClusterRoleBinding, error) {
	return list[*rbacv1.ClusterRoleBinding](p, rbacGroup, "clusterrolebindings", "")
}

// ServiceAccount, Pod, Secret and Node make it a serviceaccount.Getter.

func (p policyReader) ServiceAccount(_ context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return get[*corev1.ServiceAccount](p, "", "serviceaccounts", namespace, name)
}

func (p policyReader) Pod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	return get[*corev1.Pod](p, "", "pods", namespace, name)
}

func (p policyReader) Secret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	return get[*corev1.Secret](p, "", "secrets", namespace, name)
}

func (p policyReader) Node(_ context.Context, name string) (*corev1.Node, error) {
	return get[*corev1.Node](p, "", "nodes", "", name)
}

// PodsOnNode and Get make it a node.Reader.

func (p policyReader) PodsOnNode(node string) ([]*corev1.Pod, error) {
	objs, err := p.reader.Select("", "pods", "", fields.OneTermEqualSelector("spec.nodeName", node))
	return typed[*corev1.Pod](objs, err, "pods")
}

func (p policyReader) Get(group, resource, namespace, name string) (runtime.Object, error) {
	return p.reader.Get(group, resource, namespace, name)
}
