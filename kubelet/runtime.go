package kubelet

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/kubelet/cri"
)

// pollWithoutEvents is how often the runtime is asked when it delivers no container events.
const pollWithoutEvents = time.Second

// watchRuntime turns container events into wake-ups of workers. While the runtime delivers them,
// everything is listed only once in RelistPeriod, as a safety net; otherwise every second.
func (k *Kubelet) watchRuntime(ctx context.Context) {
	ch := make(chan *runtimeapi.ContainerEventResponse, 1024)
	k.spawn(func() { k.streamEvents(ctx, ch) })
	seen := map[string]string{}
	for {
		period := k.cfg.RelistPeriod
		if !k.events.Load() {
			period = pollWithoutEvents
		}
		t := k.cfg.Clock.NewTimer(period)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case ev := <-ch:
			k.runtimeEvent(ev)
		case <-t.C():
			k.relist(ctx, seen)
		}
		t.Stop()
	}
}

func (k *Kubelet) streamEvents(ctx context.Context, ch chan *runtimeapi.ContainerEventResponse) {
	wait := time.Second
	for ctx.Err() == nil {
		k.events.Store(true)
		begin := k.cfg.Clock.Now()
		err := k.cfg.Runtime.GetContainerEvents(ctx, ch, func(runtimeapi.RuntimeService_GetContainerEventsClient) {
			k.events.Store(true)
		})
		k.events.Store(false)
		if ctx.Err() != nil {
			return
		}
		if k.cfg.Clock.Since(begin) > time.Minute {
			wait = time.Second
		}
		k.cfg.Log.Warn("the runtime delivers no container events; polling meanwhile", "err", err)
		k.kickNode()
		for _, w := range k.allWorkers() {
			w.runtimeChanged()
		}
		k.sleep(ctx, wait)
		wait = min(wait*2, time.Minute)
	}
}

func (k *Kubelet) runtimeEvent(ev *runtimeapi.ContainerEventResponse) {
	uid := ev.GetPodSandboxStatus().GetMetadata().GetUid()
	if uid == "" && len(ev.GetContainersStatuses()) > 0 {
		uid = ev.GetContainersStatuses()[0].GetLabels()[cri.LabelPodUID]
	}
	if w := k.worker(types.UID(uid)); w != nil {
		w.runtimeChanged()
	} else if uid == "" {
		for _, w := range k.allWorkers() {
			w.runtimeChanged()
		}
	}
}

// relist compares the runtime's lists with those of last time and wakes the pods that differ.
func (k *Kubelet) relist(ctx context.Context, seen map[string]string) {
	containers, err := k.cfg.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return // reported by the node's status
	}
	sandboxes, err := k.cfg.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return
	}
	now := map[string]string{}
	uids := map[string]string{}
	for _, c := range containers {
		now[c.Id], uids[c.Id] = c.State.String(), c.Labels[cri.LabelPodUID]
	}
	for _, s := range sandboxes {
		now[s.Id], uids[s.Id] = s.State.String(), s.GetMetadata().GetUid()
	}
	changed := map[types.UID]bool{}
	for id, state := range now {
		if seen[id] != state {
			changed[types.UID(uids[id])] = true
		}
	}
	lost := false
	for id := range seen {
		if _, ok := now[id]; !ok {
			lost = true
		}
	}
	clear(seen)
	for id, state := range now {
		seen[id] = state
	}
	for _, w := range k.allWorkers() {
		if lost || changed[w.uid] {
			w.runtimeChanged()
		}
	}
}

// adoptOrphans starts workers for pods that have sandboxes here but are wanted by nobody: they are
// stopped with their grace period and removed.
func (k *Kubelet) adoptOrphans(ctx context.Context) {
	if !k.sourcesRead() {
		return
	}
	sandboxes, err := k.cfg.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return
	}
	for _, s := range sandboxes {
		uid := types.UID(s.GetMetadata().GetUid())
		if uid == "" || s.Labels[cri.LabelPodUID] == "" || k.worker(uid) != nil || k.wanted(uid) {
			continue
		}
		anns := map[string]map[string]string{}
		list, err := k.cfg.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: map[string]string{cri.LabelPodUID: string(uid)}})
		if err != nil {
			return
		}
		for _, c := range list {
			anns[c.Labels[cri.LabelContainerName]] = c.Annotations
		}
		pod := cri.RestoredPod(s.Labels, anns)
		t := metav1.NewTime(k.cfg.Clock.Now())
		pod.DeletionTimestamp = &t
		pod.Spec.NodeName = k.cfg.NodeName
		w := newWorker(k, pod)
		w.removed = true
		k.mu.Lock()
		if k.closing || k.workers[uid] != nil {
			k.mu.Unlock()
			continue
		}
		k.workers[uid] = w
		k.mu.Unlock()
		k.spawn(func() { w.run(ctx) })
	}
}

// wanted says whether the API or a file still has a pod of that UID here.
func (k *Kubelet) wanted(uid types.UID) bool {
	k.mu.Lock()
	_, static := k.static[uid]
	k.mu.Unlock()
	if static {
		return true
	}
	for _, o := range k.pods.GetStore().List() {
		if p, ok := o.(*v1.Pod); ok && p.UID == uid && p.Spec.NodeName == k.cfg.NodeName {
			return true
		}
	}
	return false
}
