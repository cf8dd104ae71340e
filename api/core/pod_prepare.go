package core

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/skiff-project/skiff/api/core/podspec"
)

// eachContainer calls f with every container of the spec, init and ephemeral
// ones included, and the field it stands in.
func eachContainer(s *corev1.PodSpec, f func(c *corev1.Container)) {
	for i := range s.InitContainers {
		f(&s.InitContainers[i])
	}
	for i := range s.Containers {
		f(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		f((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
}

// DropTemplateFields is dropPodFields for the templates of other kinds.
func DropTemplateFields(t, old *corev1.PodTemplateSpec) {
	if old == nil {
		dropPodFields(&t.Spec, nil)
		return
	}
	dropPodFields(&t.Spec, &old.Spec)
}

// dropPodFields clears fields of features that are off by default in this
// version; an object that already has one keeps it.
func dropPodFields(s, old *corev1.PodSpec) {
	if old == nil {
		old = &corev1.PodSpec{}
	}
	if old.SchedulingGroup == nil {
		s.SchedulingGroup = nil
	}
	if old.EvictionResponders == nil {
		s.EvictionResponders = nil
	}
	keep := alphaUse(old)
	eachVolume(s, func(mode **int32, user **int64) {
		if mode != nil && !keep.dirMode {
			*mode = nil
		}
		if user != nil && !keep.fileOwner {
			*user = nil
		}
	})
	eachContainer(s, func(c *corev1.Container) {
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if p == nil {
				continue
			}
			if p.HTTPGet != nil && !keep.httpProtocol {
				p.HTTPGet.Protocol = nil
			}
			if p.GRPC != nil && !keep.grpcMode {
				p.GRPC.Mode = nil
			}
		}
		for i := range c.VolumeMounts {
			if !keep.bindOptions {
				c.VolumeMounts[i].BindMountOptions = nil
			}
		}
		if c.Lifecycle == nil {
			return
		}
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil && h.HTTPGet != nil && !keep.httpProtocol {
				h.HTTPGet.Protocol = nil
			}
		}
		if !keep.stopSignal && c.Lifecycle.StopSignal != nil {
			c.Lifecycle.StopSignal = nil
			if *c.Lifecycle == (corev1.Lifecycle{}) {
				c.Lifecycle = nil
			}
		}
	})
}

type alphaFields struct{ httpProtocol, grpcMode, stopSignal, bindOptions, dirMode, fileOwner bool }

// eachVolume calls f with the mode of each directory and the owners of files that volumes may set; one of both is nil.
func eachVolume(s *corev1.PodSpec, f func(mode **int32, user **int64)) {
	keys := func(items []corev1.KeyToPath) {
		for i := range items {
			f(nil, &items[i].User)
		}
	}
	downward := func(items []corev1.DownwardAPIVolumeFile) {
		for i := range items {
			f(nil, &items[i].User)
		}
	}
	for i := range s.Volumes {
		switch v := &s.Volumes[i]; {
		case v.EmptyDir != nil:
			f(&v.EmptyDir.Mode, nil)
		case v.Secret != nil:
			f(nil, &v.Secret.DefaultUser)
			keys(v.Secret.Items)
		case v.ConfigMap != nil:
			f(nil, &v.ConfigMap.DefaultUser)
			keys(v.ConfigMap.Items)
		case v.DownwardAPI != nil:
			f(nil, &v.DownwardAPI.DefaultUser)
			downward(v.DownwardAPI.Items)
		case v.Projected != nil:
			f(nil, &v.Projected.DefaultUser)
			for j := range v.Projected.Sources {
				switch p := &v.Projected.Sources[j]; {
				case p.Secret != nil:
					keys(p.Secret.Items)
				case p.DownwardAPI != nil:
					downward(p.DownwardAPI.Items)
				case p.ConfigMap != nil:
					keys(p.ConfigMap.Items)
				case p.ServiceAccountToken != nil:
					f(nil, &p.ServiceAccountToken.User)
				case p.ClusterTrustBundle != nil:
					f(nil, &p.ClusterTrustBundle.User)
				case p.PodCertificate != nil:
					f(nil, &p.PodCertificate.User)
				}
			}
		}
	}
}

func alphaUse(s *corev1.PodSpec) (use alphaFields) {
	eachVolume(s, func(mode **int32, user **int64) {
		use.dirMode = use.dirMode || mode != nil && *mode != nil
		use.fileOwner = use.fileOwner || user != nil && *user != nil
	})
	eachContainer(s, func(c *corev1.Container) {
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if p != nil {
				use.httpProtocol = use.httpProtocol || p.HTTPGet != nil && p.HTTPGet.Protocol != nil
				use.grpcMode = use.grpcMode || p.GRPC != nil && p.GRPC.Mode != nil
			}
		}
		use.bindOptions = use.bindOptions || slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return len(m.BindMountOptions) > 0 })
		use.stopSignal = use.stopSignal || c.Lifecycle != nil && c.Lifecycle.StopSignal != nil
	})
	return use
}

// mergeLabelKeys turns the matchLabelKeys and mismatchLabelKeys of affinity
// terms and spread constraints into selector requirements on the pod's labels.
func mergeLabelKeys(p *corev1.Pod) {
	if a := p.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			mergeAffinityKeys(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Labels)
		}
		if a.PodAntiAffinity != nil {
			mergeAffinityKeys(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Labels)
		}
	}
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		addRequirements(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn, p.Labels)
	}
}

func mergeAffinityKeys(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, labels map[string]string) {
	merge := func(t *corev1.PodAffinityTerm) {
		addRequirements(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
		addRequirements(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn, labels)
	}
	for i := range required {
		merge(&required[i])
	}
	for i := range preferred {
		merge(&preferred[i].PodAffinityTerm)
	}
}

func addRequirements(sel *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator, labels map[string]string) {
	if sel == nil {
		return // selects nothing, and must go on doing so
	}
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			sel.MatchExpressions = append(sel.MatchExpressions, metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: []string{value}})
		}
	}
}

// defaultPodLevelResources completes pod-level requests and limits from those
// of the containers (KEP-2837).
func defaultPodLevelResources(p *corev1.Pod) {
	r := p.Spec.Resources
	if r == nil || len(r.Requests) == 0 && len(r.Limits) == 0 {
		return
	}
	opts := resourcehelper.PodResourcesOptions{}
	containersOnly := &corev1.Pod{Spec: corev1.PodSpec{Containers: p.Spec.Containers, InitContainers: p.Spec.InitContainers}}
	limits := resourcehelper.AggregateContainerLimits(containersOnly, opts)
	for name, q := range limits {
		_, requested := r.Requests[name]
		if podspec.IsHugePages(name) && !requested {
			setDefault(&r.Limits, name, q)
		}
	}
	for name, q := range resourcehelper.AggregateContainerRequests(containersOnly, opts) {
		if resourcehelper.IsSupportedPodLevelResource(name) && podspec.OvercommitAllowed(name) {
			setDefault(&r.Requests, name, q)
		}
	}
	for name, q := range r.Limits {
		if resourcehelper.IsSupportedPodLevelResource(name) {
			setDefault(&r.Requests, name, q.DeepCopy())
		}
	}
	for name, request := range r.Requests {
		if _, ok := r.Limits[name]; ok || !resourcehelper.IsSupportedPodLevelResource(name) || !allLimited(&p.Spec, name) {
			continue
		}
		limit, ok := limits[name]
		if !ok {
			continue
		}
		if request.Cmp(limit) > 0 {
			limit = request
		}
		setDefault(&r.Limits, name, limit.DeepCopy())
	}
}

func allLimited(s *corev1.PodSpec, name corev1.ResourceName) bool {
	limited := func(c corev1.Container) bool { _, ok := c.Resources.Limits[name]; return ok }
	unlimited := func(c corev1.Container) bool { return !limited(c) }
	return !slices.ContainsFunc(s.Containers, unlimited) && !slices.ContainsFunc(s.InitContainers, unlimited)
}

func setDefault(list *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	if *list == nil {
		*list = corev1.ResourceList{}
	}
	if _, ok := (*list)[name]; !ok {
		(*list)[name] = q
	}
}
