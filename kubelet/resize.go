package kubelet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/kubelet/admit"
	"github.com/skiff-project/skiff/kubelet/allocation"
	"github.com/skiff-project/skiff/kubelet/cgroup"
	"github.com/skiff-project/skiff/kubelet/cri"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/podworker"
)

// resizeRetry is how soon a deferred resize is tried again when nothing else prompts it.
const resizeRetry = 3 * time.Minute

// grants is the checkpoint of a pod's resources in its folder: a restarted kubelet cannot tell from
// the API which spec it had admitted and applied.
type grants struct {
	Allocated allocation.Set `json:"allocated"`
	Actuated  allocation.Set `json:"actuated"`
}

func (w *worker) grantsFile() string {
	return filepath.Join(w.k.volumes.PodDir(string(w.uid)), "resources.json")
}

// readGrants returns nothing for a pod that is new here.
func (w *worker) readGrants() (g grants) {
	b, err := os.ReadFile(w.grantsFile())
	if err == nil {
		err = json.Unmarshal(b, &g)
	}
	if err != nil && !os.IsNotExist(err) {
		w.k.cfg.Log.Warn("cannot read which resources a pod was granted; its spec is taken for that", "pod", w.pod.Name, "err", err)
		return grants{}
	}
	return g
}

func (w *worker) writeGrants(g grants) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	path := w.grantsFile()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// keepActuated remembers what the machine has applied.
func (w *worker) keepActuated() {
	w.mu.Lock()
	g := w.grants
	w.mu.Unlock()
	a := w.machine.Actuated()
	if w.machine.Terminating() || equality.Semantic.DeepEqual(a, g.Actuated) {
		return
	}
	g.Actuated = a
	if err := w.writeGrants(g); err != nil {
		w.k.cfg.Log.Warn("cannot note which resources a pod has; a restart would not know", "pod", w.current().Name, "err", err)
	}
	w.mu.Lock()
	w.grants = g
	w.mu.Unlock()
}

// allocate grants what the spec asks for if the node has room, and returns the pod with what it has.
func (w *worker) allocate(asked *v1.Pod) (*v1.Pod, *podworker.Pending) {
	w.mu.Lock()
	g, ended := w.grants, w.final || w.removed
	w.mu.Unlock()
	pod, differs := g.Allocated.Apply(asked)
	var pending *podworker.Pending
	if differs && !ended && asked.DeletionTimestamp == nil && !w.machine.Terminating() {
		k := w.k
		k.mu.Lock() // one at a time: two pods must not get the same room
		defer k.mu.Unlock()
		if r := admit.Check(asked, k.node.Load(), k.activeLocked(w)); r != nil {
			pending = &podworker.Pending{Reason: v1.PodReasonDeferred, Message: r.Message}
		} else {
			g.Allocated = allocation.Of(asked)
			if err := w.writeGrants(g); err != nil {
				pending = &podworker.Pending{Reason: v1.PodReasonDeferred, Message: "cannot note the resize: " + err.Error()}
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits = pending != nil
	if pending == nil && !equality.Semantic.DeepEqual(g.Allocated, w.grants.Allocated) {
		w.grants, w.granted, pod = g, true, asked
	}
	return pod, pending
}

// retryResizes has deferred resizes tried again, as a pod ended or holds less.
func (k *Kubelet) retryResizes() {
	for _, w := range k.allWorkers() {
		w.mu.Lock()
		waits := w.waits
		w.mu.Unlock()
		if waits {
			w.poke()
		}
	}
}

// holdsLess says whether a pod requests less cpu or memory than an older object of it.
func holdsLess(pod, older *v1.Pod) bool {
	opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	now, was := resourcehelper.PodRequests(pod, opts), resourcehelper.PodRequests(older, opts)
	return now.Cpu().Cmp(*was.Cpu()) < 0 || now.Memory().Cmp(*was.Memory()) < 0
}

// resize applies the granted resources: the pod's cgroup grows first and shrinks last, and of the
// containers those that give up memory come first.
func (w *worker) resize(ctx context.Context) error {
	k, pod, rt := w.k, w.current(), w.runtime()
	w.mu.Lock()
	have := w.grants.Actuated
	w.mu.Unlock()
	was, _ := have.Apply(pod)
	type change struct {
		c        *v1.Container
		id       string
		from, to *runtimeapi.LinuxContainerResources
	}
	var changes []change
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			st := rt.Latest(c.Name)
			if st == nil || st.State != podstate.Running || allocation.Same(have, allocation.Of(pod), c.Name) {
				continue
			}
			changes = append(changes, change{c, st.ID, cri.ContainerResources(was, podstate.FindContainer(was, c.Name), k.memory),
				cri.ContainerResources(pod, c, k.memory)})
		}
	}
	limits := map[string]int64{} // by container, "" is the pod: memory limits that get lower
	lower := func(name string, from, to int64) {
		if to != 0 && (from == 0 || to < from) {
			limits[name] = to
		}
	}
	lower("", cgroup.Resources(was).Memory, cgroup.Resources(pod).Memory)
	for _, c := range changes {
		lower(c.c.Name, c.from.MemoryLimitInBytes, c.to.MemoryLimitInBytes)
	}
	if err := w.checkUsage(ctx, limits); err != nil {
		return err
	}
	if err := k.cgroups.Grow(was, pod); err != nil {
		return err
	}
	slices.SortStableFunc(changes, func(a, b change) int {
		return cmp.Compare(a.to.MemoryLimitInBytes-a.from.MemoryLimitInBytes, b.to.MemoryLimitInBytes-b.from.MemoryLimitInBytes)
	})
	for _, c := range changes {
		if err := k.cfg.Runtime.UpdateContainerResources(ctx, c.id, &runtimeapi.ContainerResources{Linux: c.to}); err != nil {
			return err
		}
	}
	return k.cgroups.Ensure(pod)
}

// checkUsage refuses memory limits below what is in use: the kernel would kill to enforce them.
func (w *worker) checkUsage(ctx context.Context, limits map[string]int64) error {
	if len(limits) == 0 {
		return nil
	}
	stats, err := w.k.cfg.Runtime.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{cri.LabelPodUID: string(w.uid)}})
	if err != nil {
		return fmt.Errorf("unable to read memory usage for pod %q: %w", podstate.Format(w.current()), err)
	}
	var errs []error
	total := int64(0)
	for _, s := range stats {
		name, usage := s.GetAttributes().GetLabels()[cri.LabelContainerName], int64(s.GetMemory().GetUsageBytes().GetValue())
		total += usage
		if limit, ok := limits[name]; ok && usage >= limit {
			errs = append(errs, fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", name, limit, usage))
		}
	}
	if limit, ok := limits[""]; ok && total >= limit {
		errs = append([]error{fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", limit, total)}, errs...)
	}
	if len(errs) > 0 {
		return fmt.Errorf("cannot decrease memory limits: %w", errors.Join(errs...))
	}
	return nil
}
