package cached

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

var rewrite = flag.Bool("rewrite", false, "write what is kept to testdata")

// TestKept lists what is kept of a pod with every field set and what is not.
// That this is enough is for the tests of those who read it: the worlds of the
// controllers' and the scheduler's tests keep pods in the same way.
func TestKept(t *testing.T) {
	whole := &corev1.Pod{}
	fill(reflect.ValueOf(whole).Elem(), 0)
	kept := keep(t, New("another node"), whole.DeepCopy())
	var b strings.Builder
	for _, part := range []string{"ObjectMeta", "Spec", "Status"} {
		compare(&b, strings.ToLower(part), reflect.ValueOf(whole).Elem().FieldByName(part), reflect.ValueOf(kept).Elem().FieldByName(part))
	}
	if *rewrite {
		if err := os.WriteFile("testdata/pod.txt", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/pod.txt")
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("other fields are kept; if that is meant, run with -rewrite and read the difference:\n%s", b.String())
	}
}

// compare writes which parts of whole are in kept: a part that is there whole,
// or not at all, is one line.
func compare(b *strings.Builder, path string, whole, kept reflect.Value) {
	switch {
	case reflect.DeepEqual(whole.Interface(), kept.Interface()):
		fmt.Fprintln(b, "keeps", path)
	case kept.IsZero():
		fmt.Fprintln(b, "drops", path)
	case whole.Kind() == reflect.Slice && whole.Len() == kept.Len():
		compare(b, path+"[]", whole.Index(0), kept.Index(0))
	case whole.Kind() == reflect.Struct:
		for i := range whole.NumField() {
			name, _, _ := strings.Cut(whole.Type().Field(i).Tag.Get("json"), ",")
			compare(b, path+"."+name, whole.Field(i), kept.Field(i))
		}
	default:
		fmt.Fprintln(b, "changes", path)
	}
}

// fill sets every field, lists and maps to one element.
func fill(v reflect.Value, depth int) {
	switch v.Interface().(type) {
	case metav1.Time:
		v.Set(reflect.ValueOf(metav1.Unix(1e9, 0)))
		return
	case resource.Quantity:
		v.Set(reflect.ValueOf(resource.MustParse("3")))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(elem, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, elem)
	case reflect.String:
		v.SetString(fmt.Sprint("text ", depth))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	default:
		v.SetInt(1)
	}
}

func keep(t testing.TB, k *Keeper, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, err := k.Transform(pod)
	if err != nil {
		t.Fatal(err)
	}
	return out.(*corev1.Pod)
}

// replica is a pod of a ReplicaSet on a node, as the API server sends it.
func replica(i int) *corev1.Pod {
	always, seconds, at := true, int64(300), metav1.Unix(1e9+int64(i), 0)
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz"}}, PeriodSeconds: 10}
	token := fmt.Sprintf("kube-api-access-%05d", i)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("web-%05d", i), GenerateName: "web-", Namespace: "default", UID: types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)),
			ResourceVersion: fmt.Sprint(1000 + i), Generation: 1, CreationTimestamp: at,
			Labels: map[string]string{"app": "web", "tier": "frontend", "pod-template-hash": "667f56bf75"}, Annotations: map[string]string{"example.com/owner": "team-web"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "owner", Controller: &always, BlockOwnerDeletion: &always}},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "m", FieldsV1: &metav1.FieldsV1{Raw: []byte(strings.Repeat(`{"f:x":{}}`, 100))}}},
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example.com/web:v1", Args: []string{"--port=8080"}, Env: []corev1.EnvVar{{Name: "MODE", Value: "production"}},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}, LivenessProbe: probe, ReadinessProbe: probe,
				Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")}},
				VolumeMounts: []corev1.VolumeMount{{Name: token, MountPath: "/var/run/secrets"}},
			}},
			Volumes:     []corev1.Volume{{Name: token, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}}},
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &seconds}},
			NodeName:    fmt.Sprintf("node-%d", i%100), SchedulerName: "default-scheduler", RestartPolicy: corev1.RestartPolicyAlways,
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &at, HostIP: "192.0.2.1", HostIPs: []corev1.HostIP{{IP: "192.0.2.1"}}, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}},
	}
	for _, c := range []corev1.PodConditionType{"PodScheduled", "Initialized", "ContainersReady", "Ready"} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: at})
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "web", Image: "registry.example.com/web:v1", ImageID: "sha256:" + strings.Repeat("0", 64), ContainerID: fmt.Sprintf("skiff://%064d", i),
		Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}},
	}}
	return p
}

// TestShared: replicas have what they have in common once; each has its own
// name, node and status, and none changes another.
func TestShared(t *testing.T) {
	k := New("")
	a, b := keep(t, k, replica(1)), keep(t, k, replica(2))
	if &a.Spec.Containers[0] != &b.Spec.Containers[0] || &a.OwnerReferences[0] != &b.OwnerReferences[0] ||
		reflect.ValueOf(a.Labels).Pointer() != reflect.ValueOf(b.Labels).Pointer() {
		t.Error("two replicas have their containers, owners and labels twice")
	}
	if a.Name != "web-00001" || b.Name != "web-00002" || a.UID == b.UID || a.Spec.NodeName != "node-1" || b.Spec.NodeName != "node-2" ||
		a.Status.ContainerStatuses[0].ContainerID == b.Status.ContainerStatuses[0].ContainerID || a.CreationTimestamp == b.CreationTimestamp {
		t.Errorf("what is each one's own is mixed up: %v and %v", a, b)
	}
	changed := replica(1)
	changed.Spec.Containers[0].Image, changed.Labels["app"] = "other", "other"
	c := keep(t, k, changed)
	if a.Spec.Containers[0].Image == "other" || a.Labels["app"] != "web" || c.Spec.Containers[0].Image != "other" || c.Labels["app"] != "other" {
		t.Error("a changed pod shares what changed")
	}
	if again := keep(t, k, a.DeepCopy()); !reflect.DeepEqual(again, a) {
		t.Errorf("keeping what is kept changes it:\n%v\n%v", a, again)
	}
}

// TestVolumes: of volumes only those are kept that somebody looks for.
func TestVolumes(t *testing.T) {
	claim := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-0"}}
	p := keep(t, New(""), &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}},
		{Name: "data", VolumeSource: claim},
		{Name: "tmp", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		{Name: "bin", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "tools:v1"}}},
	}}})
	var names []string
	for _, v := range p.Spec.Volumes {
		names = append(names, v.Name)
	}
	if got := strings.Join(names, " "); got != "data tmp bin" {
		t.Errorf("kept volumes %s, want data tmp bin", got)
	}
}

// TestWhole: the pods of the process's own node are for its kubelet, and other
// kinds lose nothing but who manages which field.
func TestWhole(t *testing.T) {
	k, p := New("node-7"), replica(7)
	want := p.DeepCopy()
	want.ManagedFields = nil
	if got := keep(t, k, p); !reflect.DeepEqual(got, want) {
		t.Errorf("a pod of the own node lost something:\n%v\n%v", got, want)
	}
	if got := keep(t, k, replica(8)); got.Spec.Containers[0].Env != nil {
		t.Error("a pod of another node is whole")
	}
	tomb := cache.DeletedFinalStateUnknown{Key: "default/a", Obj: p}
	if got, err := k.Transform(tomb); err != nil || !reflect.DeepEqual(got, tomb) {
		t.Errorf("what an informer says of a missed deletion becomes %v, %v", got, err)
	}
	configMap := &corev1.ConfigMap{ObjectMeta: want.ObjectMeta, Data: map[string]string{"a": "b"}}
	configMap.ManagedFields = replica(1).ManagedFields
	if got, err := k.Transform(configMap); err != nil || configMap.ManagedFields != nil || len(got.(*corev1.ConfigMap).Data) != 1 {
		t.Errorf("a ConfigMap becomes %v, %v", got, err)
	}
}

// TestBounds: pods that have nothing in common do not fill the tables.
func TestBounds(t *testing.T) {
	k := New("")
	for i := range 3 * maxShared {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"i": fmt.Sprint(i)}}, Spec: corev1.PodSpec{NodeName: fmt.Sprint(i), Subdomain: fmt.Sprint(i)}}
		if p = keep(t, k, p); p.Labels["i"] != fmt.Sprint(i) || p.Spec.Subdomain != fmt.Sprint(i) || p.Spec.NodeName != fmt.Sprint(i) {
			t.Fatalf("pod %d became another's: %v", i, p)
		}
	}
	for what, n := range map[string]int{"metadata": len(k.metas), "specs": len(k.specs), "words": len(k.words)} {
		if n > maxShared {
			t.Errorf("%d %s are held, want at most %d", n, what, maxShared)
		}
	}
}

// BenchmarkDecode is what an informer does with each pod it hears of.
func BenchmarkDecode(b *testing.B) {
	data, err := replica(1).Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for name, keeps := range map[string]bool{"whole": false, "kept": true} {
		b.Run(name, func(b *testing.B) {
			k := New("")
			b.ReportAllocs()
			for range b.N {
				p := &corev1.Pod{}
				if err := p.Unmarshal(data); err != nil {
					b.Fatal(err)
				}
				if keeps {
					keep(b, k, p)
				}
			}
		})
	}
}
