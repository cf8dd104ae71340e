package volumebinding_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/volumebinding"
)

func volume(name, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}, Spec: corev1.PersistentVolumeSpec{
		Capacity: corev1.ResourceList{"storage": resource.MustParse(size)}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/data"}},
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable}}
	for _, f := range change {
		f(v)
	}
	return v
}

func claim(name, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse(size)}}}}
	for _, f := range change {
		f(c)
	}
	return c
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode, annotations ...string) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}, Provisioner: provisioner, VolumeBindingMode: &mode}
	for _, a := range annotations {
		c.Annotations[a] = "true"
	}
	return c
}

func inClass(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &name }
}

func ofClass(name string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = name }
}

func meantFor(name string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name}
	}
}

func wants(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(volumebinding.New(w.Env)).Settle()
}

// state is every claim with its volume, then every volume with its claim: "c:Bound=v v:Bound=c".
func state(t *testing.T, w *enginetest.World) string {
	t.Helper()
	claims, err := w.Client.CoreV1().PersistentVolumeClaims("ns").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	volumes, err := w.Client.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range claims.Items {
		size := c.Status.Capacity["storage"]
		if (c.Status.Phase == corev1.ClaimBound) == size.IsZero() {
			t.Errorf("claim %s is %s and has %s", c.Name, c.Status.Phase, size.String())
		}
		out = append(out, fmt.Sprintf("%s:%s=%s", c.Name, c.Status.Phase, c.Spec.VolumeName))
	}
	for _, v := range volumes.Items {
		ref := ""
		if r := v.Spec.ClaimRef; r != nil {
			ref = r.Name
			if r.UID != types.UID("uid-"+r.Name) {
				ref += "?"
			}
		}
		out = append(out, fmt.Sprintf("%s:%s=%s", v.Name, v.Status.Phase, ref))
	}
	return strings.Join(out, " ")
}

func expect(t *testing.T, w *enginetest.World, want string) {
	t.Helper()
	if got := state(t, w); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestBinding(t *testing.T) {
	const immediate, waits = storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer
	for _, tt := range []struct {
		name    string
		objects []runtime.Object
		want    string
	}{
		{"the smallest that is large enough", []runtime.Object{claim("c", "2Gi"), volume("v1", "1Gi"), volume("v5", "5Gi"), volume("v3", "3Gi")},
			"c:Bound=v3 v1:Available= v3:Bound=c v5:Available="},
		{"a new volume becomes available first", []runtime.Object{claim("c", "1Gi"), volume("v", "1Gi", func(v *corev1.PersistentVolume) { v.Status.Phase = "" })},
			"c:Bound=v v:Bound=c"},
		{"two claims, one volume", []runtime.Object{claim("c1", "1Gi"), claim("c2", "1Gi"), volume("v", "1Gi")},
			"c1:Bound=v c2:Pending= v:Bound=c1"},
		{"another class", []runtime.Object{claim("c", "1Gi", inClass("")), volume("v", "1Gi", ofClass("fast"))}, "c:Pending= v:Available="},
		{"another access mode", []runtime.Object{claim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}), volume("v", "1Gi")}, "c:Pending= v:Available="},
		{"a selector", []runtime.Object{claim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}), volume("v1", "1Gi"), volume("v2", "2Gi", func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"a": "b"} })},
			"c:Bound=v2 v1:Available= v2:Bound=c"},
		{"the volume a person meant for it", []runtime.Object{claim("c", "1Gi"), volume("v1", "1Gi"), volume("v9", "9Gi", meantFor("c"))},
			"c:Bound=v9 v1:Available= v9:Bound=c"},
		{"the volume it names", []runtime.Object{claim("c", "1Gi", wants("v9")), volume("v1", "1Gi"), volume("v9", "9Gi")},
			"c:Bound=v9 v1:Available= v9:Bound=c"},
		{"it names one that is too small", []runtime.Object{claim("c", "2Gi", wants("v1")), volume("v1", "1Gi")}, "c:Pending=v1 v1:Available="},
		{"it names one that is another's", []runtime.Object{claim("c", "1Gi", wants("v1")), volume("v1", "1Gi", meantFor("d"))}, "c:Pending=v1 v1:Available=d?"},
		{"it names none there is", []runtime.Object{claim("c", "1Gi", wants("v1"))}, "c:Pending=v1"},
		{"its class waits for a pod", []runtime.Object{class("late", "kubernetes.io/no-provisioner", waits), claim("c", "1Gi", inClass("late")),
			volume("v", "1Gi", ofClass("late"))}, "c:Pending= v:Available="},
		{"its class waits, the scheduler chose", []runtime.Object{class("late", "kubernetes.io/no-provisioner", waits), claim("c", "1Gi", inClass("late")),
			volume("v", "1Gi", ofClass("late"), meantFor("c"))}, "c:Bound=v v:Bound=c"},
		{"the default class comes to it", []runtime.Object{class("std", "example.com/p", immediate, "storageclass.kubernetes.io/is-default-class"),
			claim("c", "1Gi"), volume("v", "1Gi", ofClass("std"))}, "c:Bound=v v:Bound=c"},
	} {
		t.Run(tt.name, func(t *testing.T) { expect(t, world(t, tt.objects...).Step(time.Second).Settle(), tt.want) })
	}
}

// The second claim's reconcile does not see yet that the volume is gone; it looks again.
func TestCachesLag(t *testing.T) {
	w := world(t, claim("c1", "1Gi"), claim("c2", "1Gi"), volume("v1", "1Gi"), volume("v2", "2Gi"))
	w.Step(time.Second).Settle()
	expect(t, w, "c1:Bound=v1 c2:Bound=v2 v1:Bound=c1 v2:Bound=c2")
}

func TestAProvisionerIsTold(t *testing.T) {
	w := world(t, class("std", "example.com/p", storagev1.VolumeBindingImmediate), claim("c", "1Gi", inClass("std")), claim("gone", "1Gi", inClass("nowhere")))
	c, err := w.Client.CoreV1().PersistentVolumeClaims("ns").Get(t.Context(), "c", metav1.GetOptions{})
	if err != nil || c.Annotations["volume.kubernetes.io/storage-provisioner"] != "example.com/p" {
		t.Fatalf("%v %v", err, c.Annotations)
	}
	events := strings.Join(w.Events(), "\n")
	for _, want := range []string{"Normal ExternalProvisioning Waiting for a volume to be created either by the external provisioner 'example.com/p'",
		`Warning ProvisioningFailed storageclass.storage.k8s.io "nowhere" not found`} {
		if !strings.Contains(events, want) {
			t.Errorf("no event %q in:\n%s", want, events)
		}
	}
	w.Put(volume("pvc-1", "1Gi", ofClass("std"), meantFor("c")))
	w.Settle()
	expect(t, w, "c:Bound=pvc-1 gone:Pending= pvc-1:Bound=c")
}

func TestAClaimGoes(t *testing.T) {
	policy := func(p corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = p }
	}
	provisioned := func(v *corev1.PersistentVolume) {
		v.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "example.com/p"}
	}
	for _, tt := range []struct {
		change []func(*corev1.PersistentVolume)
		want   string
	}{
		{nil, "v:Released=c"},
		{[]func(*corev1.PersistentVolume){policy(corev1.PersistentVolumeReclaimDelete)}, "v:Failed=c"},
		{[]func(*corev1.PersistentVolume){policy(corev1.PersistentVolumeReclaimRecycle)}, "v:Failed=c"},
		{[]func(*corev1.PersistentVolume){policy(corev1.PersistentVolumeReclaimDelete), provisioned}, "v:Released=c"},
	} {
		w := world(t, claim("c", "1Gi"), volume("v", "1Gi", tt.change...))
		expect(t, w, "c:Bound=v v:Bound=c")
		if err := w.Client.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.Settle()
		expect(t, w, tt.want)
	}
}

func TestAVolumeGoes(t *testing.T) {
	w := world(t, claim("c", "1Gi"), volume("v", "1Gi"))
	if err := w.Client.CoreV1().PersistentVolumes().Delete(t.Context(), "v", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Settle()
	expect(t, w, "c:Lost=v")
	if !slices.ContainsFunc(w.Events(), func(e string) bool { return strings.Contains(e, "ClaimLost") }) {
		t.Error("no event says so")
	}
}

// A binding that ended after its first write is finished; a claim that has another volume by then
// gives the second one back.
func TestInterruptedBindings(t *testing.T) {
	bound := func(uid string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: "c", UID: types.UID(uid)}
			v.Annotations = map[string]string{"pv.kubernetes.io/bound-by-controller": "yes"}
		}
	}
	expect(t, world(t, claim("c", "1Gi"), volume("v", "5Gi", bound("uid-c")), volume("w", "1Gi")), "c:Bound=v v:Bound=c w:Available=")
	expect(t, world(t, claim("c", "1Gi", wants("w")), volume("v", "5Gi", bound("uid-c")), volume("w", "1Gi")), "c:Bound=w v:Available= w:Bound=c")
	expect(t, world(t, claim("c", "1Gi"), volume("v", "1Gi", bound("uid-before"))), "c:Pending= v:Released=c?")
}
