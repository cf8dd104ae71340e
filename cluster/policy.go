package cluster

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/apiserver/registry"
)

// policyReader shows the API server's own reader to the authorizers and token
// validators in the types they ask for. What it returns is shared.
type policyReader struct{ registry.RBAC }

// ServiceAccount, Pod, Secret and Node make it a serviceaccount.Getter.

func (p policyReader) ServiceAccount(_ context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return registry.As[*corev1.ServiceAccount](p.Reader.Get("", "serviceaccounts", namespace, name))
}

func (p policyReader) Pod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	return registry.As[*corev1.Pod](p.Reader.Get("", "pods", namespace, name))
}

func (p policyReader) Secret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	return registry.As[*corev1.Secret](p.Reader.Get("", "secrets", namespace, name))
}

func (p policyReader) Node(_ context.Context, name string) (*corev1.Node, error) {
	return registry.As[*corev1.Node](p.Reader.Get("", "nodes", "", name))
}

// PodsOnNode and Get make it a node.Reader.

func (p policyReader) PodsOnNode(node string) ([]*corev1.Pod, error) {
	return registry.AllAs[*corev1.Pod](p.Select("", "pods", "", fields.OneTermEqualSelector("spec.nodeName", node)))
}

func (p policyReader) Get(group, resource, namespace, name string) (runtime.Object, error) {
	return p.Reader.Get(group, resource, namespace, name)
}
