package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/skiff-project/skiff/object/cached"
)

// preferred is discovery that knows Pods only.
type preferred struct{ discovery.DiscoveryInterface }

func (preferred) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	return []*metav1.APIResourceList{{GroupVersion: "v1", APIResources: []metav1.APIResource{
		{Name: "pods", Kind: "Pod", Namespaced: true, Verbs: metav1.Verbs{"delete", "list", "watch"}}}}}, nil
}

func (p preferred) ServerPreferredNamespacedResources() ([]*metav1.APIResourceList, error) {
	return p.ServerPreferredResources()
}

// cluster starts every controller on a fake API server that names objects and gives them UIDs.
func cluster(t *testing.T, objs ...runtime.Object) *fake.Clientset {
	client := fake.NewSimpleClientset(objs...)
	var serial atomic.Int64
	client.PrependReactor("create", "*", func(a ktesting.Action) (bool, runtime.Object, error) {
		if m, ok := a.(ktesting.CreateAction).GetObject().(metav1.Object); ok {
			n := serial.Add(1)
			if m.GetName() == "" {
				m.SetName(fmt.Sprintf("%s%d", m.GetGenerateName(), n))
			}
			m.SetUID(types.UID(fmt.Sprint("uid-", n)))
		}
		return false, nil, nil
	})
	scheme := metadatafake.NewTestScheme()
	_ = metav1.AddMetaToScheme(scheme)
	c, err := New(Config{Client: client, Metadata: metadatafake.NewSimpleMetadataClient(scheme),
		Discovery: preferred{client.Discovery()}, Informers: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(cached.New("").Transform)),
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, RootCA: []byte("CA")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not return")
		}
	})
	return client
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestEveryControllerTogether(t *testing.T) {
	l := map[string]string{"app": "web"}
	client := cluster(t,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "n", CreationTimestamp: metav1.Now()}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "svc"},
			Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Selector: l, Ports: []corev1.ServicePort{{Port: 80}}}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "d"},
			Spec: appsv1.DeploymentSpec{Replicas: new(int32(3)), Selector: &metav1.LabelSelector{MatchLabels: l},
				Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{}},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}}}})
	core := client.CoreV1()
	eventually(t, "three pods", func() bool {
		pods, _ := core.Pods("ns").List(t.Context(), metav1.ListOptions{})
		return len(pods.Items) == 3
	})
	eventually(t, "default service account", func() bool {
		_, err := core.ServiceAccounts("ns").Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	eventually(t, "root CA", func() bool {
		_, err := core.ConfigMaps("ns").Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err == nil
	})
	eventually(t, "node CIDR", func() bool {
		n, _ := core.Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		return n.Spec.PodCIDR == "10.244.0.0/24"
	})
	eventually(t, "slice", func() bool {
		s, _ := client.DiscoveryV1().EndpointSlices("ns").List(t.Context(), metav1.ListOptions{})
		return len(s.Items) == 1
	})
	eventually(t, "events", func() bool {
		e, _ := core.Events("ns").List(t.Context(), metav1.ListOptions{})
		for i := range e.Items {
			if e.Items[i].Reason == "ScalingReplicaSet" && e.Items[i].Source.Component == "deployment-controller" {
				return true
			}
		}
		return false
	})
	// what is settled stays quiet
	eventually(t, "quiet", func() bool {
		before := len(client.Actions())
		time.Sleep(300 * time.Millisecond)
		return len(client.Actions()) == before
	})
}

func TestEnabled(t *testing.T) {
	client := fake.NewSimpleClientset()
	build := func(names ...string) ([]string, error) {
		c, err := New(Config{Client: client, Informers: informers.NewSharedInformerFactory(client, 0), Enabled: names})
		if err != nil {
			return nil, err
		}
		var out []string
		for _, r := range c.list {
			out = append(out, r.Name)
		}
		return out, nil
	}
	got, err := build("deployment", "replicaset-controller")
	if want := []string{"deployment-controller", "replicaset-controller"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, error %v, want %v", got, err, want)
	}
	if _, err := build("*", "-deployment", "bogus"); err == nil || !strings.Contains(err.Error(), `"bogus" is not a controller Skiff has`) {
		t.Errorf("error %v", err)
	}
	got, err = build("*", "-garbagecollector", "-namespace-controller", "-svm")
	has := func(name string) bool { return slices.Contains(got, name) }
	if err != nil || has("garbage-collector-controller") || has("namespace-controller") || has("storage-version-migrator-controller") || !has("replicaset-controller") {
		t.Errorf("%v, error %v", got, err)
	}
	if _, err := build("*"); err == nil || !strings.Contains(err.Error(), "needs a metadata client") {
		t.Errorf("no complaint about missing Metadata: %v", err)
	}
}
