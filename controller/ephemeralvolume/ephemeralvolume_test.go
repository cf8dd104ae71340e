package ephemeralvolume_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/ephemeralvolume"
)

func TestAPodsClaimComesWithIt(t *testing.T) {
	class := "fast"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid-p"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class}}}}}}}}
	plain := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "plain"}}
	w := enginetest.New(t, pod, plain)
	w.Build(ephemeralvolume.New(w.Env)).Settle()
	claims := w.Client.CoreV1().PersistentVolumeClaims("ns")
	for range 2 { // as made, and made again once it was deleted
		c, err := claims.Get(t.Context(), "p-v", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !metav1.IsControlledBy(c, pod) || c.Labels["a"] != "b" || *c.Spec.StorageClassName != "fast" {
			t.Errorf("claim %+v", c)
		}
		if err := claims.Delete(t.Context(), "p-v", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.Settle()
	}
}

func TestAStrangersClaimIsNotTaken(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid-p"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{}}}}}}}
	w := enginetest.New(t, pod, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p-v"}})
	w.Build(ephemeralvolume.New(w.Env)).Observe()
	const want = "pod ns/p, ephemeral volume v: PVC ns/p-v was not created for pod ns/p (pod is not owner)"
	if err := w.Reconcile("ns/p"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
