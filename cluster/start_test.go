package cluster

import (
	"context"
	"runtime"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func clientOf(t *testing.T, cfg *rest.Config) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually asks until ready says "" and fails with its last answer.
func eventually(t *testing.T, what string, ready func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		why := ready()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s: %s", what, why)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func template(app string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.com/app:1"}}},
	}
}

// A pod can be created the moment Start returns, through either connection.
func TestStartIsUsableAtOnce(t *testing.T) {
	t.Parallel()
	c := Start(t, TestOptions{})
	for name, cfg := range map[string]*rest.Config{"tls": c.Config(), "in-process": c.InProcessConfig()} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: template("x").Spec}
		if _, err := clientOf(t, cfg).CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Without its client certificate nobody is an administrator.
func TestStartRefusesStrangers(t *testing.T) {
	t.Parallel()
	cfg := Start(t, TestOptions{APIOnly: true}).Config()
	cfg.CertData, cfg.KeyData = nil, nil
	_, err := clientOf(t, cfg).CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsUnauthorized(err) && !apierrors.IsForbidden(err) {
		t.Errorf("secrets listed without a certificate: %v", err)
	}
}

// What envtest lacks: workloads, garbage collection and namespaces work.
func TestStartRunsWorkloads(t *testing.T) {
	t.Parallel()
	client := clientOf(t, Start(t, TestOptions{HollowNodes: 3}).Config())
	ctx := t.Context()
	three := int32(3)
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &three, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Template: template("web"),
	}}
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once"}, Spec: batchv1.JobSpec{Template: template("once")}}
	job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if _, err := client.AppsV1().Deployments("shop").Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.BatchV1().Jobs("shop").Create(ctx, job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deployment and the job", func() string {
		d, err := client.AppsV1().Deployments("shop").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		j, err := client.BatchV1().Jobs("shop").Get(ctx, "once", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if d.Status.AvailableReplicas != 3 || j.Status.Succeeded != 1 || j.Status.CompletionTime == nil {
			return d.Status.String() + j.Status.String()
		}
		return ""
	})
	seen := map[string]bool{}
	pods, err := client.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if p.Status.PodIP == "" || seen[p.Status.PodIP] {
			t.Errorf("pod %s has address %q, of %v", p.Name, p.Status.PodIP, seen)
		}
		seen[p.Status.PodIP] = true
	}
	if err := client.CoreV1().Namespaces().Delete(ctx, "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace to go", func() string {
		ns, err := client.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{})
		if err == nil {
			return ns.Status.String()
		}
		return ""
	})
}

// Any number run side by side, each with its own port and objects.
func TestStartParallel(t *testing.T) {
	t.Parallel()
	for range 4 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			client := clientOf(t, Start(t, TestOptions{}).Config())
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "same-name"}}
			if _, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStopLeavesNoGoroutine(t *testing.T) {
	stacks := func() string {
		buf := make([]byte, 1<<22)
		return string(buf[:runtime.Stack(buf, true)])
	}
	cycle := func() {
		c, err := InMemory(t.Context(), TestOptions{HollowNodes: 2})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := clientOf(t, c.InProcessConfig()).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		c.Stop()
		c.Stop() // twice does no harm
	}
	cycle() // what is started once per process stays
	before := runtime.NumGoroutine()
	cycle()
	deadline := time.Now().Add(3 * time.Second)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, before %d:\n%s", n, before, stacks())
	}
}

// BenchmarkStart is the time from nothing to a control plane in which pods
// can be created, and its end.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		c, err := InMemory(context.Background(), TestOptions{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Stop()
		b.StartTimer()
	}
}
