// Package cgroup keeps the control groups of pods: <root>/kubepods/<qos>/pod<uid>, on the v1 and
// v2 hierarchies, by github.com/opencontainers/cgroups. Containers live in children the runtime makes.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kubectl/pkg/util/qos"

	"github.com/skiff-project/skiff/kubelet/cri"
)

// Tree makes and removes pod cgroups under one root. Without write access to cgroups it degrades:
// Problem says why, pods run without their own group.
type Tree struct {
	root    string
	problem error
	once    sync.Mutex
	made    map[string]bool // QoS groups made by this process
}

// New makes the kubepods tree under root (default "/"; a cgroup path, not a file path).
func New(root string) *Tree {
	if root == "" {
		root = "/"
	}
	t := &Tree{root: path.Join("/", root, "kubepods"), made: map[string]bool{}}
	for _, sub := range []string{"", "burstable", "besteffort"} {
		if t.problem = t.ensureQOS(path.Join(t.root, sub)); t.problem != nil {
			break
		}
	}
	return t
}

// Problem is why cgroups cannot be used here, or nil.
func (t *Tree) Problem() error {
	if t == nil {
		return nil
	}
	return t.problem
}

// Unified says whether the node uses the v2 hierarchy.
func Unified() bool { return cgroups.IsCgroup2UnifiedMode() }

func (t *Tree) ensureQOS(p string) error {
	t.once.Lock()
	defer t.once.Unlock()
	if t.made[p] {
		return nil
	}
	r := &cgroups.Resources{SkipDevices: true}
	if strings.HasSuffix(p, "besteffort") {
		r.CpuShares = 2
		if Unified() {
			r.CpuWeight = 1
		}
	}
	if err := apply(p, r); err != nil {
		return fmt.Errorf("make cgroup %s: %w", p, err)
	}
	t.made[p] = true
	return nil
}

// Parent is the cgroup of a pod, as the runtime's cgroup parent; "" if there are none here.
func (t *Tree) Parent(pod *v1.Pod) string {
	if t == nil || t.problem != nil {
		return ""
	}
	switch qos.GetPodQOS(pod) {
	case v1.PodQOSBurstable:
		return path.Join(t.root, "burstable", "pod"+string(pod.UID))
	case v1.PodQOSBestEffort:
		return path.Join(t.root, "besteffort", "pod"+string(pod.UID))
	}
	return path.Join(t.root, "pod"+string(pod.UID))
}

// Resources are the settings of a pod's cgroup: shares always; quota and memory limit when every
// container has one (a missing one means unlimited).
func Resources(pod *v1.Pod) *cgroups.Resources {
	opts := resourcehelper.PodResourcesOptions{}
	requests, limits := resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts)
	r := &cgroups.Resources{SkipDevices: true}
	r.CpuShares = uint64(cri.Shares(requests.Cpu().MilliValue()))
	if Unified() {
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(r.CpuShares)
	}
	cpuAll, memAll := true, true
	for i := range pod.Spec.Containers {
		cpuAll = cpuAll && !pod.Spec.Containers[i].Resources.Limits.Cpu().IsZero()
		memAll = memAll && !pod.Spec.Containers[i].Resources.Limits.Memory().IsZero()
	}
	if l := pod.Spec.Resources; l != nil {
		cpuAll = cpuAll || !l.Limits.Cpu().IsZero()
		memAll = memAll || !l.Limits.Memory().IsZero()
	}
	if cpuAll && qos.GetPodQOS(pod) != v1.PodQOSBestEffort {
		r.CpuPeriod, r.CpuQuota = cri.QuotaPeriod, cri.Quota(limits.Cpu().MilliValue())
	}
	if memAll && qos.GetPodQOS(pod) != v1.PodQOSBestEffort {
		r.Memory = limits.Memory().Value()
	}
	return r
}

// Ensure makes the pod's cgroup or updates its settings.
func (t *Tree) Ensure(pod *v1.Pod) error {
	if t == nil || t.problem != nil {
		return nil
	}
	p := t.Parent(pod)
	if err := t.ensureQOS(path.Dir(p)); err != nil {
		return err
	}
	if err := apply(p, Resources(pod)); err != nil {
		return fmt.Errorf("make cgroup %s: %w", p, err)
	}
	return nil
}

// Grow gives the pod's cgroup room for both was and now, two sets of resources of one pod: its
// containers go from one to the other inside it before Ensure shrinks it.
func (t *Tree) Grow(was, now *v1.Pod) error {
	if t == nil || t.problem != nil {
		return nil
	}
	if err := apply(t.Parent(now), wider(Resources(was), Resources(now))); err != nil {
		return fmt.Errorf("widen cgroup %s: %w", t.Parent(now), err)
	}
	return nil
}

// wider is the looser of two settings in each field; a limit of 0 is none.
func wider(a, b *cgroups.Resources) *cgroups.Resources {
	out := *b
	out.CpuShares, out.CpuWeight = max(a.CpuShares, b.CpuShares), max(a.CpuWeight, b.CpuWeight)
	out.Memory = max(a.Memory, b.Memory)
	if a.Memory == 0 || b.Memory == 0 {
		out.Memory = 0
	}
	out.CpuQuota = max(a.CpuQuota, b.CpuQuota)
	if a.CpuQuota == 0 || b.CpuQuota == 0 {
		out.CpuQuota, out.CpuPeriod = 0, 0
	}
	return &out
}

func apply(p string, r *cgroups.Resources) error {
	m, err := manager.New(&cgroups.Cgroup{Path: p, Resources: r})
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return err
	}
	return m.Set(r)
}

// Remove deletes the pod's cgroup, wherever its class put it, with what is left below it. Processes
// still inside are an error.
func (t *Tree) Remove(uid types.UID) error {
	if t == nil || t.problem != nil {
		return nil
	}
	var errs []error
	for _, sub := range []string{"", "burstable", "besteffort"} {
		p := path.Join(t.root, sub, "pod"+string(uid))
		for _, dir := range t.dirs(p) {
			errs = append(errs, removeTree(dir))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup of pod %s: %w", uid, err)
	}
	return nil
}

// dirs are the file paths of a cgroup in every hierarchy where it exists.
func (t *Tree) dirs(p string) []string {
	var out []string
	if Unified() {
		out = append(out, filepath.Join("/sys/fs/cgroup", p))
	} else {
		entries, _ := os.ReadDir("/sys/fs/cgroup")
		for _, e := range entries {
			if e.Type()&os.ModeSymlink == 0 && e.IsDir() {
				out = append(out, filepath.Join("/sys/fs/cgroup", e.Name(), p))
			}
		}
	}
	have := out[:0]
	for _, d := range out {
		if _, err := os.Stat(d); err == nil {
			have = append(have, d)
		}
	}
	return have
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// Pods lists the UIDs that have a cgroup here.
func (t *Tree) Pods() []types.UID {
	if t == nil || t.problem != nil {
		return nil
	}
	seen := map[types.UID]bool{}
	for _, sub := range []string{"", "burstable", "besteffort"} {
		for _, dir := range t.dirs(path.Join(t.root, sub)) {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if uid, ok := strings.CutPrefix(e.Name(), "pod"); ok && e.IsDir() {
					seen[types.UID(uid)] = true
				}
			}
		}
	}
	var out []types.UID
	for uid := range seen {
		out = append(out, uid)
	}
	return out
}

// Close removes the kubepods tree if no pod is left in it.
func (t *Tree) Close() {
	if t == nil || t.problem != nil {
		return
	}
	for _, sub := range []string{"burstable", "besteffort", ""} {
		for _, dir := range t.dirs(path.Join(t.root, sub)) {
			_ = os.Remove(dir)
		}
	}
}

// None is a tree that makes no cgroups and has no problem with that.
func None() *Tree { return nil }
