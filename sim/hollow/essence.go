package hollow

import (
	corev1 "k8s.io/api/core/v1"
)

// essence is what the watch keeps of a pod: with many, the rest of their
// specs would be most of the simulator's memory.
func essence(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	pod.ManagedFields, pod.OwnerReferences, pod.Labels = nil, nil, nil
	s := pod.Spec
	pod.Spec = corev1.PodSpec{
		NodeName: s.NodeName, RestartPolicy: s.RestartPolicy, HostNetwork: s.HostNetwork,
		ReadinessGates: s.ReadinessGates, ActiveDeadlineSeconds: s.ActiveDeadlineSeconds,
		Containers: brief(s.Containers), InitContainers: brief(s.InitContainers),
	}
	return pod, nil
}

func brief(list []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, len(list))
	for i, c := range list {
		out[i] = corev1.Container{Name: c.Name, Image: c.Image, RestartPolicy: c.RestartPolicy}
	}
	return out
}
