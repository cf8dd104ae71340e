package scheduler

import (
	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/scheduler/core"
)

// register subscribes to everything decisions depend on.
func (s *Scheduler) register() error {
	inf := s.cfg.Informers
	subscriptions := []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{inf.Core().V1().Nodes().Informer(), handler(s.nodeChanged, s.nodeGone)},
		{inf.Core().V1().Pods().Informer(), handler(s.podChanged, s.podGone)},
		{inf.Core().V1().Namespaces().Informer(), handler(s.namespaceChanged, s.namespaceGone)},
	}
	for _, sub := range subscriptions {
		reg, err := sub.informer.AddEventHandler(sub.handler)
		if err != nil {
			return err
		}
		s.synced = append(s.synced, reg.HasSynced)
	}
	for _, informer := range s.facts.informers {
		s.synced = append(s.synced, informer.HasSynced)
	}
	for _, informer := range s.facts.volumeInformers {
		changed := func(any) { s.locked(func() { s.requeue(change{volumes: true}) }) }
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: changed, UpdateFunc: func(_, obj any) { changed(obj) }, DeleteFunc: changed,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// handler makes an event handler of two functions; old is nil for an addition.
func handler[T any](changed func(old, now *T), gone func(*T)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if now, ok := obj.(*T); ok {
				changed(nil, now)
			}
		},
		UpdateFunc: func(was, obj any) {
			old, _ := was.(*T)
			if now, ok := obj.(*T); ok {
				changed(old, now)
			}
		},
		DeleteFunc: func(obj any) {
			if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = d.Obj
			}
			if last, ok := obj.(*T); ok {
				gone(last)
			}
		},
	}
}

// locked runs f with the lock held and wakes the decider.
func (s *Scheduler) locked(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	s.signal()
}

func (s *Scheduler) nodeChanged(old, now *v1.Node) {
	if old != nil && !nodeMatters(old, now) {
		s.mu.Lock()
		s.cluster.SetNode(now)
		s.mu.Unlock()
		return
	}
	s.locked(func() {
		s.cluster.SetNode(now)
		s.requeue(change{node: now.Name, topology: old == nil || !apiequality.Semantic.DeepEqual(old.Labels, now.Labels)})
	})
}

// nodeMatters reports whether a node changed in a way that can let pods in. A
// heartbeat does not.
func nodeMatters(old, now *v1.Node) bool {
	return old.Spec.Unschedulable != now.Spec.Unschedulable ||
		!apiequality.Semantic.DeepEqual(old.Spec.Taints, now.Spec.Taints) ||
		!apiequality.Semantic.DeepEqual(old.Labels, now.Labels) ||
		!apiequality.Semantic.DeepEqual(old.Status.Allocatable, now.Status.Allocatable)
}

func (s *Scheduler) nodeGone(n *v1.Node) {
	s.locked(func() {
		s.cluster.RemoveNode(n.Name)
		s.requeue(change{topology: true})
	})
}

func (s *Scheduler) namespaceChanged(old, now *v1.Namespace) {
	s.locked(func() {
		s.cluster.SetNamespace(now.Name, now.Labels)
		if old == nil || !apiequality.Semantic.DeepEqual(old.Labels, now.Labels) {
			s.requeue(change{placed: true})
		}
	})
}

func (s *Scheduler) namespaceGone(n *v1.Namespace) {
	s.locked(func() { s.cluster.SetNamespace(n.Name, nil) })
}

func finished(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

func (s *Scheduler) podChanged(old, now *v1.Pod) {
	switch {
	case finished(now):
		s.podGone(now)
		return
	case now.Spec.NodeName == "" && !s.names[now.Spec.SchedulerName]:
		return
	}
	p, err := core.Compile(now)
	if err != nil {
		s.cfg.Log.Warn("a pod's affinity does not parse, it is ignored", "pod", now.Namespace+"/"+now.Name, "err", err)
		if p == nil {
			return
		}
	}
	if now.Spec.NodeName != "" {
		s.locked(func() { s.podPlaced(old, p) })
		return
	}
	s.locked(func() { s.podWaits(old, p) })
}

// podPlaced learns that a pod is on a node.
func (s *Scheduler) podPlaced(old *v1.Pod, p *core.Pod) {
	known := s.cluster.Pod(p.UID)
	s.cluster.AddPod(p, p.Spec.NodeName)
	s.queue.remove(p.UID)
	delete(s.assumed, p.UID)
	delete(s.nominated, p.UID)
	switch {
	case known == nil:
		s.requeue(change{placed: true})
	case old != nil && old.Spec.NodeName != "" && podMatters(old, p.Pod):
		s.requeue(change{node: p.Spec.NodeName, placed: true})
	}
}

// podMatters reports whether a placed pod changed in a way that can let others
// in: its labels, its end, or what it holds.
func podMatters(old, now *v1.Pod) bool {
	return (old.DeletionTimestamp == nil) != (now.DeletionTimestamp == nil) ||
		!apiequality.Semantic.DeepEqual(old.Labels, now.Labels) ||
		!apiequality.Semantic.DeepEqual(old.Spec.Containers, now.Spec.Containers) ||
		!apiequality.Semantic.DeepEqual(old.Status.ContainerStatuses, now.Status.ContainerStatuses) && len(now.Status.ContainerStatuses) > 0 &&
			now.Status.ContainerStatuses[0].AllocatedResources != nil
}

// podWaits learns of a pod without a node.
func (s *Scheduler) podWaits(old *v1.Pod, p *core.Pod) {
	if s.assumed[p.UID] {
		return // its binding is under way
	}
	if p.DeletionTimestamp != nil {
		s.queue.remove(p.UID)
		delete(s.nominated, p.UID)
		return
	}
	changed := old != nil && (!apiequality.Semantic.DeepEqual(old.Spec, p.Pod.Spec) || !apiequality.Semantic.DeepEqual(old.Labels, p.Pod.Labels))
	s.queue.set(p, changed, s.cfg.Clock.Now())
	if n, ok := s.nominated[p.UID]; ok {
		n.pod = p
		s.nominated[p.UID] = n
	} else if p.Status.NominatedNodeName != "" {
		s.nominated[p.UID] = nomination{p, p.Status.NominatedNodeName}
	}
}

func (s *Scheduler) podGone(pod *v1.Pod) {
	s.locked(func() {
		s.queue.remove(pod.UID)
		delete(s.nominated, pod.UID)
		delete(s.assumed, pod.UID)
		p := s.cluster.Pod(pod.UID)
		if p == nil {
			return
		}
		node := p.Node
		s.cluster.RemovePod(p)
		s.requeue(change{node: node, placed: true})
	})
}

// change is something that happened and may let parked pods in.
type change struct {
	node     string // this node has become easier to get on
	placed   bool   // pods came, went or changed their labels
	topology bool   // nodes came, went or changed their labels
	volumes  bool   // claims, volumes or classes changed
}

// requeue gives parked pods their turn that the change may help. What depends
// on one node only is looked up: the pod stays parked unless it fits there now.
func (s *Scheduler) requeue(ch change) {
	var ready []*entry
	for _, e := range s.queue.parked.e {
		if s.helps(ch, e) {
			ready = append(ready, e)
		}
	}
	for _, e := range ready {
		s.queue.ready(e, s.cfg.Clock.Now())
	}
}

func (s *Scheduler) helps(ch change, e *entry) bool {
	global := e.rejected[core.InterPodAffinity] || e.rejected[core.PodTopologySpread]
	switch {
	case len(e.rejected) == 0: // there was no node
		return ch.node != "" && ch.topology
	case ch.volumes && e.rejected[core.VolumeBinding]:
		return true
	case global && (ch.placed || ch.topology):
		return true
	}
	return ch.node != "" && s.fitsNow(e, ch.node)
}

func (s *Scheduler) fitsNow(e *entry, node string) bool {
	return s.cluster.Fits(&core.Request{Pod: e.pod, Volumes: s.facts.volumes(e.pod.Pod)}, node)
}
