package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func limited(cpu, memory string) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
	p.UID = "u-1"
	l := v1.ResourceList{}
	if cpu != "" {
		l[v1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[v1.ResourceMemory] = resource.MustParse(memory)
	}
	p.Spec.Containers[0].Resources = v1.ResourceRequirements{Limits: l, Requests: l}
	return p
}

func TestResources(t *testing.T) {
	for name, c := range map[string]struct {
		pod                   *v1.Pod
		shares, quota, memory int64
	}{
		"guaranteed":  {limited("500m", "64Mi"), 512, 50000, 64 << 20},
		"cpu only":    {limited("1", ""), 1024, 100000, 0},
		"best effort": {limited("", ""), 2, 0, 0},
	} {
		r := Resources(c.pod)
		if int64(r.CpuShares) != c.shares || r.CpuQuota != c.quota || r.Memory != c.memory {
			t.Errorf("%s: shares %d quota %d memory %d", name, r.CpuShares, r.CpuQuota, r.Memory)
		}
	}
}

func TestGroupsComeAndGo(t *testing.T) {
	root := fmt.Sprintf("/skiff-kubelet-test-%d", os.Getpid())
	tree := New(root)
	if err := tree.Problem(); err != nil {
		t.Skipf("no write access to cgroups here: %v", err)
	}
	t.Cleanup(func() {
		tree.Close()
		for _, d := range tree.dirs(root) {
			_ = os.Remove(d)
		}
	})
	p := limited("500m", "64Mi")
	if err := tree.Ensure(p); err != nil {
		t.Fatal(err)
	}
	dirs := tree.dirs(tree.Parent(p))
	if len(dirs) == 0 || !strings.HasSuffix(dirs[0], "/kubepods/podu-1") {
		t.Fatalf("the pod's group: %v", dirs)
	}
	if err := os.Mkdir(filepath.Join(dirs[0], "left-over"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := tree.Pods(); len(got) != 1 || got[0] != "u-1" {
		t.Errorf("pods %v", got)
	}
	if err := tree.Remove("u-1"); err != nil {
		t.Fatal(err)
	}
	if got := tree.Pods(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestWiderHoldsBothSides(t *testing.T) {
	small, large, none := Resources(limited("100m", "1Mi")), Resources(limited("200m", "2Mi")), Resources(limited("", ""))
	for _, r := range []*cgroups.Resources{wider(small, large), wider(large, small)} {
		if r.CpuShares != large.CpuShares || r.CpuQuota != large.CpuQuota || r.Memory != large.Memory {
			t.Errorf("not the larger of each: %+v", r)
		}
	}
	if r := wider(none, small); r.Memory != 0 || r.CpuQuota != 0 {
		t.Errorf("a first limit applies before the containers are inside it: %+v", r)
	}
}
