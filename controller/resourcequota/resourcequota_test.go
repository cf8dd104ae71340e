package resourcequota_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/resourcequota"
)

func hard(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "a", Name: name} }

func world(t *testing.T, q *corev1.ResourceQuota) (*enginetest.World, func() string) {
	w := enginetest.New(t, q)
	w.Build(resourcequota.New(w.Env, nil, nil))
	return w, func() string {
		t.Helper()
		w.Settle()
		got, err := w.Client.CoreV1().ResourceQuotas("a").Get(t.Context(), q.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for name := range got.Status.Hard {
			used, ok := got.Status.Used[name]
			if !ok {
				out = append(out, string(name)+" -")
				continue
			}
			out = append(out, string(name)+" "+used.String())
		}
		slices.Sort(out)
		return fmt.Sprint(out)
	}
}

func TestUsageFollowsTheNamespace(t *testing.T) {
	q := &corev1.ResourceQuota{ObjectMeta: meta("q"), Spec: corev1.ResourceQuotaSpec{Hard: hard(
		"pods", "5", "requests.cpu", "2", "services", "3", "services.nodeports", "1", "count/configmaps", "9", "example.com/odd", "1")}}
	w, used := world(t, q)
	want := func(step, text string) {
		t.Helper()
		if got := used(); got != text {
			t.Errorf("%s: used %s, want %s", step, got, text)
		}
	}
	want("empty", "[count/configmaps 0 example.com/odd - pods 0 requests.cpu 0 services 0 services.nodeports 0]")

	pod := &corev1.Pod{ObjectMeta: meta("p"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c",
		Resources: corev1.ResourceRequirements{Requests: hard("cpu", "500m")}}}}}
	w.Put(pod)
	w.Put(&corev1.Service{ObjectMeta: meta("s"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 1}}}})
	w.Put(&corev1.ConfigMap{ObjectMeta: meta("m")})
	w.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "m"}})
	want("filled", "[count/configmaps 1 example.com/odd - pods 1 requests.cpu 500m services 1 services.nodeports 1]")

	done := pod.DeepCopy()
	done.Status.Phase = corev1.PodSucceeded
	w.Put(done)
	want("pod ended", "[count/configmaps 1 example.com/odd - pods 0 requests.cpu 0 services 1 services.nodeports 1]")
	w.Remove(&corev1.ConfigMap{ObjectMeta: meta("m")})
	want("map gone", "[count/configmaps 0 example.com/odd - pods 0 requests.cpu 0 services 1 services.nodeports 1]")
	w.Writes()
	w.Put(&corev1.Secret{ObjectMeta: meta("uncounted")})
	w.Settle()
	if writes := w.Writes(); len(writes) > 0 {
		t.Errorf("writes without need: %v", writes)
	}
}

func TestStatusThatOthersWroteIsPutRight(t *testing.T) {
	q := &corev1.ResourceQuota{ObjectMeta: meta("q"), Spec: corev1.ResourceQuotaSpec{Hard: hard("secrets", "2")}}
	q.Status = corev1.ResourceQuotaStatus{Hard: hard("memory", "1Gi"), Used: hard("memory", "1", "secrets", "7")}
	_, used := world(t, q)
	if got := used(); got != "[secrets 0]" {
		t.Errorf("used %s", got)
	}
}

func TestPodPastItsEndIsNotCounted(t *testing.T) {
	q := &corev1.ResourceQuota{ObjectMeta: meta("q"), Spec: corev1.ResourceQuotaSpec{Hard: hard("pods", "2")}}
	w, used := world(t, q)
	grace, at := int64(5), metav1.NewTime(enginetest.Epoch)
	p := &corev1.Pod{ObjectMeta: meta("p")}
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds, p.Finalizers = &at, &grace, []string{"x/y"}
	w.Put(p)
	if got := used(); got != "[pods 1]" {
		t.Errorf("while it ends: %s", got)
	}
	w.Step(6 * time.Second)
	if got := used(); got != "[pods 0]" {
		t.Errorf("past its end: %s", got)
	}
}

// Objects of custom resources come and go, and the quota that counts them tells so at once.
func TestCustomResourcesAreWatched(t *testing.T) {
	widgets := schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{"count/widgets.example.com": resource.MustParse("5")}}}
	client := fake.NewClientset(q)
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	md := metadatafake.NewSimpleMetadataClient(scheme)
	env := engine.Env{Client: client, Informers: informers.NewSharedInformerFactory(client, 0), Clock: clock.RealClock{}, Log: slog.New(slog.DiscardHandler)}
	c, err := resourcequota.New(env, md, func() ([]*metav1.APIResourceList, error) {
		return []*metav1.APIResourceList{{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{{Name: "widgets", Kind: "Widget", Namespaced: true}}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx, env, func() { env.Informers.Start(ctx.Done()) }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	used := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			q, err := client.CoreV1().ResourceQuotas("ns").Get(ctx, "q", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			got := q.Status.Used["count/widgets.example.com"]
			if len(q.Status.Used) == 1 && got.String() == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("used %s, want %s", got.String(), want)
			}
		}
	}
	used("0")
	widget := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "example.com/v1", Kind: "Widget"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "w"}}
	if err := md.Tracker().Create(widgets, widget, "ns"); err != nil {
		t.Fatal(err)
	}
	used("1")
	if err := md.Tracker().Delete(widgets, "ns", "w"); err != nil {
		t.Fatal(err)
	}
	used("0")
}

// A claim that changes its class is counted under both, until it has changed.
func TestClaimsByAttributesClass(t *testing.T) {
	gold, silver := "gold", "silver"
	scoped := func(class string) *corev1.ResourceQuota {
		return &corev1.ResourceQuota{ObjectMeta: meta(class), Spec: corev1.ResourceQuotaSpec{Hard: hard("persistentvolumeclaims", "9"),
			ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
				{ScopeName: corev1.ResourceQuotaScopeVolumeAttributesClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{class}}}}}}
	}
	w, goldUsed := world(t, scoped(gold))
	w.Put(scoped(silver))
	c := &corev1.PersistentVolumeClaim{ObjectMeta: meta("c"), Spec: corev1.PersistentVolumeClaimSpec{VolumeAttributesClassName: &silver},
		Status: corev1.PersistentVolumeClaimStatus{CurrentVolumeAttributesClassName: &gold}}
	for _, step := range []struct {
		current *string
		want    string
	}{{&gold, "1 1"}, {&silver, "0 1"}} {
		c = c.DeepCopy()
		c.Status.CurrentVolumeAttributesClassName = step.current
		w.Put(c)
		goldUsed()
		got := ""
		for i, class := range []string{gold, silver} {
			q, err := w.Client.CoreV1().ResourceQuotas("a").Get(t.Context(), class, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			used := q.Status.Used["persistentvolumeclaims"]
			if got += used.String(); i == 0 {
				got += " "
			}
		}
		if got != step.want {
			t.Errorf("current class %s: used of gold and silver %s, want %s", *step.current, got, step.want)
		}
	}
}
