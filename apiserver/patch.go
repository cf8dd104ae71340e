package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/patch"
)

var patchTypes = []string{
	string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType),
}

// patchRequest is a parsed PATCH.
type patchRequest struct {
	writeOptions
	kind  types.PatchType
	body  []byte
	force *bool
	// apply configuration, decoded once
	config      map[string]any
	strictError error
}

func (s *Server) parsePatch(c *call) (*patchRequest, error) {
	p := &patchRequest{writeOptions: parseWriteOptions(c)}
	media, _, err := mime.ParseMediaType(c.req.Header.Get("Content-Type"))
	if err == nil {
		for _, t := range patchTypes {
			if t == media {
				p.kind = types.PatchType(t)
			}
		}
	}
	accepted := patchTypes
	if c.ep.custom() { // no strategy is known for the fields of a custom resource
		accepted = slices.DeleteFunc(slices.Clone(patchTypes), func(t string) bool { return t == string(types.StrategicMergePatchType) })
	}
	if p.kind == "" && !c.ep.custom() {
		return nil, generic(http.StatusUnsupportedMediaType, "415: Unsupported Media Type")
	}
	if !slices.Contains(accepted, string(p.kind)) {
		return nil, statusError(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
			"the body of the request was in an unknown format - accepted media types include: "+strings.Join(accepted, ", "))
	}
	if p.body, err = readBody(c.req); err != nil {
		return nil, err
	}
	if err := s.codec.CheckPatch(p.kind, c.ep.ver.New(), p.body); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	c.audit.Patch(func() ([]byte, error) { return yaml.YAMLToJSON(p.body) })
	if c.query.Has("force") {
		v, err := request.Bool(c.query, "force")
		if err != nil {
			return nil, err
		}
		p.force = &v
	}
	if err := p.check("PatchOptions", metavalidation.ValidatePatchOptions(p.options(), p.kind)); err != nil {
		return nil, err
	}
	if p.kind == types.ApplyYAMLPatchType {
		err = p.parseApply()
	}
	return p, err
}

func (p *patchRequest) options() *metav1.PatchOptions {
	return &metav1.PatchOptions{TypeMeta: optionsMeta("PatchOptions"), DryRun: p.dryRun, Force: p.force, FieldManager: p.manager, FieldValidation: p.validation}
}

func (p *patchRequest) parseApply() (err error) {
	if p.config, p.strictError, err = codec.Configuration(p.body, p.strict()); err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	return nil
}

func (s *Server) patch(c *call) {
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	it, created, err := s.patchObject(c, nil, "")
	if err != nil {
		s.fail(c, err)
		return
	}
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	s.writeItem(c, out, code, it)
}

// patchObject is PATCH on the resource or, with a view, on a subresource of it.
func (s *Server) patchObject(c *call, view *api.View, sub string) (registry.Item, bool, error) {
	p, err := s.parsePatch(c)
	if err != nil {
		return registry.Item{}, false, err
	}
	u := registry.Update{Write: s.writeOf(c, p.admitted, p.isDryRun()), View: view, Patched: true, AllowCreate: p.kind == types.ApplyYAMLPatchType && view == nil}
	u.Change = func(ctx context.Context, old api.Object) (api.Object, error) {
		obj, err := s.patched(c, p, sub, old)
		if err != nil {
			return nil, err
		}
		if err := checkNamespace(c, obj); err != nil {
			return nil, err
		}
		if err := checkName(c, obj); err != nil {
			return nil, err
		}
		return s.admitUpdate(ctx, c, p.writeOptions, obj, old)
	}
	if u.AllowCreate {
		if err := s.mayCreateByUpdate(c, view); err != nil {
			u.Change = denyCreate(u.Change, err)
		}
	}
	return c.ep.reg.Update(c.ctx(), u)
}

// patched applies the patch to a stored object and returns the new stored object.
func (s *Server) patched(c *call, p *patchRequest, sub string, old api.Object) (api.Object, error) {
	if p.kind == types.ApplyYAMLPatchType {
		return s.applied(c, p, sub, old)
	}
	if old == nil {
		return nil, apierrors.NewNotFound(c.ep.gr, c.info.Name)
	}
	merge := p.kind != types.JSONPatchType
	current := func() (api.Object, error) {
		obj, err := c.ep.served(old.DeepCopyObject().(api.Object))
		if err == nil && merge { // it reads nothing: half of the object stays out of it
			obj.SetManagedFields(nil)
		}
		return obj, err
	}
	obj, err := current()
	if err != nil {
		return nil, err
	}
	var strictErrs []error
	var value string
	if !merge || c.ep.codec != nil || !p.strict() || !patch.Typed(obj, p.body, p.kind == types.StrategicMergePatchType) {
		doc, err := current()
		if err != nil {
			return nil, err
		}
		obj = c.ep.ver.New()
		if strictErrs, value, err = s.mergePatch(c, p, doc, obj); err != nil {
			return nil, err
		}
	}
	if obj.GetManagedFields() == nil {
		obj.SetManagedFields(old.GetManagedFields()) // as they are also when a client leaves them out
	}
	if len(strictErrs) > 0 && p.strict() {
		if p.validation == metav1.FieldValidationStrict {
			return nil, patch.Invalid(value, runtime.NewStrictDecodingError(strictErrs))
		}
		warnStrict(c, strictErrs)
	}
	stored, err := c.ep.finish(obj)
	if err != nil {
		return nil, err
	}
	return s.managed.Update(c.ep.fields, sub, old, stored, managed.Name(p.manager, c.req.UserAgent())), nil
}

// mergePatch applies a JSON, merge or strategic patch to current and decodes
// the result into obj. value is the offending text for an error.
func (s *Server) mergePatch(c *call, p *patchRequest, current, obj api.Object) (strictErrs []error, value string, err error) {
	if p.kind == types.StrategicMergePatchType {
		strictErrs, err = patch.Strategic(current, p.body, p.strict(), obj)
		return strictErrs, patch.Text(p.body), err
	}
	doc, err := json.Marshal(current)
	if err != nil {
		return nil, "", err
	}
	apply := patch.JSON
	if p.kind == types.MergePatchType {
		apply = patch.Merge
	}
	merged, strictErrs, err := apply(doc, p.body, p.strict())
	if err != nil {
		return nil, "", err
	}
	if len(merged) > 2*MaxBody {
		return nil, "", apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the patched object has %d bytes, limit is %d", len(merged), 2*MaxBody))
	}
	got, gvk, err := s.decode(c.ep, codec.Request{Media: codec.JSON, Strict: p.strict(), Body: merged, Want: c.ep.kind}, obj)
	if err != nil {
		strict, ok := runtime.AsStrictDecodingError(err)
		if !ok {
			return nil, "", patch.Invalid(string(merged), err)
		}
		strictErrs = append(strictErrs, strict.Errors()...)
	}
	if got != obj || *gvk != c.ep.kind {
		return nil, "", patch.Invalid(string(merged), fmt.Errorf("the kind in the data (%s) does not match the expected kind (%s)", gvk, c.ep.kind))
	}
	return strictErrs, string(merged), nil
}

// applied merges an apply configuration into the stored object.
func (s *Server) applied(c *call, p *patchRequest, sub string, old api.Object) (api.Object, error) {
	config := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(p.config)}
	if gvk := config.GroupVersionKind(); gvk.Version != "" && gvk.Kind != "" && gvk.GroupKind() != c.ep.kind.GroupKind() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid object type: %v", gvk))
	}
	creating := old == nil
	if creating {
		old = c.ep.reg.New()
		if c.ep.res.Namespaced && config.GetNamespace() == "" {
			config.SetNamespace(c.info.Namespace)
		}
	}
	obj, err := s.managed.Apply(c.ep.fields, sub, old, config, managed.Apply{Manager: p.manager, Force: p.force != nil && *p.force})
	if status := apierrors.APIStatus(nil); err != nil && !errors.As(err, &status) {
		err = &registry.ClientFault{Message: err.Error()} // a field the schema does not have, for one
	}
	if err == nil && c.ep.ver.Coerce != nil {
		if _, err = c.ep.ver.Coerce(obj, false); err == nil {
			c.ep.ver.Default(obj)
		}
	}
	if err != nil {
		return nil, err
	}
	if p.strictError != nil {
		if p.validation == metav1.FieldValidationStrict {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", p.strictError))
		}
		warnStrict(c, []error{p.strictError})
	}
	if creating && obj.GetName() == "" {
		obj.SetName(c.info.Name)
	}
	return obj, nil
}
