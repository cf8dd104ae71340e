// Package patch applies JSON patches, JSON merge patches and strategic merge
// patches to objects. Errors are API errors with upstream's texts. Every
// patch is bounded in its number of operations and in how much it may copy.
package patch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// MaxOperations bounds a JSON patch.
const MaxOperations = 10000

// The library's only setting is a variable; this is upstream's server's value.
var _ = func() bool { jsonpatch.AccumulatedCopySizeLimit = 3 * 1024 * 1024 * 2; return true }()

type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

// JSON applies an RFC 6902 patch to a JSON document. With strict set, unknown
// and duplicate fields of the patch itself are reported beside the result.
func JSON(doc, patch []byte, strict bool) (out []byte, strictErrs []error, err error) {
	if !json.Valid(patch) {
		return nil, nil, badPatch()
	}
	if strict {
		var ops []operation
		if strictErrs, err = kjson.UnmarshalStrict(patch, &ops); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		for i, e := range strictErrs {
			strictErrs[i] = fmt.Errorf("json patch %v", e)
		}
	}
	ops, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if len(ops) > MaxOperations {
		return nil, nil, apierrors.NewRequestEntityTooLargeError(
			fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", MaxOperations, len(ops)))
	}
	out, err = apply(ops, doc)
	if err != nil {
		return nil, nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return out, strictErrs, nil
}

func badPatch() error { return apierrors.NewBadRequest("invalid JSON patch") }

// apply guards against the library's panics on odd but well-formed patches.
func apply(ops jsonpatch.Patch, doc []byte) (out []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cannot apply patch: %v", r)
		}
	}()
	return ops.Apply(doc)
}

// Merge applies an RFC 7386 patch to a JSON document.
func Merge(doc, patch []byte, strict bool) (out []byte, strictErrs []error, err error) {
	if strict {
		if !json.Valid(patch) {
			return nil, nil, badPatch()
		}
		if strictErrs, err = kjson.UnmarshalStrict(patch, &map[string]any{}); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
	}
	out, err = jsonpatch.MergePatch(doc, patch)
	if errors.Is(err, jsonpatch.ErrBadJSONPatch) {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	return out, strictErrs, nil
}

// Strategic applies a strategic merge patch to original and decodes the result
// into into, an empty object of the same Go type, whose struct tags are the
// patch's schema. original is not changed.
func Strategic(original runtime.Object, patch []byte, strict bool, into runtime.Object) (strictErrs []error, err error) {
	doc, err := runtime.DefaultUnstructuredConverter.ToUnstructured(original)
	if err != nil {
		return nil, err
	}
	if !json.Valid(patch) {
		return nil, badPatch()
	}
	m := map[string]any{}
	if strict {
		strictErrs, err = kjson.UnmarshalStrict(patch, &m)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(patch, &m)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	merged, err := strategicMerge(doc, m, into)
	if err != nil {
		return nil, strategicError(err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, into, strict); err != nil {
		strictErr, ok := runtime.AsStrictDecodingError(err)
		if !ok {
			return nil, Invalid(fmt.Sprintf("%+v", m), err)
		}
		strictErrs = append(strictErrs, strictErr.Errors()...)
	}
	return strictErrs, nil
}

// strategicMerge guards against the library's panics, as on a null in a list.
func strategicMerge(doc, patch map[string]any, schema any) (merged map[string]any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cannot apply patch: %v", r)
		}
	}()
	return strategicpatch.StrategicMergeMapPatch(doc, patch, schema)
}

// Text shows a strategic patch in an error as upstream does.
func Text(patch []byte) string {
	m := map[string]any{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(patch, &m); err != nil {
		return string(patch)
	}
	return fmt.Sprintf("%+v", m)
}

// Invalid is the answer to a patch whose result is no valid object.
func Invalid(value string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), value, err.Error())})
}

func strategicError(err error) error {
	if errors.Is(err, mergepatch.ErrBadJSONDoc) || errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList) ||
		errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys) || errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList) ||
		errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat) {
		return apierrors.NewBadRequest(err.Error())
	}
	if errors.Is(err, mergepatch.ErrNoListOfLists) || errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList) {
		return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
}
