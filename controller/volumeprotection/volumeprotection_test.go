package volumeprotection_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/volumeprotection"
)

func TestClaimStaysWhileAPodUsesIt(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "c"}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}, Spec: corev1.PodSpec{NodeName: "n",
		Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}}}
	w := enginetest.New(t, claim, pod)
	w.Build(volumeprotection.NewClaims(w.Env))
	finalizers := func() string {
		t.Helper()
		w.Settle()
		got, err := w.Client.CoreV1().PersistentVolumeClaims("a").Get(t.Context(), "c", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		claim = got.DeepCopy()
		return strings.Join(got.Finalizers, ",")
	}
	if got := finalizers(); got != "kubernetes.io/pvc-protection" {
		t.Errorf("new claim: %q", got)
	}
	at := metav1.NewTime(enginetest.Epoch)
	claim.DeletionTimestamp, claim.Finalizers = &at, append(claim.Finalizers, "example.com/other")
	w.Put(claim)
	if got := finalizers(); got != "kubernetes.io/pvc-protection,example.com/other" {
		t.Errorf("in use: %q", got)
	}
	// A Pod the cache does not know yet keeps the claim as well.
	late := pod.DeepCopy()
	late.Name = "late"
	w.Remove(pod)
	w.Put(late)
	w.Observe()
	if got := finalizers(); got != "kubernetes.io/pvc-protection,example.com/other" {
		t.Errorf("in use by another: %q", got)
	}
	w.Remove(late)
	if got := finalizers(); got != "example.com/other" {
		t.Errorf("free: %q", got)
	}
}

func TestVolumeStaysWhileBound(t *testing.T) {
	at := metav1.NewTime(enginetest.Epoch)
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", DeletionTimestamp: &at, Finalizers: []string{"kubernetes.io/pv-protection"}},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}
	w := enginetest.New(t, pv)
	w.Build(volumeprotection.NewVolumes(w.Env)).Settle()
	if writes := w.Writes(); len(writes) > 0 {
		t.Errorf("bound volume written: %v", writes)
	}
	pv = pv.DeepCopy()
	pv.Status.Phase = corev1.VolumeReleased
	w.Put(pv)
	w.Settle()
	got, err := w.Client.CoreV1().PersistentVolumes().Get(t.Context(), "v", metav1.GetOptions{})
	if err != nil || len(got.Finalizers) > 0 {
		t.Errorf("released: %v %v", got.Finalizers, err)
	}
}

func TestClassStaysWhileAsked(t *testing.T) {
	at, gold := metav1.NewTime(enginetest.Epoch), "gold"
	class := &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: gold, DeletionTimestamp: &at, Finalizers: []string{"kubernetes.io/vac-protection"}}}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "c"}}
	claim.Status.ModifyVolumeStatus = &corev1.ModifyVolumeStatus{TargetVolumeAttributesClassName: gold}
	w := enginetest.New(t, class, claim)
	w.Build(volumeprotection.NewClasses(w.Env)).Settle()
	if writes := w.Writes(); len(writes) > 0 {
		t.Errorf("class in use written: %v", writes)
	}
	w.Remove(claim)
	w.Settle()
	got, err := w.Client.StorageV1().VolumeAttributesClasses().Get(t.Context(), gold, metav1.GetOptions{})
	if err != nil || len(got.Finalizers) > 0 {
		t.Errorf("free class: %v %v", got.Finalizers, err)
	}
}
