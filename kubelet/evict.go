package kubelet

import (
	"context"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/kubelet/cri"
	"github.com/skiff-project/skiff/kubelet/evict"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/podworker"
)

// enforceDisk evicts pods that use more of the disk than their limits say. Pods without such
// limits cost nothing.
func (k *Kubelet) enforceDisk(ctx context.Context) {
	for k.sleep(ctx, k.cfg.EvictionPeriod) {
		for _, w := range k.allWorkers() {
			pod, active := w.active()
			if !active || pod.DeletionTimestamp != nil || !evict.Limited(pod) {
				continue
			}
			u, err := k.diskUsage(ctx, w, pod)
			if err != nil {
				if ctx.Err() == nil {
					k.cfg.Log.Warn("cannot measure the disk a pod uses; it is tried again", "pod", podstate.Format(pod), "err", err)
				}
				continue
			}
			if message := evict.Over(pod, u); message != "" {
				w.evict(message)
			}
		}
	}
}

func (k *Kubelet) diskUsage(ctx context.Context, w *worker, pod *v1.Pod) (evict.Usage, error) {
	u := evict.Usage{Volumes: map[string]int64{}, Containers: map[string]int64{}}
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.EmptyDir != nil {
			n, err := folderSize(ctx, filepath.Join(k.volumes.PodDir(string(w.uid)), "volumes", "kubernetes.io~empty-dir", v.Name))
			if err != nil {
				return u, err
			}
			u.Volumes[v.Name] = n
		}
	}
	stats, err := k.cfg.Runtime.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{cri.LabelPodUID: string(w.uid)}})
	if err != nil {
		return u, err
	}
	for _, s := range stats {
		u.Containers[s.GetAttributes().GetLabels()[cri.LabelContainerName]] += int64(s.GetWritableLayer().GetUsedBytes().GetValue())
	}
	for i := range pod.Spec.Containers {
		name := pod.Spec.Containers[i].Name
		n, err := folderSize(ctx, filepath.Join(cri.PodLogDir(k.cfg.LogDir, pod), name))
		if err != nil {
			return u, err
		}
		u.Containers[name] += n
	}
	return u, nil
}

// folderSize is what a folder takes on the disk, in bytes; one that is not there takes nothing.
// Files that go while it counts do not count.
func folderSize(ctx context.Context, dir string) (int64, error) {
	var total int64
	linked := map[[2]uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if id := [2]uint64{st.Dev, st.Ino}; st.Nlink > 1 && !d.IsDir() {
				if linked[id] {
					return nil
				}
				linked[id] = true
			}
			total += st.Blocks * 512
		}
		return ctx.Err()
	})
	return total, err
}

// evict takes the pod down as one that failed; its object stays.
func (w *worker) evict(message string) {
	w.mu.Lock()
	first := w.evicted == ""
	w.evicted = message
	w.mu.Unlock()
	if first {
		w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: evict.Reason, Message: message})
	}
	w.poke()
}

// defaultEvictionPeriod is how often disk limits are checked.
const defaultEvictionPeriod = 10 * time.Second
