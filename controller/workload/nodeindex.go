package workload

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// IndexByNode makes the Pod informer answer OnNode. Calling it again changes nothing.
func IndexByNode(pods cache.SharedIndexInformer) error {
	return addIndex(pods, byNode, func(obj any) ([]string, error) {
		p, ok := obj.(*corev1.Pod)
		if !ok || p.Spec.NodeName == "" {
			return nil, nil
		}
		return []string{p.Spec.NodeName}, nil
	})
}

// OnNode lists the cached Pods bound to the node. They are shared and must not be changed.
func OnNode(pods cache.SharedIndexInformer, node string) ([]*corev1.Pod, error) {
	objs, err := pods.GetIndexer().ByIndex(byNode, node)
	if err != nil {
		return nil, err
	}
	out := make([]*corev1.Pod, 0, len(objs))
	for _, o := range objs {
		if p, ok := o.(*corev1.Pod); ok {
			out = append(out, p)
		}
	}
	return out, nil
}
