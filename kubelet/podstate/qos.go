package podstate

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// QOS returns the pod's quality-of-service class: the recorded one, else computed from cpu and
// memory requests and limits.
func QOS(pod *v1.Pod) v1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	if pod.Spec.Resources != nil && (len(pod.Spec.Resources.Requests) > 0 || len(pod.Spec.Resources.Limits) > 0) {
		return classify([]v1.ResourceRequirements{*pod.Spec.Resources})
	}
	all := make([]v1.ResourceRequirements, 0, len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
	for i := range pod.Spec.Containers {
		all = append(all, pod.Spec.Containers[i].Resources)
	}
	for i := range pod.Spec.InitContainers {
		all = append(all, pod.Spec.InitContainers[i].Resources)
	}
	return classify(all)
}

func classify(all []v1.ResourceRequirements) v1.PodQOSClass {
	any, guaranteed := false, true
	for _, r := range all {
		for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			req, lim := positive(r.Requests, name), positive(r.Limits, name)
			if req == nil && lim != nil {
				req = lim // defaulting at the API server does this too
			}
			any = any || req != nil || lim != nil
			if lim == nil || req == nil || req.Cmp(*lim) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return v1.PodQOSBestEffort
	case guaranteed:
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}

func positive(l v1.ResourceList, name v1.ResourceName) *resource.Quantity {
	if q, ok := l[name]; ok && q.Sign() > 0 {
		return &q
	}
	return nil
}
