package statefulset_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/statefulset"
)

func db(replicas int32, change ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	l := map[string]string{"app": "db"}
	s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", UID: "db", Generation: 1},
		Spec: appsv1.StatefulSetSpec{Replicas: &replicas, ServiceName: "dbs", Selector: &metav1.LabelSelector{MatchLabels: l},
			PodManagementPolicy: appsv1.OrderedReadyPodManagement, RevisionHistoryLimit: new(int32(10)),
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32)}},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}
	for _, f := range change {
		f(s)
	}
	return s
}

func parallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(statefulset.New(w.Env))
}

func edit(w *enginetest.World, fn func(*appsv1.StatefulSet)) {
	s, err := w.Client.AppsV1().StatefulSets("ns").Get(context.Background(), "db", metav1.GetOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	s = s.DeepCopy()
	fn(s)
	s.Generation++
	w.Put(s)
}

func pods(w *enginetest.World) []corev1.Pod {
	l, _ := w.Client.CoreV1().Pods("ns").List(context.Background(), metav1.ListOptions{})
	slices.SortFunc(l.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return l.Items
}

// show lists the Pods as name=image, ready ones with "*".
func show(w *enginetest.World) string {
	var out []string
	for _, p := range pods(w) {
		s := p.Name + "=" + p.Spec.Containers[0].Image
		if len(p.Status.Conditions) > 0 {
			s += "*"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// kubelet makes Pods run; those of image "bad" never become ready.
func kubelet(w *enginetest.World) *enginetest.World {
	for _, p := range pods(w) {
		p.Status.Phase = corev1.PodRunning
		if p.Spec.Containers[0].Image != "bad" {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		w.Put(&p)
	}
	return w.Settle()
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestOrderedStartAndIdentity(t *testing.T) {
	w := world(t, db(3)).Settle()
	expect(t, "first", show(w), "db-0=v1")
	kubelet(w)
	expect(t, "second", show(w), "db-0=v1* db-1=v1")
	kubelet(w)
	kubelet(w)
	expect(t, "all", show(w), "db-0=v1* db-1=v1* db-2=v1*")
	p := pods(w)[1]
	expect(t, "identity", fmt.Sprintln(p.Spec.Hostname, p.Spec.Subdomain, p.Labels["statefulset.kubernetes.io/pod-name"],
		p.Labels["apps.kubernetes.io/pod-index"], p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName), "db-1 dbs db-1 1 data-db-1\n")
	s, _ := w.Client.AppsV1().StatefulSets("ns").Get(t.Context(), "db", metav1.GetOptions{})
	if st := s.Status; st.Replicas != 3 || st.ReadyReplicas != 3 || st.AvailableReplicas != 3 || st.CurrentReplicas != 3 || st.UpdatedReplicas != 3 ||
		st.CurrentRevision != p.Labels["controller-revision-hash"] || st.UpdateRevision != st.CurrentRevision {
		t.Errorf("status %+v", st)
	}
	ev := strings.Join(w.Events(), "|")
	for _, want := range []string{"Normal SuccessfulCreate Create Pod db-0 in StatefulSet db successful",
		"Normal SuccessfulCreate Create Claim data-db-0 Pod db-0 in StatefulSet db success"} {
		if !strings.Contains(ev, want) {
			t.Errorf("no event %q in %s", want, ev)
		}
	}
}

func TestParallelStart(t *testing.T) {
	expect(t, "pods", show(world(t, db(3, parallel)).Settle()), "db-0=v1 db-1=v1 db-2=v1")
}

func running(t *testing.T, n int32, change ...func(*appsv1.StatefulSet)) *enginetest.World {
	w := world(t, db(n, change...)).Settle()
	for range n {
		kubelet(w)
	}
	w.Writes()
	return w
}

func deletions(w *enginetest.World) string {
	var out []string
	for _, l := range w.Writes() {
		if name, ok := strings.CutPrefix(l, "delete pods "); ok {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

func TestScaleDownFromTheTop(t *testing.T) {
	w := running(t, 3)
	edit(w, func(s *appsv1.StatefulSet) { s.Spec.Replicas = new(int32(1)) })
	w.Settle()
	expect(t, "deleted", deletions(w), "db-2 db-1")
	pvcs, _ := w.Client.CoreV1().PersistentVolumeClaims("ns").List(t.Context(), metav1.ListOptions{})
	if len(pvcs.Items) != 3 || len(pvcs.Items[2].OwnerReferences) != 0 {
		t.Errorf("claims %v", pvcs.Items)
	}
}

// While a Pod is unavailable, no other is taken down.
func TestScaleDownWaitsForHealth(t *testing.T) {
	w := running(t, 3)
	p := pods(w)[0]
	p.Status.Conditions = nil
	w.Put(&p)
	edit(w, func(s *appsv1.StatefulSet) { s.Spec.Replicas = new(int32(2)) })
	w.Settle()
	expect(t, "deleted", deletions(w), "")
}

func TestRollsFromTheTopOneByOne(t *testing.T) {
	w := running(t, 3)
	edit(w, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "v2" })
	w.Settle()
	expect(t, "first", show(w), "db-0=v1* db-1=v1* db-2=v2")
	s, _ := w.Client.AppsV1().StatefulSets("ns").Get(t.Context(), "db", metav1.GetOptions{})
	if s.Status.CurrentRevision == s.Status.UpdateRevision || s.Status.CurrentReplicas != 2 {
		t.Errorf("status %+v", s.Status)
	}
	kubelet(w)
	expect(t, "second", show(w), "db-0=v1* db-1=v2 db-2=v2*")
	kubelet(w)
	kubelet(w)
	expect(t, "done", show(w), "db-0=v2* db-1=v2* db-2=v2*")
	s, _ = w.Client.AppsV1().StatefulSets("ns").Get(t.Context(), "db", metav1.GetOptions{})
	if s.Status.CurrentRevision != s.Status.UpdateRevision || s.Status.CurrentReplicas != 3 {
		t.Errorf("status %+v", s.Status)
	}
}

func TestPartition(t *testing.T) {
	w := running(t, 3, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = new(int32(2)) })
	edit(w, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "v2" })
	w.Settle()
	kubelet(w)
	expect(t, "pods", show(w), "db-0=v1* db-1=v1* db-2=v2*")
	w.Remove(&pods(w)[0]) // below the partition a Pod comes back as it was
	w.Settle()
	expect(t, "pods", show(w), "db-0=v1 db-1=v1* db-2=v2*")
}

func TestOnDelete(t *testing.T) {
	w := running(t, 2, func(s *appsv1.StatefulSet) {
		s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	})
	edit(w, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "v2" })
	w.Settle()
	expect(t, "untouched", show(w), "db-0=v1* db-1=v1*")
	w.Remove(&pods(w)[0])
	w.Settle()
	expect(t, "new revision", show(w), "db-0=v2 db-1=v1*")
}

func TestFailedPodIsReplacedUnderItsName(t *testing.T) {
	w := running(t, 2)
	p := pods(w)[1]
	p.Status.Phase = corev1.PodFailed
	w.Put(&p)
	w.Settle()
	if got := pods(w)[1]; got.Name != "db-1" || got.UID == p.UID || got.Status.Phase == corev1.PodFailed {
		t.Errorf("pod %s %s %s", got.Name, got.UID, got.Status.Phase)
	}
}

// A Pod being deleted keeps its identity to itself until it is gone.
func TestTerminatingPodBlocksItsSuccessor(t *testing.T) {
	w := running(t, 1)
	p := pods(w)[0]
	p.DeletionTimestamp, p.Finalizers = new(metav1.NewTime(enginetest.Epoch)), []string{"kubelet/partitioned"}
	w.Put(&p)
	w.Settle()
	for _, l := range w.Writes() {
		if strings.Contains(l, "pods") {
			t.Errorf("wrote %s", l)
		}
	}
}

func TestClaimsDeletedWhenScaled(t *testing.T) {
	w := running(t, 2, func(s *appsv1.StatefulSet) {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
			WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType}
	})
	gone := pods(w)[1]
	edit(w, func(s *appsv1.StatefulSet) { s.Spec.Replicas = new(int32(1)) })
	w.Settle()
	c, _ := w.Client.CoreV1().PersistentVolumeClaims("ns").Get(t.Context(), "data-db-1", metav1.GetOptions{})
	if len(c.OwnerReferences) != 1 || c.OwnerReferences[0].UID != gone.UID {
		t.Errorf("owners of the condemned claim %v", c.OwnerReferences)
	}
	kept, _ := w.Client.CoreV1().PersistentVolumeClaims("ns").Get(t.Context(), "data-db-0", metav1.GetOptions{})
	if len(kept.OwnerReferences) != 0 {
		t.Errorf("owners of the kept claim %v", kept.OwnerReferences)
	}
}

func TestStartOrdinal(t *testing.T) {
	expect(t, "pods", show(world(t, db(2, parallel, func(s *appsv1.StatefulSet) {
		s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5}
	})).Settle()), "db-5=v1 db-6=v1")
}

func TestStaleCacheMakesNoSecondPod(t *testing.T) {
	w := world(t, db(1)).Observe()
	for range 3 {
		_ = w.Reconcile("ns/db")
	}
	expect(t, "pods", show(w), "db-0=v1")
	w.Settle()
}
