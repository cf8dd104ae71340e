// Package partial shows the metadata of objects as objects of their own:
// PartialObjectMetadata of the API group meta.k8s.io.
package partial

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
)

// APIVersion is the apiVersion of a version of the group.
func APIVersion(version string) string { return metav1.GroupName + "/" + version }

// Of returns obj's metadata in a version of the group. It shares what obj holds.
func Of(version string, obj api.Object) *metav1.PartialObjectMetadata {
	p := &metav1.PartialObjectMetadata{ObjectMeta: *objectMeta(obj)}
	p.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: version, Kind: "PartialObjectMetadata"})
	return p
}

// List is Of for a list.
func List(version string, objs []api.Object, lm metav1.ListMeta) *metav1.PartialObjectMetadataList {
	l := &metav1.PartialObjectMetadataList{ListMeta: lm, Items: make([]metav1.PartialObjectMetadata, len(objs))}
	for i, o := range objs {
		l.Items[i] = *Of(version, o)
	}
	l.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: version, Kind: "PartialObjectMetadataList"})
	return l
}

func objectMeta(obj api.Object) *metav1.ObjectMeta {
	if a, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if m, ok := a.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return m
		}
	}
	meta := &metav1.ObjectMeta{Name: obj.GetName(), Namespace: obj.GetNamespace()}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		if m, ok := u.Object["metadata"].(map[string]any); ok {
			runtime.DefaultUnstructuredConverter.FromUnstructured(m, meta) //nolint:errcheck // Coerce has made it fit
		}
	}
	return meta
}
