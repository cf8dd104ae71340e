package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/owners"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/object/codec"
)

// writeOptions are the query parameters all writes have.
type writeOptions struct {
	dryRun     []string
	manager    string // field manager
	validation string // Strict, Warn or Ignore
}

func parseWriteOptions(c *call) writeOptions {
	return writeOptions{dryRun: c.query["dryRun"], manager: c.query.Get("fieldManager"), validation: c.query.Get("fieldValidation")}
}

func (o writeOptions) isDryRun() bool { return len(o.dryRun) > 0 }
func (o writeOptions) strict() bool   { return o.validation != metav1.FieldValidationIgnore }

// check refuses bad options; kind is the options' kind for the message.
func (o writeOptions) check(kind string, errs field.ErrorList) error {
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
	}
	return nil
}

func optionsMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{Kind: kind, APIVersion: "meta.k8s.io/v1"}
}

func (o writeOptions) create() *metav1.CreateOptions {
	return &metav1.CreateOptions{TypeMeta: optionsMeta("CreateOptions"), DryRun: o.dryRun, FieldManager: o.manager, FieldValidation: o.validation}
}

func (o writeOptions) update() *metav1.UpdateOptions {
	return &metav1.UpdateOptions{TypeMeta: optionsMeta("UpdateOptions"), DryRun: o.dryRun, FieldManager: o.manager, FieldValidation: o.validation}
}

// admitted are the options admission sees: whatever the verb, those of the create or update it comes to.
func (o writeOptions) admitted(old api.Object) runtime.Object {
	if old == nil {
		return o.create()
	}
	return o.update()
}

// decodeBody decodes a request body of kind want into a new object. Unknown
// and duplicate fields fail or warn as the client asked.
func (s *Server) decodeBody(c *call, o writeOptions, want schema.GroupVersionKind, into runtime.Object) error {
	media, err := inputMedia(c.req)
	if err != nil {
		return err
	}
	body, err := readBody(c.req)
	if err != nil {
		return err
	}
	r := codec.Request{Media: media, Strict: o.strict(), Body: body, Want: want}
	obj, gvk, err := s.decode(c.ep, r, into)
	if err != nil {
		strict, ok := runtime.AsStrictDecodingError(err)
		if !ok || obj == nil || o.validation == metav1.FieldValidationStrict {
			return decodeError(err, want.Kind, gvk, body)
		}
		warnStrict(c, strict.Errors())
	}
	if gvk.GroupVersion() != want.GroupVersion() {
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", gvk.GroupVersion(), want.GroupVersion()))
	}
	if obj != into {
		return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized: the kind in the data (%s) does not match the expected kind (%s)", gvk.Kind, want.Kind))
	}
	if u, ok := obj.(*unstructured.Unstructured); ok && gvk.Kind != want.Kind {
		return apierrors.NewInvalid(schema.GroupKind{Group: want.Group, Kind: gvk.Kind}, u.GetName(), field.ErrorList{
			field.Invalid(field.NewPath("kind"), gvk.Kind, "must be "+want.Kind)})
	}
	obj.GetObjectKind().SetGroupVersionKind(want)
	return nil
}

// decode decodes a body; one of the endpoint's own kind is fitted to its schema.
func (s *Server) decode(ep *endpoint, r codec.Request, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if r.Want != ep.kind || ep.codec == nil {
		return s.codec.Decode(r, into)
	}
	got, gvk, err := ep.codec.Decode(r, into)
	obj, ok := got.(api.Object)
	strict, isStrict := runtime.AsStrictDecodingError(err)
	if !ok || ep.ver.Coerce == nil || err != nil && !isStrict {
		return got, gvk, err
	}
	unknown, bad := ep.ver.Coerce(obj, r.Strict)
	if bad != nil {
		return nil, gvk, bad
	}
	var errs []error
	if isStrict {
		errs = strict.Errors()
	}
	for _, f := range unknown {
		errs = append(errs, fmt.Errorf("unknown field %q", f))
	}
	if len(errs) > 0 {
		return got, gvk, runtime.NewStrictDecodingError(errs)
	}
	return got, gvk, nil
}

// warnStrict sends unknown and duplicate fields as warnings.
func warnStrict(c *call, errs []error) {
	for _, e := range errs {
		text := e.Error()
		text = strings.TrimPrefix(text, "error converting YAML to JSON: ")
		if rest, ok := strings.CutPrefix(text, "yaml: unmarshal errors:\n"); ok {
			for line := range strings.SplitSeq(rest, "\n") {
				c.warn(strings.TrimSpace(line))
			}
			continue
		}
		c.warn(text)
	}
}

func decodeError(err error, kind string, gvk *schema.GroupVersionKind, body []byte) error {
	if gvk != nil && gvk.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", gvk.Kind, gvk.Version, kind, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", kind, err, codec.Summary(body, 30)))
}

// decodeObject decodes, defaults and converts the body of a create or update.
func (s *Server) decodeObject(c *call, o writeOptions) (api.Object, error) {
	obj := c.ep.ver.New()
	if err := s.decodeBody(c, o, c.ep.kind, obj); err != nil {
		return nil, err
	}
	defer c.audited(obj) // with the defaults it gets
	return c.ep.finish(obj)
}

// finish defaults an object of the endpoint's version and makes it the stored type.
func (e *endpoint) finish(obj api.Object) (api.Object, error) {
	if e.ver.Default != nil {
		e.ver.Default(obj)
	}
	stored, err := e.stored(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return stored, nil
}

// admissionRequest describes a write to the plugins.
func (s *Server) admissionRequest(c *call, obj, old api.Object, options runtime.Object, dryRun bool) *admission.Request {
	r := &admission.Request{Attributes: c.info.Attributes(c.user.User), Object: obj, Old: old, Options: options, DryRun: dryRun, Forms: forms{s, c}}
	r.Kind = c.ep.kind
	if c.ep.reg != nil {
		r.Kind = c.ep.reg.Kind()
	}
	if obj != nil && r.Resource == "namespaces" && r.APIGroup == "" && r.Namespace == "" {
		r.Namespace = obj.GetName() // a namespace is in itself, as upstream's admission sees it
	}
	return r
}

// writeOf returns what the registry needs of a request; options go to
// validating admission and, for deletes, to mutating admission too.
func (s *Server) writeOf(c *call, options func(old api.Object) runtime.Object, dryRun bool) registry.Write {
	w := registry.Write{Namespace: c.info.Namespace, Name: c.info.Name, DryRun: dryRun, Warn: c.warn}
	if len(s.cfg.Admission) > 0 || c.info.Group == rbacv1.GroupName {
		w.Check = func(ctx context.Context, obj, old api.Object) error {
			if err := s.guard(ctx, c, obj, old); err != nil {
				return err
			}
			r := s.admissionRequest(c, obj, old, options(old), dryRun)
			if obj == nil {
				// Nothing happens to the object between the two halves of
				// admission of a delete. A deletecollection names no object itself.
				r.Name = old.GetName()
				if err := s.admission.Admit(ctx, r); err != nil {
					return err
				}
			}
			return s.admission.Validate(ctx, r)
		}
	}
	return w
}

func (s *Server) create(c *call) {
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	o := parseWriteOptions(c)
	options := o.create()
	if err := o.check("CreateOptions", metavalidation.ValidateCreateOptions(options)); err != nil {
		s.fail(c, err)
		return
	}
	if c.ep.res.Namespaced && c.info.Namespace == "" {
		s.fail(c, methodNotAllowed(c))
		return
	}
	it, err := s.createObject(c, o, options)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.writeItem(c, out, http.StatusCreated, it)
}

func (s *Server) createObject(c *call, o writeOptions, options *metav1.CreateOptions) (registry.Item, error) {
	if c.info.Name != "" {
		return registry.Item{}, methodNotAllowed(c)
	}
	obj, err := s.decodeObject(c, o)
	if err != nil {
		return registry.Item{}, err
	}
	if err := checkNamespace(c, obj); err != nil {
		return registry.Item{}, err
	}
	obj.SetUID("")
	obj.SetSelfLink("")
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetCreationTimestamp(metav1.Time{})
	version := obj.GetResourceVersion()
	obj.SetResourceVersion("")
	c.warn(owners.Dedup(obj, false))
	obj = s.managed.Update(c.ep.fields, "", nil, obj, managed.Name(o.manager, c.req.UserAgent()))
	r := s.admissionRequest(c, obj, nil, options, o.isDryRun())
	if err := s.admission.Admit(c.ctx(), r); err != nil {
		return registry.Item{}, err
	}
	c.warn(owners.Dedup(obj, true)) // plugins change obj in place
	if c.ep.terminating {
		return registry.Item{}, forbidCreate(c, obj.GetName())
	}
	w := s.writeOf(c, o.admitted, o.isDryRun())
	if check := w.Check; version != "" && version != "0" {
		w.Check = func(ctx context.Context, obj, old api.Object) error { // upstream's store says it: after admission
			if check != nil {
				if err := check(ctx, obj, old); err != nil {
					return err
				}
			}
			return apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
		}
	}
	return c.ep.reg.Create(c.ctx(), w, r.Object)
}

// forbidCreate is the answer while a definition and its objects are being deleted.
func forbidCreate(c *call, name string) error {
	return apierrors.NewForbidden(c.ep.gr, name, errors.New("create not allowed while custom resource definition is terminating"))
}

// checkNamespace compares the body's namespace with the URL's.
func checkNamespace(c *call, obj api.Object) error {
	ns := obj.GetNamespace()
	if !c.ep.res.Namespaced || ns == "" || ns == c.info.Namespace {
		if c.ep.res.Namespaced {
			obj.SetNamespace(c.info.Namespace)
		}
		return nil
	}
	return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
}

// checkName compares the body's name and namespace with the URL's.
func checkName(c *call, obj api.Object) error {
	if obj.GetName() == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", c.info.Name))
	}
	if obj.GetName() != c.info.Name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), c.info.Name))
	}
	return nil
}

func (s *Server) update(c *call) {
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	it, created, err := s.updateObject(c, nil, "")
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

// updateObject is PUT on the resource or, with a view, on a subresource of it.
func (s *Server) updateObject(c *call, view *api.View, sub string) (registry.Item, bool, error) {
	o := parseWriteOptions(c)
	options := o.update()
	if err := o.check("UpdateOptions", metavalidation.ValidateUpdateOptions(options)); err != nil {
		return registry.Item{}, false, err
	}
	body, err := s.decodeObject(c, o)
	if err != nil {
		return registry.Item{}, false, err
	}
	if err := checkNamespace(c, body); err != nil {
		return registry.Item{}, false, err
	}
	if err := checkName(c, body); err != nil {
		return registry.Item{}, false, err
	}
	c.warn(owners.Dedup(body, false))
	manager := managed.Name(o.manager, c.req.UserAgent())
	u := registry.Update{Write: s.writeOf(c, o.admitted, o.isDryRun()), View: view}
	u.Change = func(ctx context.Context, old api.Object) (api.Object, error) {
		obj := body.DeepCopyObject().(api.Object)
		obj = s.managed.Update(c.ep.fields, sub, old, obj, manager)
		return s.admitUpdate(ctx, c, o, obj, old)
	}
	if err := s.mayCreateByUpdate(c, view); err != nil {
		u.Change = denyCreate(u.Change, err)
	}
	return c.ep.reg.Update(c.ctx(), u)
}

// admitUpdate runs mutating admission of an update (or of a create by update).
func (s *Server) admitUpdate(ctx context.Context, c *call, o writeOptions, obj, old api.Object) (api.Object, error) {
	if len(s.cfg.Admission) > 0 {
		r := s.admissionRequest(c, obj, old, o.admitted(old), o.isDryRun())
		if err := s.admission.Admit(ctx, r); err != nil {
			return nil, err
		}
		obj = r.Object
	}
	c.warn(owners.Dedup(obj, true))
	if old == nil && c.ep.terminating {
		return nil, forbidCreate(c, obj.GetName())
	}
	return obj, nil
}

// mayCreateByUpdate tells whether the user may create, for PUT and apply on
// what does not exist.
func (s *Server) mayCreateByUpdate(c *call, view *api.View) error {
	if view != nil {
		return nil
	}
	a := c.info.Attributes(c.user.User)
	a.Verb = "create"
	return s.allowed(c.ctx(), a)
}

func denyCreate(change func(context.Context, api.Object) (api.Object, error), denied error) func(context.Context, api.Object) (api.Object, error) {
	return func(ctx context.Context, old api.Object) (api.Object, error) {
		if old == nil {
			return nil, denied
		}
		return change(ctx, old)
	}
}
