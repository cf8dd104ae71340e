package deployment_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/controller/deployment"
	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/workload"
)

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}}
}

func web(replicas int32, change ...func(*appsv1.Deployment)) *appsv1.Deployment {
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "d-uid", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Template: template("v1"),
			Selector:                &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			ProgressDeadlineSeconds: new(int32(600)), RevisionHistoryLimit: new(int32(10)),
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{
					MaxSurge: new(intstr.FromString("25%")), MaxUnavailable: new(intstr.FromString("25%"))}}}}
	for _, f := range change {
		f(d)
	}
	return d
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(deployment.New(w.Env))
}

// edit changes the stored Deployment as a user would.
func edit(w *enginetest.World, fn func(*appsv1.Deployment)) {
	d, err := w.Client.AppsV1().Deployments("ns").Get(context.Background(), "web", metav1.GetOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	d = d.DeepCopy()
	fn(d)
	d.Generation++
	w.Put(d)
}

func sets(w *enginetest.World) []appsv1.ReplicaSet {
	l, err := w.Client.AppsV1().ReplicaSets("ns").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	slices.SortFunc(l.Items, func(a, b appsv1.ReplicaSet) int {
		return strings.Compare(a.Annotations["deployment.kubernetes.io/revision"], b.Annotations["deployment.kubernetes.io/revision"])
	})
	return l.Items
}

// sizes shows the sets by image: "v1=3/2" wants 3 and has 2 available.
func sizes(w *enginetest.World) string {
	var out []string
	for _, rs := range sets(w) {
		out = append(out, fmt.Sprintf("%s=%d/%d", rs.Spec.Template.Spec.Containers[0].Image, *rs.Spec.Replicas, rs.Status.AvailableReplicas))
	}
	return strings.Join(out, " ")
}

// kubelet makes every set's Pods exist, and those of good images available.
func kubelet(w *enginetest.World, bad ...string) {
	for _, rs := range sets(w) {
		n := *rs.Spec.Replicas
		rs.Status.Replicas, rs.Status.ObservedGeneration = n, rs.Generation
		rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = n, n
		if slices.Contains(bad, rs.Spec.Template.Spec.Containers[0].Image) {
			rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = 0, 0
		}
		rs.Status.TerminatingReplicas = new(int32)
		w.Put(&rs)
	}
}

func conditions(w *enginetest.World) string {
	d, _ := w.Client.AppsV1().Deployments("ns").Get(context.Background(), "web", metav1.GetOptions{})
	var out []string
	for _, c := range d.Status.Conditions {
		out = append(out, fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func TestFirstRollout(t *testing.T) {
	w := world(t, web(3)).Settle()
	rs := sets(w)[0]
	hash := workload.TemplateHash(new(template("v1")), nil)
	expect(t, "name", rs.Name, "web-"+hash)
	expect(t, "label", rs.Labels["pod-template-hash"]+" "+rs.Spec.Selector.MatchLabels["pod-template-hash"]+" "+
		rs.Spec.Template.Labels["pod-template-hash"], hash+" "+hash+" "+hash)
	expect(t, "annotations", fmt.Sprint(rs.Annotations), "map[deployment.kubernetes.io/desired-replicas:3 "+
		"deployment.kubernetes.io/max-replicas:4 deployment.kubernetes.io/revision:1]")
	expect(t, "events", strings.Join(w.Events(), "\n"), "Normal ScalingReplicaSet Scaled up replica set web-"+hash+" from 0 to 3")
	expect(t, "conditions", conditions(w), "Available=False MinimumReplicasUnavailable, Progressing=True NewReplicaSetCreated")
	kubelet(w)
	w.Settle()
	expect(t, "conditions", conditions(w), "Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable")
	d, _ := w.Client.AppsV1().Deployments("ns").Get(t.Context(), "web", metav1.GetOptions{})
	expect(t, "revision", d.Annotations["deployment.kubernetes.io/revision"], "1")
	if s := d.Status; s.Replicas != 3 || s.UpdatedReplicas != 3 || s.AvailableReplicas != 3 || s.ObservedGeneration != 1 || *s.TerminatingReplicas != 0 {
		t.Errorf("status %+v", s)
	}
}

// At every step at least 3 of 4 are available and at most 5 exist.
func TestRollingUpdateKeepsWithinFenceposts(t *testing.T) {
	w := world(t, web(4)).Settle()
	kubelet(w)
	w.Settle()
	edit(w, func(d *appsv1.Deployment) { d.Spec.Template = template("v2") })
	var steps []string
	for range 20 {
		w.Settle()
		steps = append(steps, sizes(w))
		available, total := int32(0), int32(0)
		for _, rs := range sets(w) {
			available += min(rs.Status.AvailableReplicas, *rs.Spec.Replicas)
			total += *rs.Spec.Replicas
		}
		if available < 3 || total > 5 {
			t.Fatalf("%d available, %d in total after %s", available, total, strings.Join(steps, ", "))
		}
		kubelet(w)
	}
	expect(t, "steps", strings.Join(slices.Compact(steps), ", "), "v1=3/4 v2=2/0, v1=1/3 v2=4/2, v1=0/1 v2=4/4, v1=0/0 v2=4/4")
	expect(t, "conditions", conditions(w), "Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable")
}

func TestRolloutOfBrokenImageStopsAndTimesOut(t *testing.T) {
	w := world(t, web(4)).Settle()
	kubelet(w)
	w.Settle()
	edit(w, func(d *appsv1.Deployment) { d.Spec.Template = template("bad") })
	for range 5 {
		w.Settle()
		kubelet(w, "bad")
	}
	expect(t, "sets", sizes(w), "v1=3/3 bad=2/0")
	w.Step(11 * time.Minute).Settle()
	expect(t, "conditions", conditions(w), "Available=True MinimumReplicasAvailable, Progressing=False ProgressDeadlineExceeded")
	// undo: the first template again
	edit(w, func(d *appsv1.Deployment) { d.Spec.Template = template("v1") })
	for range 5 {
		w.Settle()
		kubelet(w, "bad")
	}
	expect(t, "sets", sizes(w), "bad=0/0 v1=4/4")
	expect(t, "history", sets(w)[1].Annotations["deployment.kubernetes.io/revision-history"], "1")
	expect(t, "revision", sets(w)[1].Annotations["deployment.kubernetes.io/revision"], "3")
	expect(t, "conditions", conditions(w), "Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable")
}

func TestRecreateWaitsForOldPods(t *testing.T) {
	recreate := func(d *appsv1.Deployment) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}
	w := world(t, web(2, recreate)).Settle()
	kubelet(w)
	w.Settle()
	old := sets(w)[0]
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "p", Labels: old.Spec.Template.Labels,
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(&old, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}}}
	w.Put(pod)
	edit(w, func(d *appsv1.Deployment) { d.Spec.Template = template("v2") })
	w.Settle()
	expect(t, "first the old go", sizes(w), "v1=0/2")
	kubelet(w)
	w.Settle()
	expect(t, "a pod still runs", sizes(w), "v1=0/0")
	w.Remove(pod)
	w.Settle()
	expect(t, "then the new come", sizes(w), "v1=0/0 v2=2/0")
}

func TestProportionalScaling(t *testing.T) {
	w := world(t, web(10, func(d *appsv1.Deployment) {
		d.Spec.Strategy.RollingUpdate.MaxSurge = new(intstr.FromInt32(3))
		d.Spec.Strategy.RollingUpdate.MaxUnavailable = new(intstr.FromInt32(2))
	})).Settle()
	kubelet(w)
	w.Settle()
	edit(w, func(d *appsv1.Deployment) { d.Spec.Template = template("bad") })
	for range 4 {
		w.Settle()
		kubelet(w, "bad")
	}
	expect(t, "stuck", sizes(w), "v1=8/8 bad=5/0")
	edit(w, func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32(15)) })
	w.Settle()
	expect(t, "the documentation's example", sizes(w), "v1=11/8 bad=7/0")
}

func TestPauseStopsRolloutButNotScaling(t *testing.T) {
	w := world(t, web(2)).Settle()
	kubelet(w)
	w.Settle()
	edit(w, func(d *appsv1.Deployment) { d.Spec.Paused, d.Spec.Template = true, template("v2") })
	w.Settle()
	expect(t, "paused", sizes(w), "v1=2/2")
	expect(t, "conditions", conditions(w), "Available=True MinimumReplicasAvailable, Progressing=Unknown DeploymentPaused")
	edit(w, func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32(3)) })
	w.Settle()
	expect(t, "scaled", sizes(w), "v1=3/2")
	edit(w, func(d *appsv1.Deployment) { d.Spec.Paused = false })
	w.Settle()
	expect(t, "resumed", sizes(w), "v1=3/2 v2=1/0")
}

func TestHistoryLimit(t *testing.T) {
	w := world(t, web(1, func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = new(int32(2)) }))
	for i := range 5 {
		for range 4 {
			w.Settle()
			kubelet(w)
		}
		edit(w, func(d *appsv1.Deployment) { d.Spec.Template = template(fmt.Sprintf("v%d", i+2)) })
	}
	for range 4 {
		w.Settle()
		kubelet(w)
	}
	expect(t, "sets", sizes(w), "v4=0/0 v5=0/0 v6=1/1")
}

// Another template has the same hash: the collision count makes a new name.
func TestHashCollision(t *testing.T) {
	hash := workload.TemplateHash(new(template("v1")), nil)
	other := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-" + hash, UID: "other"},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"x": "y"}},
			Template: template("other")}}
	w := world(t, web(1), other).Settle()
	names := []string{sets(w)[0].Name, sets(w)[1].Name}
	again := "web-" + workload.TemplateHash(new(template("v1")), new(int32(1)))
	if !slices.Contains(names, again) {
		t.Errorf("sets %v, want %s", names, again)
	}
}

// The cache does not show the set just made: nothing is made twice, nothing counted as collision.
func TestStaleCacheMakesOneSet(t *testing.T) {
	w := world(t, web(3)).Observe()
	for range 3 {
		_ = w.Reconcile("ns/web")
		w.Observe("deployments.apps")
	}
	if n := len(sets(w)); n != 1 {
		t.Fatalf("%d sets", n)
	}
	d, _ := w.Client.AppsV1().Deployments("ns").Get(t.Context(), "web", metav1.GetOptions{})
	if d.Status.CollisionCount != nil {
		t.Errorf("collision count %d", *d.Status.CollisionCount)
	}
	w.Settle()
}

func TestRollbackAnnotation(t *testing.T) {
	w := world(t, web(1)).Settle()
	kubelet(w)
	edit(w, func(d *appsv1.Deployment) { d.Spec.Template = template("v2") })
	for range 4 {
		w.Settle()
		kubelet(w)
	}
	w.Events()
	edit(w, func(d *appsv1.Deployment) { d.Annotations[appsv1.DeprecatedRollbackTo] = "1" })
	w.Settle()
	d, _ := w.Client.AppsV1().Deployments("ns").Get(t.Context(), "web", metav1.GetOptions{})
	expect(t, "image", d.Spec.Template.Spec.Containers[0].Image, "v1")
	if ev := strings.Join(w.Events(), "\n"); !strings.Contains(ev, `Normal DeploymentRollback Rolled back deployment "web" to revision 1`) {
		t.Errorf("events %s", ev)
	}
}

func TestAdoptsMatchingSet(t *testing.T) {
	orphan := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "orphan", UID: "o",
		Labels: map[string]string{"app": "web"}},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32(2)), Template: template("v1"),
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	w := world(t, web(2), orphan).Settle()
	got := sets(w)
	if len(got) != 1 || !metav1.IsControlledBy(&got[0], web(2)) {
		t.Fatalf("sets %+v", got)
	}
}
