package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/kubelet/gc"
	"github.com/skiff-project/skiff/kubelet/logs"
	"github.com/skiff-project/skiff/kubelet/podstate"
)

// housekeep removes what nobody needs: orphaned pods, dead containers beyond the last, folders,
// logs, cgroups, and unused images when the disk fills.
func (k *Kubelet) housekeep(ctx context.Context) {
	images := &gc.Images{Service: k.cfg.Images, Runtime: k.cfg.Runtime, High: k.cfg.ImageGCHighPercent, Low: k.cfg.ImageGCLowPercent,
		MinAge: k.cfg.ImageMinAge, Clock: k.cfg.Clock}
	rotate := &logs.Rotator{MaxSize: k.cfg.LogMaxSize, MaxFiles: k.cfg.LogMaxFiles, Reopen: k.cfg.Runtime.ReopenContainerLog, Now: k.cfg.Clock.Now}
	logEvery := min(10*time.Second, k.cfg.HousekeepPeriod)
	first := true
	var last time.Time
	for {
		if k.sourcesRead() && (first || k.cfg.Clock.Since(last) >= k.cfg.HousekeepPeriod) {
			first, last = false, k.cfg.Clock.Now()
			k.adoptOrphans(ctx)
			k.reconcileMirrors(ctx)
			k.nextStatic()
			k.sweepContainers(ctx)
			k.sweepFolders()
			if err := images.Collect(ctx); err != nil && ctx.Err() == nil {
				k.cfg.Log.Warn("image garbage collection", "err", err)
				k.recorder.Event(k.nodeRef(), "Warning", "ImageGCFailed", err.Error())
			}
		}
		k.rotateLogs(ctx, rotate)
		d := logEvery
		if first {
			d = time.Second
		}
		if !k.sleep(ctx, d) {
			return
		}
	}
}

func (k *Kubelet) rotateLogs(ctx context.Context, r *logs.Rotator) {
	for _, w := range k.allWorkers() {
		for _, c := range w.runtime().Containers {
			if c.State != podstate.Running || c.LogPath == "" {
				continue
			}
			if err := r.Check(ctx, c.ID, c.LogPath); err != nil && ctx.Err() == nil {
				k.cfg.Log.Warn("cannot rotate a log", "err", err)
			}
		}
	}
}

// sweepContainers keeps, of every container, the newest dead one (for logs --previous), and of
// every pod the newest sandbox.
func (k *Kubelet) sweepContainers(ctx context.Context) {
	for _, w := range k.allWorkers() {
		rt := w.runtime()
		dead := map[string]int{}
		used := map[string]bool{}
		removed := false
		for _, c := range rt.Containers {
			if c.State != podstate.Exited {
				used[c.SandboxID] = true
				continue
			}
			if dead[c.Name]++; dead[c.Name] <= 1 {
				used[c.SandboxID] = true
				continue
			}
			if err := k.cfg.Runtime.RemoveContainer(ctx, c.ID); err == nil && c.LogPath != "" {
				removeLogs(c.LogPath)
			}
			removed = true
		}
		for i, s := range rt.Sandboxes {
			if i > 0 && !s.Ready && !used[s.ID] {
				_ = k.cfg.Runtime.RemovePodSandbox(ctx, s.ID) // next round tries again
				removed = true
			}
		}
		if removed {
			w.runtimeChanged()
		}
	}
}

func removeLogs(path string) {
	old, _ := filepath.Glob(path + ".*")
	for _, f := range append(old, path) {
		_ = os.Remove(f)
	}
}

// sweepFolders deletes folders, logs and cgroups of pods that neither run nor are wanted here.
func (k *Kubelet) sweepFolders() {
	stale := func(uid types.UID) bool { return k.worker(uid) == nil && !k.wanted(uid) }
	for _, uid := range k.volumes.Known() {
		if !stale(types.UID(uid)) {
			continue
		}
		if err := k.volumes.RemoveDir(uid); err != nil {
			k.cfg.Log.Warn("cannot remove the folder of an orphaned pod", "uid", uid, "err", err)
		}
	}
	for _, uid := range k.cgroups.Pods() {
		if stale(uid) {
			if err := k.cgroups.Remove(uid); err != nil {
				k.cfg.Log.Debug("cannot remove the cgroup of an orphaned pod", "uid", uid, "err", err)
			}
		}
	}
	entries, _ := os.ReadDir(k.cfg.LogDir)
	for _, e := range entries {
		// <namespace>_<name>_<uid>: only folders of this form are ours to delete
		parts := strings.Split(e.Name(), "_")
		if e.IsDir() && len(parts) == 3 && len(parts[2]) >= 32 && stale(types.UID(parts[2])) {
			_ = os.RemoveAll(filepath.Join(k.cfg.LogDir, e.Name()))
		}
	}
}
