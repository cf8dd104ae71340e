// Package envtest runs controller-runtime's own envtest package, unmodified,
// against the links that `skiff testenv assets` makes. It is a module of its
// own, so that controller-runtime never becomes a dependency of Skiff.
package envtest

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// assets makes the links with the binary under test: $SKIFF_BINARY, else the
// one `make build` made.
func assets(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("SKIFF_BINARY")
	if binary == "" {
		binary = filepath.Join("..", "..", "bin", "skiff")
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("no binary to test: %v; run make build, or set SKIFF_BINARY", err)
	}
	dir := t.TempDir()
	if out, err := exec.Command(binary, "testenv", "assets", dir).CombinedOutput(); err != nil {
		t.Fatalf("testenv assets: %v: %s", err, out)
	}
	return dir
}

func start(t *testing.T) *envtest.Environment {
	t.Helper()
	env := &envtest.Environment{BinaryAssetsDirectory: assets(t)}
	if testing.Verbose() {
		env.AttachControlPlaneOutput = true
	}
	begin := time.Now()
	if _, err := env.Start(); err != nil {
		t.Fatal(err)
	}
	t.Logf("envtest started in %s", time.Since(begin))
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	return env
}

// A controller-runtime client writes, reads and deletes.
func TestClient(t *testing.T) {
	t.Parallel()
	env := start(t)
	c, err := client.New(env.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	one := int32(1)
	want := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.com/web"}}},
			},
		},
	}
	if err := c.Create(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	// As with upstream's servers there is no controller: the object stays as it is written.
	var got appsv1.Deployment
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(want), &got); err != nil || got.Status.ObservedGeneration != 0 {
		t.Errorf("read back: %v, status %v", err, got.Status)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: want.Spec.Template.Spec}
	if err := c.Create(t.Context(), pod); err != nil {
		t.Errorf("a pod without service accounts: %v", err)
	}
	if err := c.Delete(t.Context(), want); err != nil {
		t.Error(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(want), &got); !apierrors.IsNotFound(err) {
		t.Errorf("after the deletion: %v", err)
	}
}

// Users that envtest adds have the rights RBAC gives them and no more.
func TestUsers(t *testing.T) {
	t.Parallel()
	env := start(t)
	user, err := env.AddUser(envtest.User{Name: "reader", Groups: []string{"readers"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	admin, reader := kubernetes.NewForConfigOrDie(env.Config), kubernetes.NewForConfigOrDie(user.Config())
	read := func() error {
		_, err := reader.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
		return err
	}
	if err := read(); !apierrors.IsForbidden(err) {
		t.Errorf("before a binding: %v", err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "readers"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "readers"}},
	}
	if _, err := admin.RbacV1().RoleBindings("default").Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := read(); err != nil {
		t.Errorf("with a binding: %v", err)
	}
	kubectl, err := user.Kubectl()
	if err != nil {
		t.Fatal(err)
	}
	if out, errOut, err := kubectl.Run("get", "configmaps"); err != nil {
		t.Errorf("kubectl: %v: %s%s", err, readAll(out), readAll(errOut))
	}
}

func readAll(r io.Reader) string {
	data, _ := io.ReadAll(r)
	return string(data)
}
