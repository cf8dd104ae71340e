package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/cluster"
)

// widgets is a definition as controllers write them.
func widgets(name string) *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: name + "s.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: name + "s", Singular: name, Kind: "Kind" + name, ListKind: "Kind" + name + "List"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": {Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"size": {Type: "integer"}}}},
				}},
			}},
		},
	}
}

type customClients struct {
	kube    *kubernetes.Clientset
	dynamic dynamic.Interface
	crds    *clientset.Clientset
}

func clientsOf(t testing.TB, c *cluster.Cluster) customClients {
	t.Helper()
	cfg := rest.CopyConfig(c.Config())
	cfg.QPS = -1
	var out customClients
	var err error
	if out.kube, err = kubernetes.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if out.dynamic, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if out.crds, err = clientset.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	return out
}

func (c customClients) define(t testing.TB, name string) {
	t.Helper()
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), widgets(name), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the definition is established", func() bool {
		crd, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), name+"s.example.com", metav1.GetOptions{})
		return err == nil && slices.ContainsFunc(crd.Status.Conditions, func(d apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return d.Type == apiextensionsv1.Established && d.Status == apiextensionsv1.ConditionTrue
		})
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func resourceOf(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: name + "s"}
}

func object(name, kind string, owners ...metav1.OwnerReference) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": kind, "spec": map[string]any{"size": int64(1)}}}
	u.SetName(name)
	u.SetOwnerReferences(owners)
	return u
}

// Everything that works on any resource works on custom ones: quota, garbage
// collection, the end of a namespace.
func TestControllersTakeCustomResources(t *testing.T) {
	c := clientsOf(t, cluster.Start(t, cluster.TestOptions{}))
	c.define(t, "widget")
	ctx := t.Context()
	ns := c.dynamic.Resource(resourceOf("widget")).Namespace("a")
	if _, err := c.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{"count/widgets.example.com": resource.MustParse("2")}}}
	if _, err := c.kube.CoreV1().ResourceQuotas("a").Create(ctx, quota, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	owner, err := ns.Create(ctx, object("owner", "Kindwidget"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ref := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Kindwidget", Name: "owner", UID: owner.GetUID()}
	if _, err := ns.Create(ctx, object("owned", "Kindwidget", ref), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ns.Create(ctx, object("third", "Kindwidget"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a third object over a quota of two: %v", err)
	}
	if err := ns.Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the owned object is collected", func() bool {
		_, err := ns.Get(ctx, "owned", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	eventually(t, "the quota has room again", func() bool {
		_, err := ns.Create(ctx, object("last", "Kindwidget"), metav1.CreateOptions{})
		return err == nil
	})
	if err := c.kube.CoreV1().Namespaces().Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace goes with its custom resources", func() bool {
		_, err := c.kube.CoreV1().Namespaces().Get(ctx, "a", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

// What is defined is published while it is, and a watch ends with what it watched.
func TestCustomResourcesArePublished(t *testing.T) {
	c := clientsOf(t, cluster.Start(t, cluster.TestOptions{APIOnly: true}))
	ctx := t.Context()
	document := func() map[string]any {
		data, err := c.kube.Discovery().RESTClient().Get().AbsPath("/openapi/v2").Do(ctx).Raw()
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		return doc["definitions"].(map[string]any)
	}
	const model = "com.example.v1.Kindwidget"
	if document()[model] != nil {
		t.Fatal("published before it is defined")
	}
	c.define(t, "widget")
	props, _ := document()[model].(map[string]any)["properties"].(map[string]any)
	if props["spec"] == nil || props["metadata"] == nil || props["apiVersion"] == nil {
		t.Errorf("OpenAPI v2 shows %v", props)
	}
	v3, err := c.kube.Discovery().RESTClient().Get().AbsPath("/openapi/v3/apis/example.com/v1").Do(ctx).Raw()
	if err != nil || !json.Valid(v3) {
		t.Errorf("OpenAPI v3: %v", err)
	}
	_, lists, err := c.kube.Discovery().ServerGroupsAndResources() // aggregated
	if err != nil || !slices.ContainsFunc(lists, func(l *metav1.APIResourceList) bool { return l.GroupVersion == "example.com/v1" }) {
		t.Errorf("discovery lacks the group: %v", err)
	}
	w, err := c.dynamic.Resource(resourceOf("widget")).Namespace("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.dynamic.Resource(resourceOf("widget")).Namespace("default").Create(ctx, object("a", "Kindwidget"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Delete(ctx, "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for deadline := time.After(20 * time.Second); ; {
		select {
		case ev, open := <-w.ResultChan():
			if open {
				seen = append(seen, string(ev.Type))
				continue
			}
		case <-deadline:
			t.Fatalf("the watch never ended; saw %v", seen)
		}
		break
	}
	if !slices.Equal(seen, []string{"ADDED", "DELETED"}) {
		t.Errorf("the watch saw %v", seen)
	}
	if document()[model] != nil {
		t.Error("published after it is gone")
	}
	if _, err := c.dynamic.Resource(resourceOf("widget")).Namespace("default").List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("list after the end: %v", err)
	}
}

// BenchmarkDefinitions installs definitions until each is established.
func BenchmarkDefinitions(b *testing.B) {
	c := clientsOf(b, cluster.Start(b, cluster.TestOptions{APIOnly: true}))
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	before, spent := heap(), cpu()
	b.ResetTimer()
	for i := range b.N {
		if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(ctx, widgets(fmt.Sprintf("w%d", i)), metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for i := range b.N {
		eventually(b, "established", func() bool {
			_, err := c.dynamic.Resource(resourceOf(fmt.Sprintf("w%d", i))).Namespace("default").List(ctx, metav1.ListOptions{})
			return err == nil
		})
	}
	b.StopTimer()
	b.ReportMetric((heap()-before)/float64(b.N)/1024, "KB/definition")
	b.ReportMetric((cpu()-spent)/float64(b.N), "cpu-ms/definition")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "definitions/s")
}

// cpu is what this process has used, in milliseconds.
func cpu() float64 {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e6
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
