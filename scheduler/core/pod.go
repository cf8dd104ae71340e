package core

import (
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Pod is a pod made ready for decisions. The object in it is not changed.
type Pod struct {
	*v1.Pod
	Node     string // where it is, "" while it waits
	Priority int32

	req      requests
	nonzero  requests // with defaults for containers that ask for nothing
	ports    []hostPort
	affinity podAffinity
	class    string // template, once it was asked for
}

// Compile makes a pod ready. It fails if a label selector of the pod does not
// parse.
func Compile(pod *v1.Pod) (*Pod, error) {
	p := &Pod{Pod: pod, req: podRequests(pod, requests{}), nonzero: podRequests(pod, defaultRequests), ports: hostPorts(pod)}
	if pod.Spec.Priority != nil {
		p.Priority = *pod.Spec.Priority
	}
	var err error
	p.affinity, err = compileAffinity(pod)
	return p, err
}

// podAffinity is a pod's terms about other pods.
type podAffinity struct {
	required, requiredAnti   []term
	preferred, preferredAnti []term
}

// term is one term of (anti-)affinity.
type term struct {
	selector   labels.Selector
	namespaces map[string]bool
	nsSelector labels.Selector // nil: only the listed namespaces
	key        string          // topology key
	weight     int64           // of preferred terms
}

func (a *podAffinity) scoresOthers() bool {
	return len(a.required)+len(a.preferred)+len(a.preferredAnti) > 0
}

func compileAffinity(pod *v1.Pod) (podAffinity, error) {
	var a podAffinity
	if pod.Spec.Affinity == nil {
		return a, nil
	}
	var err error
	if pa := pod.Spec.Affinity.PodAffinity; pa != nil {
		if a.required, err = terms(pod, pa.RequiredDuringSchedulingIgnoredDuringExecution); err == nil {
			a.preferred, err = weighted(pod, pa.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	if pa := pod.Spec.Affinity.PodAntiAffinity; pa != nil && err == nil {
		if a.requiredAnti, err = terms(pod, pa.RequiredDuringSchedulingIgnoredDuringExecution); err == nil {
			a.preferredAnti, err = weighted(pod, pa.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	return a, err
}

func terms(pod *v1.Pod, in []v1.PodAffinityTerm) ([]term, error) {
	out := make([]term, 0, len(in))
	for i := range in {
		t, err := compileTerm(pod, &in[i])
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func weighted(pod *v1.Pod, in []v1.WeightedPodAffinityTerm) ([]term, error) {
	out := make([]term, 0, len(in))
	for i := range in {
		t, err := compileTerm(pod, &in[i].PodAffinityTerm)
		if err != nil {
			return nil, err
		}
		t.weight = int64(in[i].Weight)
		out = append(out, t)
	}
	return out, nil
}

func compileTerm(pod *v1.Pod, in *v1.PodAffinityTerm) (term, error) {
	t := term{key: in.TopologyKey, namespaces: map[string]bool{}}
	var err error
	if t.selector, err = metav1.LabelSelectorAsSelector(in.LabelSelector); err != nil {
		return t, err
	}
	if len(in.Namespaces) == 0 && in.NamespaceSelector == nil {
		t.namespaces[pod.Namespace] = true
	}
	for _, ns := range in.Namespaces {
		t.namespaces[ns] = true
	}
	if in.NamespaceSelector != nil {
		t.nsSelector, err = metav1.LabelSelectorAsSelector(in.NamespaceSelector)
	}
	return t, err
}

// matches reports whether p is a pod the term speaks of.
func (t *term) matches(c *Cluster, p *Pod) bool {
	if !t.namespaces[p.Namespace] && (t.nsSelector == nil || !t.nsSelector.Matches(c.namespaces[p.Namespace])) {
		return false
	}
	return t.selector.Matches(labels.Set(p.Labels))
}

// each calls f for every placed pod the term speaks of.
func (t *term) each(c *Cluster, f func(*Pod)) {
	visit := func(ns string) {
		for p := range c.byNS[ns] {
			if t.selector.Matches(labels.Set(p.Labels)) {
				f(p)
			}
		}
	}
	for ns := range t.namespaces {
		visit(ns)
	}
	if t.nsSelector == nil {
		return
	}
	for ns := range c.byNS {
		if !t.namespaces[ns] && t.nsSelector.Matches(c.namespaces[ns]) {
			visit(ns)
		}
	}
}
