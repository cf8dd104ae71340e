package listing_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/listing"
	"github.com/skiff-project/skiff/apiserver/partial"
	"github.com/skiff-project/skiff/apiserver/reply"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/transcode"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// stored are n objects as the store has them, and as they are when decoded:
// pods, and custom resources between them.
func stored(t *testing.T, n int) (items []*store.KV, objs []api.Object) {
	for i := range n {
		rev := int64(i + 7)
		meta := metav1.ObjectMeta{
			Name: fmt.Sprintf("o-%d", i), Namespace: "default", UID: "u", Labels: map[string]string{"b": "<&>", "a": "1"},
			CreationTimestamp: metav1.NewTime(time.Unix(1700000000, 0).UTC()), Annotations: map[string]string{"text": strings.Repeat("x", i%50)},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1",
				FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:spec":{"f:nodeName":{}}}`)}}},
		}
		pod := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "n"}}
		value, err := wire.Seal("v1", "Pod", pod)
		if err != nil {
			t.Fatal(err)
		}
		obj := api.Object(pod)
		if i%3 == 2 {
			fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
			if err != nil {
				t.Fatal(err)
			}
			obj = &unstructured.Unstructured{Object: fields}
			if value, err = json.Marshal(fields); err != nil {
				t.Fatal(err)
			}
		}
		obj.SetResourceVersion(fmt.Sprint(rev))
		items, objs = append(items, &store.KV{Value: value, ModRevision: rev}), append(objs, obj)
	}
	return items, objs
}

// TestTableIsTheTypesJSON: a table made row by row is what encoding/json says of it as a whole.
func TestTableIsTheTypesJSON(t *testing.T) {
	cells := func(obj api.Object) []any { return []any{obj.GetName(), int64(len(obj.GetLabels())), "<none>"} }
	remaining := int64(12)
	for _, n := range []int{0, 1, 100} {
		items, objs := stored(t, n)
		want := &metav1.Table{
			ListMeta:          metav1.ListMeta{ResourceVersion: "9", Continue: "more", RemainingItemCount: &remaining},
			ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name"}}, Rows: []metav1.TableRow{},
		}
		want.APIVersion, want.Kind = "meta.k8s.io/v1", "Table"
		head := want.DeepCopy()
		var plans transcode.Plans
		table := listing.Table{Head: head, Version: "v1", Cells: cells, Plans: &plans, Each: func(_ []*store.KV, f func(api.Object) error) error {
			for _, obj := range objs {
				if err := f(obj); err != nil {
					return err
				}
			}
			return nil
		}}
		got, err := table.Append(&reply.Body{Keep: true}, items)
		if err != nil {
			t.Fatal(err)
		}
		for _, obj := range objs {
			data, err := json.Marshal(partial.Of("v1", obj))
			if err != nil {
				t.Fatal(err)
			}
			want.Rows = append(want.Rows, metav1.TableRow{Cells: cells(obj), Object: runtime.RawExtension{Raw: data}})
		}
		whole, err := codec.AppendJSON(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(whole) {
			t.Errorf("%d rows: \n%.2000s\nwant\n%.2000s", n, got, whole)
		}
	}
}
