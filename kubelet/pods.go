package kubelet

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/kubelet/admit"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/static"
)

// handlers connects the informers to the workers.
func (k *Kubelet) handlers() error {
	mine := func(obj any) (*v1.Pod, bool) {
		if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = t.Obj
		}
		p, ok := obj.(*v1.Pod)
		return p, ok && p.Spec.NodeName == k.cfg.NodeName
	}
	_, err := k.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if p, ok := mine(o); ok {
				k.apiPod(p)
			}
		},
		UpdateFunc: func(_, o any) {
			if p, ok := mine(o); ok {
				k.apiPod(p)
			}
		},
		DeleteFunc: func(o any) {
			if p, ok := mine(o); ok {
				k.apiPodGone(p)
			}
		},
	})
	if err != nil {
		return err
	}
	keep := func(was, o any) {
		if n, ok := o.(*v1.Node); ok && n.Name == k.cfg.NodeName {
			k.node.Store(n)
			if old, ok := was.(*v1.Node); !ok || !slices.Equal(old.Spec.PodCIDRs, n.Spec.PodCIDRs) {
				k.kickNode() // the runtime is to be told
			}
		}
	}
	_, err = k.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { keep(nil, o) },
		UpdateFunc: keep,
		DeleteFunc: func(o any) {
			if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = t.Obj
			}
			if n, ok := o.(*v1.Node); ok && n.Name == k.cfg.NodeName {
				k.node.Store(nil)
				k.kickNode()
			}
		},
	})
	return err
}

// apiPod takes in a pod as the API has it now.
func (k *Kubelet) apiPod(pod *v1.Pod) {
	if podstate.IsMirror(pod) {
		k.statuses.kick(pod.UID)
		k.mirrorSeen(pod)
		return
	}
	if w := k.worker(pod.UID); w != nil {
		w.update(pod)
		k.statuses.kick(pod.UID)
		return
	}
	k.add(pod)
}

func (k *Kubelet) apiPodGone(pod *v1.Pod) {
	k.statuses.forget(pod.UID)
	if podstate.IsMirror(pod) {
		k.spawn(func() { k.reconcileMirrors(k.ctx) })
		return
	}
	if w := k.worker(pod.UID); w != nil {
		w.remove(pod)
	}
}

// add starts a worker for a pod not seen before by this process, after asking admission.
func (k *Kubelet) add(pod *v1.Pod) {
	w := newWorker(k, pod)
	k.mu.Lock()
	if k.closing || k.workers[pod.UID] != nil {
		k.mu.Unlock()
		return
	}
	others := k.activeLocked(nil)
	k.workers[pod.UID] = w
	k.mu.Unlock()
	if r := k.admission(pod, others); r != nil {
		w.reject(r)
	}
	k.spawn(func() { w.run(k.ctx) })
}

// activeLocked are the pods that hold resources here, without one.
func (k *Kubelet) activeLocked(without *worker) []*v1.Pod {
	var out []*v1.Pod
	for _, w := range k.workers {
		if w == without {
			continue
		}
		if p, active := w.active(); active {
			out = append(out, p)
		}
	}
	return out
}

func (k *Kubelet) admission(pod *v1.Pod, others []*v1.Pod) *admit.Rejection {
	if podstate.Terminal(pod.Status.Phase) || pod.DeletionTimestamp != nil || pod.Status.Phase == v1.PodRunning {
		return nil // it ran here before this process: it was admitted then
	}
	for i := range pod.Status.ContainerStatuses {
		if pod.Status.ContainerStatuses[i].ContainerID != "" {
			return nil
		}
	}
	n := k.node.Load()
	r := admit.Check(pod, n, others)
	if r != nil && r.Reason == "NodeAffinity" {
		// Labels may be newer at the API than here.
		ctx, cancel := context.WithTimeout(k.ctx, 5*time.Second)
		defer cancel()
		if fresh, err := k.cfg.Client.CoreV1().Nodes().Get(ctx, k.cfg.NodeName, metav1.GetOptions{}); err == nil {
			r = admit.Check(pod, fresh, others)
		}
	}
	if r != nil {
		k.recorder.Event(pod, v1.EventTypeWarning, r.Reason, r.Message)
	}
	return r
}

// runStatic keeps the set of static pods as the manifest folder has it.
func (k *Kubelet) runStatic(ctx context.Context) {
	if k.cfg.StaticPodPath == "" {
		return
	}
	src := &static.Source{Path: k.cfg.StaticPodPath, NodeName: k.cfg.NodeName, Log: k.cfg.Log,
		Update: func(pods []*v1.Pod) { k.setStatic(ctx, pods) }}
	_ = src.Run(ctx)
}

func (k *Kubelet) setStatic(ctx context.Context, pods []*v1.Pod) {
	want := map[types.UID]*v1.Pod{}
	for _, p := range pods {
		want[p.UID] = p
	}
	k.mu.Lock()
	k.read = true
	var gone, added []*v1.Pod
	for uid, p := range k.static {
		if want[uid] == nil {
			gone = append(gone, p)
		}
	}
	for uid, p := range want {
		if k.static[uid] == nil {
			added = append(added, p)
		}
	}
	for _, p := range gone {
		delete(k.static, p.UID)
	}
	for _, p := range added {
		k.static[p.UID] = p
	}
	k.mu.Unlock()
	for _, p := range gone {
		if w := k.worker(p.UID); w != nil {
			w.remove(p)
		}
	}
	sort.Slice(added, func(i, j int) bool { return added[i].Name < added[j].Name })
	for _, p := range added {
		k.addStatic(p)
	}
	k.reconcileMirrors(ctx)
}

// addStatic starts a static pod, unless one of that name is still on its way down: then its end
// starts it (see worker.finish).
func (k *Kubelet) addStatic(p *v1.Pod) {
	for _, w := range k.allWorkers() {
		if q := w.current(); q.Namespace == p.Namespace && q.Name == p.Name && podstate.IsStatic(q) {
			return
		}
	}
	k.add(p)
}

// nextStatic starts static pods that waited for an older one of their name to end.
func (k *Kubelet) nextStatic() {
	k.mu.Lock()
	var todo []*v1.Pod
	for uid, p := range k.static {
		if k.workers[uid] == nil {
			todo = append(todo, p)
		}
	}
	k.mu.Unlock()
	for _, p := range todo {
		k.addStatic(p)
	}
}

// mirror finds the API's picture of a static pod in the informer.
func (k *Kubelet) mirror(namespace, name string) *v1.Pod {
	o, ok, err := k.pods.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	p, _ := o.(*v1.Pod)
	return p
}

func (k *Kubelet) staticByName(namespace, name string) *v1.Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.static {
		if p.Namespace == namespace && p.Name == name {
			return p
		}
	}
	return nil
}

// mirrorSeen is called when a mirror appeared or changed.
func (k *Kubelet) mirrorSeen(m *v1.Pod) {
	p := k.staticByName(m.Namespace, m.Name)
	if p == nil || !static.MirrorOf(m, p) || m.DeletionTimestamp != nil {
		k.spawn(func() { k.reconcileMirrors(k.ctx) })
		return
	}
	if w := k.worker(p.UID); w != nil {
		k.statuses.set(m, w.status())
	}
}

// sourcesRead says whether every source of pods has been read once: before, a pod that is not
// wanted may only not be known yet.
func (k *Kubelet) sourcesRead() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pods.HasSynced() && (k.read || k.cfg.StaticPodPath == "")
}

// reconcileMirrors makes the mirrors at the API fit the static pods.
func (k *Kubelet) reconcileMirrors(ctx context.Context) {
	if !k.sourcesRead() {
		return
	}
	for _, o := range k.pods.GetStore().List() {
		m, ok := o.(*v1.Pod)
		if !ok || m.Spec.NodeName != k.cfg.NodeName || !podstate.IsMirror(m) {
			continue
		}
		p := k.staticByName(m.Namespace, m.Name)
		if p == nil || !static.MirrorOf(m, p) || m.DeletionTimestamp != nil {
			k.deleteMirror(ctx, m)
		}
	}
	k.mu.Lock()
	var todo []*v1.Pod
	for _, p := range k.static {
		todo = append(todo, p)
	}
	k.mu.Unlock()
	n := k.node.Load()
	if n == nil {
		return // once registered this is called again
	}
	for _, p := range todo {
		if k.mirror(p.Namespace, p.Name) != nil {
			continue
		}
		_, err := k.cfg.Client.CoreV1().Pods(p.Namespace).Create(ctx, static.Mirror(p, n), metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			k.cfg.Log.Warn("cannot create the mirror of a static pod; it is tried again", "pod", p.Namespace+"/"+p.Name, "err", err)
		}
	}
}

func (k *Kubelet) deleteMirror(ctx context.Context, m *v1.Pod) {
	zero := int64(0)
	err := k.cfg.Client.CoreV1().Pods(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero,
		Preconditions: &metav1.Preconditions{UID: &m.UID}})
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		k.cfg.Log.Warn("cannot delete a mirror pod", "pod", m.Namespace+"/"+m.Name, "err", fmt.Errorf("delete: %w", err))
	}
}
