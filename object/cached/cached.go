// Package cached says what informers keep of objects. The controllers, the
// scheduler and simulated kubelets of a process share one cache, in which pods
// weigh more than everything else together: so a pod there has what one of
// them reads, and what pods have in common is held once.
package cached

import (
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxShared bounds each table of what is held once. A full one begins anew.
const maxShared = 4096

// Keeper keeps the essence of objects. Its Transform is for one informer
// factory; the objects it returns share memory, as those of a cache do anyway.
type Keeper struct {
	whole string // node whose pods are kept whole

	mu    sync.Mutex
	metas map[string]*metav1.ObjectMeta // by their encoding
	specs map[string]*corev1.PodSpec    // by their encoding
	words map[string]string

	meta       metav1.ObjectMeta // scratch of pod, like what follows
	spec       corev1.PodSpec
	containers []corev1.Container
	buf        []byte
}

// New returns a Keeper. The pods of one node, if it is not "", stay whole: its
// kubelet runs them from the same cache.
func New(wholeNode string) *Keeper {
	return &Keeper{
		whole: wholeNode,
		metas: map[string]*metav1.ObjectMeta{}, specs: map[string]*corev1.PodSpec{}, words: map[string]string{},
	}
}

// Transform is a cache.TransformFunc: it takes over obj, as decoded, and drops
// what nobody reads. It never fails.
func (k *Keeper) Transform(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	if pod, ok := obj.(*corev1.Pod); ok && (k.whole == "" || pod.Spec.NodeName != k.whole) {
		k.pod(pod)
	}
	return obj, nil
}

// pod sets fields of p alone, never what they lead to: that may be shared.
func (k *Keeper) pod(p *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := &p.ObjectMeta
	k.meta = metav1.ObjectMeta{
		GenerateName: m.GenerateName, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations,
		OwnerReferences: m.OwnerReferences, Finalizers: m.Finalizers,
	}
	held := share(k, k.metas, &k.meta)
	m.GenerateName, m.Namespace, m.Labels, m.Annotations = held.GenerateName, held.Namespace, held.Labels, held.Annotations
	m.OwnerReferences, m.Finalizers, m.SelfLink = held.OwnerReferences, held.Finalizers, ""

	s := &p.Spec
	k.containers = keepContainers(keepContainers(k.containers[:0], s.InitContainers), s.Containers)
	k.spec = corev1.PodSpec{
		InitContainers: k.containers[:len(s.InitContainers)], Containers: k.containers[len(s.InitContainers):],
		RestartPolicy: s.RestartPolicy, TerminationGracePeriodSeconds: s.TerminationGracePeriodSeconds,
		ActiveDeadlineSeconds: s.ActiveDeadlineSeconds, NodeSelector: s.NodeSelector, HostNetwork: s.HostNetwork,
		Subdomain: s.Subdomain, Affinity: s.Affinity, SchedulerName: s.SchedulerName, Tolerations: s.Tolerations,
		PriorityClassName: s.PriorityClassName, Priority: s.Priority, ReadinessGates: s.ReadinessGates,
		PreemptionPolicy: s.PreemptionPolicy, Overhead: s.Overhead, TopologySpreadConstraints: s.TopologySpreadConstraints,
		SchedulingGates: s.SchedulingGates, Resources: s.Resources,
	}
	vols, node, host := volumes(s.Volumes), k.word(s.NodeName), s.Hostname
	*s = *share(k, k.specs, &k.spec)
	s.Volumes, s.NodeName, s.Hostname = vols, node, host
	k.status(&p.Status)
}

// keepContainers keeps who they are, where they listen (for the ports of Services and of nodes) and what they ask for.
func keepContainers(out, list []corev1.Container) []corev1.Container {
	for i := range list {
		c := &list[i]
		out = append(out, corev1.Container{Name: c.Name, Image: c.Image, Ports: c.Ports, Resources: c.Resources, RestartPolicy: c.RestartPolicy})
	}
	return out
}

// volumes keeps those that are claims, which are protected and decide nodes, or images, which nodes may have.
func volumes(list []corev1.Volume) (out []corev1.Volume) {
	for i := range list {
		v := &list[i]
		if v.PersistentVolumeClaim != nil || v.Ephemeral != nil || v.Image != nil {
			out = append(out, *v)
		}
	}
	return out
}

func (k *Keeper) status(s *corev1.PodStatus) {
	s.HostIP, s.QOSClass, s.Phase = k.word(s.HostIP), corev1.PodQOSClass(k.word(string(s.QOSClass))), corev1.PodPhase(k.word(string(s.Phase)))
	if len(s.HostIPs) == 1 && s.HostIPs[0].IP == s.HostIP {
		s.HostIPs = []corev1.HostIP{{IP: s.HostIP}}
	}
	if len(s.PodIPs) == 1 && s.PodIPs[0].IP == s.PodIP {
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
	s.Conditions = slices.Clone(s.Conditions) // to its size
	for i := range s.Conditions {
		c := &s.Conditions[i]
		c.Type, c.Status = corev1.PodConditionType(k.word(string(c.Type))), corev1.ConditionStatus(k.word(string(c.Status)))
		c.Reason, c.Message = k.word(c.Reason), k.word(c.Message)
	}
	s.InitContainerStatuses, s.ContainerStatuses = k.statuses(s.InitContainerStatuses), k.statuses(s.ContainerStatuses)
	s.EphemeralContainerStatuses = nil
}

// statuses keeps all that a kubelet has to say again when it says more.
func (k *Keeper) statuses(list []corev1.ContainerStatus) []corev1.ContainerStatus {
	list = slices.Clone(list)
	for i := range list {
		c := &list[i]
		c.Name, c.Image, c.ImageID = k.word(c.Name), k.word(c.Image), k.word(c.ImageID)
		c.VolumeMounts, c.User, c.AllocatedResourcesStatus = nil, nil, nil
	}
	return list
}

// word returns s, held once.
func (k *Keeper) word(s string) string {
	if have, ok := k.words[s]; ok {
		return have
	}
	return remember(k.words, s, s)
}

func remember[T any](table map[string]T, key string, v T) T {
	if len(table) >= maxShared {
		clear(table)
	}
	table[key] = v
	return v
}

// message is a value with its protobuf encoding.
type message[T any] interface {
	*T
	Size() int
	MarshalToSizedBuffer(data []byte) (int, error)
	DeepCopy() *T
}

// share returns what says the same as v and is shared: a copy of v if it is
// the first to say so.
func share[T any, M message[T]](k *Keeper, table map[string]*T, v M) *T {
	n := v.Size()
	k.buf = slices.Grow(k.buf[:0], n)[:n]
	if _, err := v.MarshalToSizedBuffer(k.buf); err != nil {
		return v.DeepCopy()
	}
	if have, ok := table[string(k.buf)]; ok {
		return have
	}
	return remember(table, string(k.buf), v.DeepCopy())
}
