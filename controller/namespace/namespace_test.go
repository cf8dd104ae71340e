package namespace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/enginetest"
)

var widgets = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}

func discovered() ([]*metav1.APIResourceList, error) {
	verbs := metav1.Verbs{"delete", "list", "deletecollection"}
	return []*metav1.APIResourceList{
		{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "pods", Kind: "Pod", Namespaced: true, Verbs: verbs}, {Name: "nodes", Kind: "Node", Verbs: verbs},
			{Name: "secrets", Kind: "Secret", Namespaced: true, Verbs: metav1.Verbs{"delete", "list"}}}},
		{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{{Name: "widgets", Kind: "Widget", Namespaced: true, Verbs: verbs}}},
	}, nil
}

func dying() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", UID: "ns", DeletionTimestamp: new(metav1.NewTime(enginetest.Epoch))},
		Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}
}

func object(name string, finalizers ...string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Finalizers: finalizers}}
}

func world(t *testing.T, md *enginetest.Metadata, d Discover) *enginetest.World {
	w := enginetest.New(t, dying())
	return w.Build(New(w.Env, md, d))
}

func show(w *enginetest.World) (conditions string, finalizers int) {
	ns, err := w.Client.CoreV1().Namespaces().Get(context.Background(), "ns", metav1.GetOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	var out []string
	for _, c := range ns.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			out = append(out, fmt.Sprintf("%s %s: %s", c.Type, c.Reason, c.Message))
		}
	}
	if ns.Status.Phase != corev1.NamespaceTerminating {
		w.T.Errorf("phase %s", ns.Status.Phase)
	}
	return strings.Join(out, "; "), len(ns.Spec.Finalizers)
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func TestEmptiesAndFinalizes(t *testing.T) {
	md := enginetest.NewMetadata()
	md.Add(podsGVR, object("p"))
	md.Add(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, object("s"))
	md.Add(widgets, object("w"))
	md.Add(widgets, &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "stays"}})
	w := world(t, md, discovered).Settle()
	conds, finalizers := show(w)
	expect(t, "conditions", conds, "")
	if finalizers != 0 {
		t.Error("not finalized")
	}
	expect(t, "order", strings.Join(md.Writes(), ", "),
		"delete pods/ns/p Background, delete secrets/ns/s Background, delete widgets.example.com/ns/w Background")
	ns, _ := w.Client.CoreV1().Namespaces().Get(t.Context(), "ns", metav1.GetOptions{})
	if c := ns.Status.Conditions; len(c) != 5 || c[0].Reason != "ResourcesDiscovered" || c[0].Status != corev1.ConditionFalse {
		t.Errorf("conditions %+v", c)
	}
}

func TestPodsFirstThenTheRest(t *testing.T) {
	md := enginetest.NewMetadata()
	md.Add(podsGVR, object("p", "kubelet/still-running"))
	md.Add(widgets, object("w"))
	w := world(t, md, discovered)
	live := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "p"},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: new(int64(30))}}
	w.Put(live)
	w.Settle()
	if got := md.Names(widgets); len(got) != 1 {
		t.Errorf("widgets %v deleted before the pods", got)
	}
	if due := w.Due("ns").Seconds(); due != 16 {
		t.Errorf("comes back after %v s, want 16", due)
	}
	_, _ = md.Resource(podsGVR).Namespace("ns").Patch(t.Context(), "p", types.MergePatchType, []byte(`{"metadata":{"finalizers":[]}}`), metav1.PatchOptions{})
	w.Remove(live) // the watch brings the namespace back at once, not after 16 s
	w.Settle()
	if _, finalizers := show(w); finalizers != 0 || len(md.Names(widgets)) != 0 {
		t.Error("not finished when the last pod was gone")
	}
}

func TestFinalizersAreReported(t *testing.T) {
	md := enginetest.NewMetadata()
	md.Add(widgets, object("a", "x/1"))
	md.Add(widgets, object("b", "x/1", "x/2"))
	w := world(t, md, discovered).Settle()
	conds, finalizers := show(w)
	expect(t, "conditions", conds, "NamespaceContentRemaining SomeResourcesRemain: Some resources are remaining: widgets.example.com has 2 resource instances; "+
		"NamespaceFinalizersRemaining SomeFinalizersRemain: Some content in the namespace has finalizers remaining: x/1 in 2 resource instances, x/2 in 1 resource instances")
	if finalizers != 1 || w.Due("ns").Seconds() != 8 {
		t.Errorf("%d finalizers, due in %v", finalizers, w.Due("ns"))
	}
}

func TestDiscoveryFailure(t *testing.T) {
	md := enginetest.NewMetadata()
	md.Add(widgets, object("w"))
	down := true
	w := world(t, md, func() ([]*metav1.APIResourceList, error) {
		lists, _ := discovered()
		if down {
			return lists, errors.New("metrics.k8s.io is down")
		}
		return lists, nil
	}).Observe()
	if err := w.Reconcile("ns"); err == nil {
		t.Fatal("no error")
	}
	conds, finalizers := show(w)
	expect(t, "conditions", conds, "NamespaceDeletionDiscoveryFailure DiscoveryFailed: metrics.k8s.io is down")
	if finalizers != 1 || len(md.Names(widgets)) != 0 {
		t.Error("what is known should be deleted, but the namespace kept")
	}
	down = false
	w.Settle()
	if conds, finalizers := show(w); conds != "" || finalizers != 0 {
		t.Errorf("conditions %s, %d finalizers", conds, finalizers)
	}
}

func TestLivingNamespaceIsLeftAlone(t *testing.T) {
	md := enginetest.NewMetadata()
	md.Add(widgets, object("w"))
	w := enginetest.New(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	w.Build(New(w.Env, md, discovered)).Observe()
	if err := w.Reconcile("ns"); err != nil || len(md.Names(widgets)) != 1 {
		t.Errorf("error %v, widgets %v", err, md.Names(widgets))
	}
}
