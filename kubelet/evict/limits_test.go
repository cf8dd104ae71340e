package evict

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestOver(t *testing.T) {
	const mi = 1 << 20
	limit := resource.MustParse("1Mi")
	volume := func(medium v1.StorageMedium) v1.Volume {
		return v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: medium, SizeLimit: &limit}}}
	}
	container := func(name string) v1.Container {
		return v1.Container{Name: name, Resources: v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceEphemeralStorage: limit}}}
	}
	critical := int32(systemCritical)
	for _, c := range []struct {
		name string
		spec v1.PodSpec
		use  Usage
		want string
	}{
		{"nothing bounded", v1.PodSpec{Containers: []v1.Container{{Name: "a"}}}, Usage{Containers: map[string]int64{"a": 9 * mi}}, ""},
		{"a volume at its limit", v1.PodSpec{Volumes: []v1.Volume{volume("")}}, Usage{Volumes: map[string]int64{"v": mi}}, ""},
		{"a volume over its limit", v1.PodSpec{Volumes: []v1.Volume{volume("")}}, Usage{Volumes: map[string]int64{"v": mi + 1}},
			`Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		{"the kernel bounds memory", v1.PodSpec{Volumes: []v1.Volume{volume(v1.StorageMediumMemory)}}, Usage{Volumes: map[string]int64{"v": 2 * mi}}, ""},
		{"a container over its limit in a pod that is not", v1.PodSpec{Containers: []v1.Container{container("a"), container("b")}},
			Usage{Containers: map[string]int64{"b": mi + 1}}, `Container b exceeded its local ephemeral storage limit "1Mi". `},
		{"the pod over the sum", v1.PodSpec{Containers: []v1.Container{container("a"), container("b")}},
			Usage{Containers: map[string]int64{"a": mi, "b": mi + 1}}, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "},
		{"volumes count for the pod", v1.PodSpec{Containers: []v1.Container{container("a")}, Volumes: []v1.Volume{{Name: "v",
			VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}}, Usage{Volumes: map[string]int64{"v": mi + 1}},
			"Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "},
		{"critical pods stay", v1.PodSpec{Priority: &critical, Volumes: []v1.Volume{volume("")}}, Usage{Volumes: map[string]int64{"v": 2 * mi}}, ""},
	} {
		pod := &v1.Pod{Spec: c.spec}
		if got := Over(pod, c.use); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
		if c.want != "" && !Limited(pod) {
			t.Errorf("%s: not measured", c.name)
		}
	}
}
