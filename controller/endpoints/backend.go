package endpoints

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/utils/net"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

// Selects reports whether svc gets its endpoints from a selector.
func Selects(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.Selector != nil
}

// Eligible reports whether p can back a Service at all: it has an address and has not finished.
// Pods being deleted count only if terminating is set.
func Eligible(p *corev1.Pod, terminating bool) bool {
	if workload.IsFinished(p) || len(p.Status.PodIPs) == 0 && p.Status.PodIP == "" {
		return false
	}
	return terminating || p.DeletionTimestamp == nil
}

// Addresses returns p's addresses of the family.
func Addresses(p *corev1.Pod, family corev1.IPFamily) []string {
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	var out []string
	for _, ip := range ips {
		if net.IsIPv6String(ip.IP) == (family == corev1.IPv6Protocol) {
			out = append(out, ip.IP)
		}
	}
	return out
}

// Families returns the address families svc is served on.
func Families(svc *corev1.Service) []corev1.IPFamily {
	if len(svc.Spec.IPFamilies) > 0 {
		return svc.Spec.IPFamilies
	}
	if net.IsIPv6String(svc.Spec.ClusterIP) {
		return []corev1.IPFamily{corev1.IPv6Protocol}
	}
	return []corev1.IPFamily{corev1.IPv4Protocol}
}

// Hostname returns the name under which p shows up in svc's DNS records, or "".
func Hostname(p *corev1.Pod, svc *corev1.Service) string {
	if p.Spec.Hostname != "" && p.Spec.Subdomain == svc.Name && p.Namespace == svc.Namespace {
		return p.Spec.Hostname
	}
	return ""
}

// Port finds the number behind port's target in p; names are looked up in p's containers and
// restartable init containers.
func Port(p *corev1.Pod, port *corev1.ServicePort) (int32, error) {
	if port.TargetPort.StrVal == "" {
		return port.TargetPort.IntVal, nil
	}
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, cp := range c.Ports {
			if cp.Name == port.TargetPort.StrVal && cp.Protocol == port.Protocol {
				return cp.ContainerPort, nil
			}
		}
	}
	return 0, fmt.Errorf("no suitable port for manifest: %s", p.UID)
}

// PodChanged wakes every Service whose selector matches the Pod before or after the change, if the
// change can matter to a Service.
func PodChanged(services listers.ServiceLister) func(q engine.Queue, old, new *corev1.Pod) {
	return func(q engine.Queue, old, new *corev1.Pod) {
		if old != nil && new != nil && sameBackend(old, new) {
			return
		}
		p := new
		if p == nil {
			p = old
		}
		all, err := services.Services(p.Namespace).List(labels.Everything())
		if err != nil {
			return
		}
		for _, svc := range all {
			if !Selects(svc) {
				continue
			}
			sel := labels.SelectorFromValidatedSet(svc.Spec.Selector)
			if (old != nil && sel.Matches(labels.Set(old.Labels))) || (new != nil && sel.Matches(labels.Set(new.Labels))) {
				q.Add(svc.Namespace + "/" + svc.Name)
			}
		}
	}
}

func sameBackend(a, b *corev1.Pod) bool {
	return a.UID == b.UID && a.Spec.NodeName == b.Spec.NodeName &&
		a.Spec.Hostname == b.Spec.Hostname && a.Spec.Subdomain == b.Spec.Subdomain &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		workload.IsReady(a) == workload.IsReady(b) && workload.IsFinished(a) == workload.IsFinished(b) &&
		a.Status.PodIP == b.Status.PodIP && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) &&
		maps.Equal(a.Labels, b.Labels)
}

// Triggers remembers when what a Service's endpoints are made of last changed, to tell watchers how
// long the change took to reach them. Bounded by the number of Services and their Pods.
type Triggers struct {
	mu   sync.Mutex
	seen map[string]triggers
}

type triggers struct {
	service time.Time
	pods    map[string]time.Time
}

// NewTriggers returns an empty memory.
func NewTriggers() *Triggers { return &Triggers{seen: map[string]triggers{}} }

// Next returns the earliest change of svc or pods since the last call for svc; zero if nothing did.
func (t *Triggers) Next(svc *corev1.Service, pods []*corev1.Pod) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := svc.Namespace + "/" + svc.Name
	was, known := t.seen[key]
	is := triggers{service: svc.CreationTimestamp.Time, pods: map[string]time.Time{}}
	var first time.Time
	note := func(at time.Time) {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	for _, p := range pods {
		c := workload.Condition(p, corev1.PodReady)
		if c == nil {
			continue
		}
		at := c.LastTransitionTime.Time
		is.pods[p.Name] = at
		if known && at.After(was.pods[p.Name]) {
			note(at)
		}
		if !known {
			note(at)
		}
	}
	if !known || is.service.After(was.service) {
		note(is.service)
	}
	t.seen[key] = is
	return first
}

// Forget drops what is known of a Service.
func (t *Triggers) Forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.seen, key)
}

// TriggerAnnotation writes at to the annotations, or takes it out if zero.
func TriggerAnnotation(m metav1.Object, at time.Time) {
	a := maps.Clone(m.GetAnnotations())
	delete(a, corev1.EndpointsLastChangeTriggerTime)
	if !at.IsZero() {
		if a == nil {
			a = map[string]string{}
		}
		a[corev1.EndpointsLastChangeTriggerTime] = at.UTC().Format(time.RFC3339Nano)
	}
	m.SetAnnotations(a)
}
