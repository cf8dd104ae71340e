package customresource

import (
	"errors"
	"fmt"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/skiff-project/skiff/api"
)

// Coerce does to a decoded object what decoding into a Go type would: it drops
// what the schema does not have and checks the metadata. With report it names
// what it dropped.
func (v *edition) Coerce(obj api.Object, report bool) (unknown []string, err error) {
	return v.coerce(obj, report, false)
}

// coerce is Coerce; stored objects are repaired rather than refused.
func (v *edition) coerce(obj api.Object, report, stored bool) (unknown []string, err error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("a custom resource is a %T", obj)
	}
	for _, f := range []string{"kind", "apiVersion"} {
		if _, _, err := unstructured.NestedString(u.Object, f); err != nil {
			return nil, err
		}
	}
	kind, apiVersion := u.GetKind(), u.GetAPIVersion()
	meta, found, unknown, err := objectmeta.GetObjectMetaWithOptions(u.Object, objectmeta.ObjectMetaOptions{DropMalformedFields: stored, ReturnUnknownFieldPaths: report})
	if err != nil {
		return nil, err
	}
	s, err := v.structural()
	if err != nil {
		return nil, err
	}
	if gvk := u.GroupVersionKind(); gvk == v.kind {
		if !v.d.Outline.Spec.PreserveUnknownFields {
			unknown = append(unknown, pruning.PruneWithOptions(u.Object, s, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: report})...)
			defaulting.PruneNonNullableNullsWithoutDefaults(u.Object, s)
		}
		bad, paths := objectmeta.CoerceWithOptions(nil, u.Object, s, false, objectmeta.CoerceOptions{DropInvalidFields: stored, ReturnUnknownFieldPaths: report})
		if bad != nil {
			return nil, bad
		}
		unknown = append(unknown, paths...)
		if stored && meta.Generation == 0 {
			meta.Generation = 1
		}
	}
	if kind != "" {
		u.SetKind(kind)
	}
	if apiVersion != "" {
		u.SetAPIVersion(apiVersion)
	}
	if found {
		return unknown, objectmeta.SetObjectMeta(u.Object, meta)
	}
	return unknown, nil
}

func (v *edition) setDefaults(obj api.Object) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok || u.GroupVersionKind() != v.kind {
		return
	}
	if s, err := v.structural(); err == nil {
		defaulting.Default(u.Object, s)
	}
}

// Decode implements api.Codec: any version's stored JSON becomes an object of
// this version.
func (v *edition) Decode(value []byte) (api.Object, error) {
	u, err := v.read(value)
	if err != nil {
		return nil, err
	}
	return v.d.convert(u, v)
}

// DecodeAll implements api.BatchCodec: a conversion webhook is asked once.
func (v *edition) DecodeAll(values [][]byte) ([]api.Object, error) {
	us := make([]*unstructured.Unstructured, len(values))
	changed := make([]bool, len(values))
	for i, value := range values {
		u, err := v.read(value)
		if err != nil {
			return nil, err
		}
		us[i], changed[i] = u, u.GroupVersionKind() != v.kind
	}
	if err := v.d.allTo(us, v.out.Name); err != nil {
		return nil, err
	}
	out := make([]api.Object, len(us))
	for i, u := range us {
		if changed[i] {
			if _, err := v.Coerce(u, false); err != nil {
				return nil, err
			}
		}
		out[i] = u
	}
	return out, nil
}

// read reads stored JSON as the version it is of.
func (v *edition) read(value []byte) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(value); err != nil {
		return nil, err
	}
	from := v.d.versions[u.GroupVersionKind().Version]
	if from == nil {
		return nil, fmt.Errorf("request to convert CR from an invalid group/version: %s", u.GetAPIVersion())
	}
	if _, err := from.coerce(u, false, true); err != nil {
		return nil, err
	}
	from.setDefaults(u)
	return u, nil
}

// Encode implements api.Codec: the JSON of the storage version. It leaves obj alone.
func (v *edition) Encode(obj api.Object) ([]byte, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("a custom resource is a %T", obj)
	}
	if v != v.d.storage {
		var err error
		if u, err = v.d.convert(u.DeepCopy(), v.d.storage); err != nil {
			return nil, err
		}
	}
	rv, link := u.GetResourceVersion(), u.GetSelfLink()
	u.SetResourceVersion("")
	u.SetSelfLink("")
	data, err := u.MarshalJSON()
	if rv != "" {
		u.SetResourceVersion(rv)
	}
	if link != "" {
		u.SetSelfLink(link)
	}
	return data, err
}

// convert is To, followed by fitting the object to its new version.
func (d *Definition) convert(u *unstructured.Unstructured, to *edition) (*unstructured.Unstructured, error) {
	if u.GroupVersionKind() == to.kind {
		return u, nil
	}
	out, err := d.To(u, to.out.Name)
	if err == nil {
		_, err = to.Coerce(out, false)
	}
	return out, err
}

// Unread is a custom resource whose definition nobody looks at: its objects
// are read as they are stored, to be counted.
func Unread(group, plural string) *api.Resource {
	return &api.Resource{
		Group: group, Name: plural, Namespaced: true, StoragePrefix: group + "/" + plural, Codec: asStored{},
		Versions: []api.Version{{Name: "v1", New: func() api.Object { return &unstructured.Unstructured{Object: map[string]any{}} }}},
	}
}

type asStored struct{}

// Decode implements api.Codec.
func (asStored) Decode(value []byte) (api.Object, error) {
	u := &unstructured.Unstructured{}
	return u, u.UnmarshalJSON(value)
}

// Encode implements api.Codec; nobody writes so.
func (asStored) Encode(api.Object) ([]byte, error) {
	return nil, errors.New("a custom resource is written by its definition's rules only")
}
