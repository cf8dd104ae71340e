package customresource

import (
	"fmt"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// SameObject checks that a webhook gave back the object it was given.
func SameObject(in, out *unstructured.Unstructured) error {
	for _, f := range []struct{ what, in, out string }{
		{"kind", in.GetKind(), out.GetKind()},
		{"name", in.GetName(), out.GetName()},
		{"namespace", in.GetNamespace(), out.GetNamespace()},
		{"UID", string(in.GetUID()), string(out.GetUID())},
	} {
		if f.in != f.out {
			return fmt.Errorf("must have the same %s: %v != %v", f.what, f.in, f.out)
		}
	}
	return nil
}

// RestoreMetadata gives a converted object the metadata it had: of what the
// webhook says, only labels and annotations count.
func RestoreMetadata(in, out *unstructured.Unstructured) error {
	answer, found := out.Object["metadata"]
	if !found {
		return fmt.Errorf("missing metadata in converted object")
	}
	said, ok := answer.(map[string]any)
	if !ok {
		return fmt.Errorf("invalid metadata of type %T in converted object", answer)
	}
	had, ok := in.Object["metadata"].(map[string]any)
	if !ok && in.Object["metadata"] != nil {
		return fmt.Errorf("invalid metadata of type %T in input object", in.Object["metadata"])
	}
	meta := runtime.DeepCopyJSON(had)
	if meta == nil {
		meta = map[string]any{}
	}
	for _, name := range []string{"labels", "annotations"} {
		if said[name] == nil {
			delete(meta, name)
			continue
		}
		values, err := texts(name, said[name])
		if err != nil {
			return err
		}
		var errs field.ErrorList
		if name == "labels" {
			errs = metavalidation.ValidateLabels(values, field.NewPath("metadata", "labels"))
		} else {
			errs = apivalidation.ValidateAnnotations(values, field.NewPath("metadata", "annotation"))
		}
		if len(errs) > 0 {
			return errs.ToAggregate()
		}
		meta[name] = said[name]
	}
	out.Object["metadata"] = meta
	return nil
}

func texts(name string, value any) (map[string]string, error) {
	m, ok := value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("invalid metadata.%s of type %T in converted object", name, value)
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		if out[k], ok = v.(string); !ok {
			return nil, fmt.Errorf("metadata.%s[%s] must be a string, but is %T in converted object", name, k, v)
		}
	}
	return out, nil
}
