package cri

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func ptr[T any](v T) *T { return &v }

func pod() (*v1.Pod, *v1.Container) {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
	return p, &p.Spec.Containers[0]
}

// CVE-2024-40635, CVE-2023-2431: the resolved user counts, and what is not understood is refused.
func TestSecurityFailsClosed(t *testing.T) {
	for name, c := range map[string]struct {
		sc   v1.SecurityContext
		uid  *int64
		user string
		want string // part of the error; "" = accepted
	}{
		"plain":                {v1.SecurityContext{}, ptr(int64(0)), "", ""},
		"non-root, root image": {v1.SecurityContext{RunAsNonRoot: ptr(true)}, ptr(int64(0)), "", "container has runAsNonRoot and image will run as root"},
		"non-root, named user": {v1.SecurityContext{RunAsNonRoot: ptr(true)}, nil, "app", "image has non-numeric user (app), cannot verify user is non-root"},
		"non-root, huge id":    {v1.SecurityContext{RunAsNonRoot: ptr(true)}, ptr(int64(1) << 32), "", "image has an invalid user id (4294967296)"},
		"non-root, asks root":  {v1.SecurityContext{RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(0))}, nil, "", "container's runAsUser breaks non-root policy"},
		"non-root, user":       {v1.SecurityContext{RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(7))}, ptr(int64(0)), "", ""},
		"empty localhost":      {v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr("")}}, nil, "", "localhostProfile must be set"},
		"escaping localhost":   {v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr("../../x")}}, nil, "", "leaves the profile folder"},
		"unknown profile":      {v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: "Odd"}}, nil, "", `"Odd" is not understood`},
	} {
		p, ctr := pod()
		ctr.SecurityContext = &c.sc
		_, err := ContainerConfig(p, ctr, ContainerOptions{ImageUID: c.uid, ImageUser: c.user, SeccompRoot: "/seccomp"})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestSecurityContext(t *testing.T) {
	p, c := pod()
	p.Spec.ShareProcessNamespace = ptr(true)
	p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: ptr(int64(5)), FSGroup: ptr(int64(6)), SupplementalGroups: []int64{7}}
	c.SecurityContext = &v1.SecurityContext{ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
		Capabilities: &v1.Capabilities{Add: []v1.Capability{"NET_ADMIN"}, Drop: []v1.Capability{"ALL"}}, ProcMount: ptr(v1.UnmaskedProcMount)}
	cfg, err := ContainerConfig(p, c, ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sc := cfg.Linux.SecurityContext
	if sc.RunAsUser.Value != 5 || !sc.ReadonlyRootfs || !sc.NoNewPrivs || len(sc.MaskedPaths) != 0 || len(sc.SupplementalGroups) != 2 ||
		sc.Capabilities.AddCapabilities[0] != "NET_ADMIN" || sc.NamespaceOptions.Pid != runtimeapi.NamespaceMode_POD {
		t.Errorf("%v", sc)
	}
}

func TestResources(t *testing.T) {
	p, c := pod()
	c.Resources = v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1500m"), v1.ResourceMemory: resource.MustParse("64Mi")},
		Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("250m"), v1.ResourceMemory: resource.MustParse("32Mi")}}
	r := ContainerResources(p, c, 1<<30)
	if r.CpuShares != 256 || r.CpuQuota != 150000 || r.CpuPeriod != 100000 || r.MemoryLimitInBytes != 64<<20 || r.OomScoreAdj != 969 {
		t.Errorf("burstable: %v", r)
	}
	for milli, want := range map[int64][2]int64{0: {2, 0}, 1: {2, 1000}, 1000: {1024, 100000}, 1 << 30: {262144, 107374182400}} {
		if s, q := Shares(milli), Quota(milli); s != want[0] || q != want[1] {
			t.Errorf("%d milli: shares %d quota %d, want %v", milli, s, q, want)
		}
	}
	c.Resources = v1.ResourceRequirements{}
	if got := ContainerResources(p, c, 1<<30); got.OomScoreAdj != 1000 || got.CpuQuota != 0 || got.CpuShares != 2 {
		t.Errorf("best effort: %v", got)
	}
	p.Spec.Priority = ptr(int32(2000001000))
	if got := OOMScore(p, c, 1<<30); got != -997 {
		t.Errorf("critical: %d", got)
	}
}
