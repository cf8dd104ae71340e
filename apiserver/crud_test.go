package apiserver_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
)

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"n": name}}, Data: data}
}

func TestCreateGetUpdateDelete(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	ctx := t.Context()
	made, err := cms.Create(ctx, configMap("a", map[string]string{"k": "v"}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.UID == "" || made.ResourceVersion == "" || made.CreationTimestamp.IsZero() || made.Namespace != "default" {
		t.Errorf("system metadata missing: %+v", made.ObjectMeta)
	}
	if len(made.ManagedFields) != 1 || made.ManagedFields[0].Operation != metav1.ManagedFieldsOperationUpdate {
		t.Errorf("managedFields: %+v", made.ManagedFields)
	}
	if _, err := cms.Create(ctx, configMap("a", nil), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) || err.Error() != `configmaps "a" already exists` {
		t.Errorf("second create: %v", err)
	}
	got, err := cms.Get(ctx, "a", metav1.GetOptions{})
	if err != nil || got.Data["k"] != "v" || got.ResourceVersion != made.ResourceVersion {
		t.Fatalf("get: %+v, %v", got, err)
	}
	same, err := cms.Update(ctx, got.DeepCopy(), metav1.UpdateOptions{})
	if err != nil || same.ResourceVersion != got.ResourceVersion {
		t.Errorf("an update that changes nothing moved from %s to %s (%v)", got.ResourceVersion, same.ResourceVersion, err)
	}
	got.Data["k"] = "w"
	next, err := cms.Update(ctx, got, metav1.UpdateOptions{})
	if err != nil || next.ResourceVersion == got.ResourceVersion || next.UID != got.UID {
		t.Fatalf("update: %+v, %v", next, err)
	}
	if _, err := cms.Update(ctx, got, metav1.UpdateOptions{}); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "the object has been modified; please apply your changes to the latest version and try again") {
		t.Errorf("stale update: %v", err)
	}
	if err := cms.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("other")}); !apierrors.IsConflict(err) {
		t.Errorf("delete with a wrong UID: %v", err)
	}
	if err := cms.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) || err.Error() != `configmaps "a" not found` {
		t.Errorf("get after delete: %v", err)
	}
}

func TestGenerateNameAndDryRun(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	cm, err := cms.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "x-"}}, metav1.CreateOptions{})
	if err != nil || len(cm.Name) != 7 || !strings.HasPrefix(cm.Name, "x-") {
		t.Errorf("generated %q, %v", cm.Name, err)
	}
	if _, err := cms.Create(t.Context(), configMap("dry", nil), metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Get(t.Context(), "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("dry run stored the object: %v", err)
	}
	_, err = cms.Create(t.Context(), configMap("dry", nil), metav1.CreateOptions{DryRun: []string{"Some"}})
	if !apierrors.IsInvalid(err) {
		t.Errorf("unknown dryRun: %v", err)
	}
}

func TestListPages(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	for i := range 10 {
		if _, err := cms.Create(t.Context(), configMap(fmt.Sprintf("c%d", i), nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	opts := metav1.ListOptions{Limit: 4}
	first := ""
	for {
		l, err := cms.List(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = l.ResourceVersion
			if l.RemainingItemCount == nil || *l.RemainingItemCount != 6 {
				t.Errorf("remaining %v", l.RemainingItemCount)
			}
			cms.Delete(t.Context(), "c9", metav1.DeleteOptions{}) // later pages are from the first one's snapshot
		}
		if l.ResourceVersion != first {
			t.Errorf("page at %s, first at %s", l.ResourceVersion, first)
		}
		for _, i := range l.Items {
			names = append(names, i.Name)
		}
		if opts.Continue = l.Continue; opts.Continue == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "c0 c1 c2 c3 c4 c5 c6 c7 c8 c9" {
		t.Errorf("pages: %s", got)
	}
	l, err := cms.List(t.Context(), metav1.ListOptions{LabelSelector: "n in (c1,c2)", FieldSelector: "metadata.name!=c1"})
	if err != nil || len(l.Items) != 1 || l.Items[0].Name != "c2" {
		t.Errorf("selected %+v, %v", l, err)
	}
	l, err = cms.List(t.Context(), metav1.ListOptions{ResourceVersion: first, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
	if err != nil || len(l.Items) != 10 {
		t.Errorf("exact list: %d items, %v", len(l.Items), err)
	}
}

func TestWatch(t *testing.T) {
	s := newServer(t, nil)
	for name, watcher := range map[string]func(metav1.ListOptions) (watch.Interface, error){
		"protobuf": func(o metav1.ListOptions) (watch.Interface, error) {
			return typed(t, s).CoreV1().ConfigMaps("default").Watch(t.Context(), o)
		},
		"json": func(o metav1.ListOptions) (watch.Interface, error) {
			return dyn(t, s).Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default").Watch(t.Context(), o)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cms := typed(t, s).CoreV1().ConfigMaps("default")
			l, err := cms.List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			w, err := watcher(metav1.ListOptions{ResourceVersion: l.ResourceVersion, LabelSelector: "n=" + name})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			cms.Create(t.Context(), configMap("other", nil), metav1.CreateOptions{})
			cm, err := cms.Create(t.Context(), configMap(name, nil), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			cm.Data = map[string]string{"a": "b"}
			cm, _ = cms.Update(t.Context(), cm, metav1.UpdateOptions{})
			cm.Labels = map[string]string{"n": "gone"}
			cm, _ = cms.Update(t.Context(), cm, metav1.UpdateOptions{})
			cm.Labels = map[string]string{"n": name}
			cm, _ = cms.Update(t.Context(), cm, metav1.UpdateOptions{})
			cms.Delete(t.Context(), cm.Name, metav1.DeleteOptions{})
			var last string
			for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted, watch.Added, watch.Deleted} {
				ev := next(t, w)
				if ev.Type != want {
					t.Fatalf("got %s, want %s (%+v)", ev.Type, want, ev.Object)
				}
				o := ev.Object.(metav1.Object)
				if o.GetName() != name || o.GetResourceVersion() == last {
					t.Errorf("%s of %s at %s", ev.Type, o.GetName(), o.GetResourceVersion())
				}
				last = o.GetResourceVersion()
			}
			cms.Delete(t.Context(), "other", metav1.DeleteOptions{})
		})
	}
}

func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case ev, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("watch ended")
		}
		return ev
	case <-time.After(10 * time.Second):
		t.Fatal("no event within 10 s")
	}
	return watch.Event{}
}

func TestWatchList(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	cms.Create(t.Context(), configMap("a", nil), metav1.CreateOptions{})
	yes := true
	w, err := cms.Watch(t.Context(), metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for {
		ev := next(t, w)
		if ev.Type == watch.Bookmark {
			if ev.Object.(*corev1.ConfigMap).Annotations[metav1.InitialEventsAnnotationKey] != "true" {
				t.Errorf("bookmark without the annotation: %+v", ev.Object)
			}
			return
		}
		if ev.Type != watch.Added {
			t.Errorf("event %s", ev.Type)
		}
	}
}

func TestInformers(t *testing.T) {
	s := newServer(t, nil)
	c := typed(t, s)
	f := informers.NewSharedInformerFactory(c, 0)
	inf := f.Core().V1().ConfigMaps().Informer()
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); f.Shutdown() }()
	f.StartWithContext(ctx)
	f.WaitForCacheSync(ctx.Done())
	c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("seen", nil), metav1.CreateOptions{})
	for range 200 {
		if _, ok, _ := inf.GetStore().GetByKey("default/seen"); ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the informer does not see the object")
}

func TestPatches(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	if _, err := cms.Create(t.Context(), configMap("a", map[string]string{"x": "1"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind types.PatchType
		body string
		want string // data
		err  string
	}{
		{types.MergePatchType, `{"data":{"y":"2"}}`, "map[x:1 y:2]", ""},
		{types.JSONPatchType, `[{"op":"remove","path":"/data/x"}]`, "map[y:2]", ""},
		{types.StrategicMergePatchType, `{"data":{"z":"3","y":null}}`, "map[z:3]", ""},
		{types.ApplyYAMLPatchType, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {w: \"4\"}\n", "map[w:4 z:3]", ""},
		{types.JSONPatchType, `[{"op":"test","path":"/data/z","value":"no"}]`, "", "the server rejected our request due to an error in our request"},
		{types.JSONPatchType, `{`, "", "invalid JSON patch"},
		{types.MergePatchType, `{"metadata":{"name":"b"}}`, "", "the name of the object (b) does not match the name on the URL (a)"},
		{types.MergePatchType, `{"metadata":{"resourceVersion":"1"}}`, "", "the object has been modified"},
	} {
		opts := metav1.PatchOptions{}
		if tc.kind == types.ApplyYAMLPatchType {
			opts.FieldManager = "test"
		}
		cm, err := cms.Patch(t.Context(), "a", tc.kind, []byte(tc.body), opts)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) || apierrors.IsInternalError(err) {
				t.Errorf("%s %s: got error %v, want %q", tc.kind, tc.body, err, tc.err)
			}
		case err != nil:
			t.Errorf("%s %s: %v", tc.kind, tc.body, err)
		case fmt.Sprint(cm.Data) != tc.want:
			t.Errorf("%s %s: got %v, want %s", tc.kind, tc.body, cm.Data, tc.want)
		}
	}
}

func TestServerSideApply(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	apply := func(manager, key, value string, force bool) (*corev1.ConfigMap, error) {
		return cms.Apply(t.Context(), applycorev1.ConfigMap("a", "default").WithData(map[string]string{key: value}), metav1.ApplyOptions{FieldManager: manager, Force: force})
	}
	cm, err := apply("one", "k", "1", false)
	if err != nil {
		t.Fatal(err)
	}
	again, err := apply("one", "k", "1", false)
	if err != nil || again.ResourceVersion != cm.ResourceVersion {
		t.Errorf("applying the same again: %v, %s then %s", err, cm.ResourceVersion, again.ResourceVersion)
	}
	_, err = apply("two", "k", "2", false)
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `Apply failed with 1 conflict: conflict with "one": .data.k`) {
		t.Errorf("conflict: %v", err)
	}
	cm, err = apply("two", "k", "2", true)
	if err != nil || cm.Data["k"] != "2" {
		t.Errorf("forced: %v %v", cm, err)
	}
	cm, err = apply("two", "j", "3", false)
	if err != nil || fmt.Sprint(cm.Data) != "map[j:3]" {
		t.Errorf("a field no longer applied stays: %v %v", cm.Data, err)
	}
}

func TestFinalizersAndPropagation(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	cm := configMap("a", nil)
	cm.Finalizers = []string{"example.com/hold"}
	if _, err := cms.Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cms.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	held, err := cms.Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || held.DeletionTimestamp == nil {
		t.Fatalf("held object: %+v %v", held, err)
	}
	held.Finalizers = nil
	if _, err := cms.Update(t.Context(), held, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Get(t.Context(), "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("object remains after its last finalizer: %v", err)
	}
	for policy, want := range map[metav1.DeletionPropagation]string{
		metav1.DeletePropagationForeground: "[foregroundDeletion]", metav1.DeletePropagationOrphan: "[orphan]",
	} {
		name := strings.ToLower(string(policy))
		cms.Create(t.Context(), configMap(name, nil), metav1.CreateOptions{})
		cms.Delete(t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &policy})
		cm, err := cms.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || fmt.Sprint(cm.Finalizers) != want {
			t.Errorf("%s: finalizers %v, %v", policy, cm.Finalizers, err)
		}
	}
}

func TestDeleteCollection(t *testing.T) {
	s := newServer(t, nil)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	for _, n := range []string{"a", "b", "c"} {
		cms.Create(t.Context(), configMap(n, nil), metav1.CreateOptions{})
	}
	err := cms.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "n in (a,b)", FieldSelector: "metadata.name!=b"})
	if err != nil {
		t.Fatal(err)
	}
	l, _ := cms.List(t.Context(), metav1.ListOptions{LabelSelector: "n"})
	if len(l.Items) != 2 || l.Items[0].Name != "b" {
		t.Errorf("left: %v", l.Items)
	}
}

func TestStrictFields(t *testing.T) {
	s := newServer(t, nil)
	cms := dyn(t, s).Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default")
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "a"}, "spek": int64(1)}}
	_, err := cms.Create(t.Context(), u, metav1.CreateOptions{FieldValidation: "Strict"})
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `strict decoding error: unknown field "spek"`) {
		t.Errorf("strict: %v", err)
	}
	if _, err = cms.Create(t.Context(), u, metav1.CreateOptions{FieldValidation: "Warn"}); err != nil {
		t.Errorf("warn: %v", err)
	}
}

// TestPatchesKeepManagedFields: a merge works without them, but they stay, and can be reset.
func TestPatchesKeepManagedFields(t *testing.T) {
	c := typed(t, newServer(t, nil)).CoreV1().ConfigMaps("default")
	if _, err := c.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Data: map[string]string{"a": "1"}}, metav1.CreateOptions{FieldManager: "x"}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind  types.PatchType
		patch string
		want  string
	}{
		{types.MergePatchType, `{"data":{"b":"2"}}`, "x y"},
		{types.StrategicMergePatchType, `{"data":{"c":"3"}}`, "x y"},
		{types.MergePatchType, `{"metadata":{"managedFields":null},"data":{"c":"4"}}`, "x y"},
		{types.JSONPatchType, `[{"op":"test","path":"/metadata/managedFields/0/manager","value":"x"},{"op":"add","path":"/data/d","value":"5"}]`, "x y"},
		{types.MergePatchType, `{"metadata":{"managedFields":[{}]}}`, ""},
	} {
		m, err := c.Patch(t.Context(), "m", tc.kind, []byte(tc.patch), metav1.PatchOptions{FieldManager: "y"})
		if err != nil {
			t.Fatalf("%s: %v", tc.patch, err)
		}
		var got []string
		for _, e := range m.ManagedFields {
			got = append(got, e.Manager)
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%s: managers %q, want %q", tc.patch, s, tc.want)
		}
	}
}
