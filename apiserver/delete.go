package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/object/codec"
)

// deleteOptions reads DeleteOptions from the body or, without one, the query.
func (s *Server) deleteOptions(c *call) (*metav1.DeleteOptions, error) {
	body, err := readBody(c.req)
	if err != nil {
		return nil, err
	}
	opts := &metav1.DeleteOptions{}
	if len(body) > 0 {
		media, err := inputMedia(c.req)
		if err != nil {
			return nil, err
		}
		want := schema.GroupVersionKind{Group: metav1.GroupName, Version: "v1", Kind: "DeleteOptions"}
		// Clients send DeleteOptions of any group's version; all are one type.
		if want, err = deleteOptionsKind(media, body, want); err != nil {
			return nil, err
		}
		obj, _, err := s.codec.Decode(codec.Request{Media: media, Body: body, Want: want}, opts)
		if err != nil && media == codec.JSON {
			if bad := json.Unmarshal(body, opts); bad != nil {
				err = bad
			}
		}
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if obj != opts {
			return nil, apierrors.NewBadRequest("decoded object cannot be converted to DeleteOptions")
		}
	} else if err := queryDeleteOptions(c, opts); err != nil {
		return nil, err
	}
	if errs := metavalidation.ValidateDeleteOptions(opts); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}, "", errs)
	}
	if c.info.Resource == "jobs" && c.info.Group == "batch" && opts.PropagationPolicy == nil && opts.OrphanDependents == nil { //nolint:staticcheck // still part of the API
		c.warn("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning")
	}
	if v := opts.IgnoreStoreReadErrorWithClusterBreakingPotential; v != nil && *v {
		return nil, apierrors.NewConflict(c.ep.gr, c.info.Name, errors.New("unsafe deletion is not allowed because the object is decodable from storage"))
	}
	opts.TypeMeta = optionsMeta("DeleteOptions")
	c.audited(opts)
	return opts, nil
}

// deleteOptionsKind returns the kind the body claims, if it is DeleteOptions of some group.
func deleteOptionsKind(media string, body []byte, want schema.GroupVersionKind) (schema.GroupVersionKind, error) {
	gvk, err := codec.PeekKind(media, body)
	if err != nil {
		return want, apierrors.NewBadRequest(err.Error())
	}
	switch {
	case gvk.Kind == "" && gvk.Version == "":
		return want, nil
	case gvk.Kind != "DeleteOptions" && gvk.Kind != "":
		return want, apierrors.NewBadRequest(fmt.Sprintf("no kind %q is registered for version %q in scheme %q", gvk.Kind, metav1.GroupName+"/v1", "pkg/runtime/scheme.go:111"))
	}
	gvk.Kind = "DeleteOptions"
	return gvk, nil
}

func queryDeleteOptions(c *call, opts *metav1.DeleteOptions) error {
	opts.DryRun = c.query["dryRun"]
	var err error
	if opts.GracePeriodSeconds, err = request.Int(c.query, "gracePeriodSeconds"); err != nil {
		return err
	}
	if p := c.query.Get("propagationPolicy"); p != "" {
		policy := metav1.DeletionPropagation(p)
		opts.PropagationPolicy = &policy
	}
	if c.query.Has("orphanDependents") {
		v, err := request.Bool(c.query, "orphanDependents")
		if err != nil {
			return err
		}
		opts.OrphanDependents = &v //nolint:staticcheck // still part of the API
	}
	if uid := c.query.Get("uid"); uid != "" {
		u := types.UID(uid)
		opts.Preconditions = &metav1.Preconditions{UID: &u}
	}
	return nil
}

func (s *Server) delete(c *call) {
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	opts, err := s.deleteOptions(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	it, deleted, err := c.ep.reg.Delete(c.ctx(), s.writeOf(c, func(api.Object) runtime.Object { return opts }, len(opts.DryRun) > 0), opts)
	if err != nil {
		s.fail(c, err)
		return
	}
	if !deleted {
		code := http.StatusOK
		if o := opts.OrphanDependents; o != nil && !*o { //nolint:staticcheck // still part of the API
			code = http.StatusAccepted
		}
		s.writeItem(c, out, code, it)
		return
	}
	if c.ep.res.AnswersDeleted() {
		s.writeItem(c, out, http.StatusOK, it)
		return
	}
	st := &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{Name: c.info.Name, Group: c.info.Group, Kind: c.info.Resource},
	}
	if obj, err := c.ep.reg.Object(it); err == nil {
		st.Details.UID = obj.GetUID()
	}
	out.shape = shapePlain
	s.writeObject(c, out, http.StatusOK, st)
}

func (s *Server) deleteCollection(c *call) {
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	o, err := parseListOptions(c)
	if err == nil && c.ep.res.Namespaced && c.info.Namespace == "" {
		err = methodNotAllowed(c)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	opts, err := s.deleteOptions(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	page, err := c.ep.reg.List(c.ctx(), o.ListOptions)
	if err != nil {
		s.fail(c, err)
		return
	}
	if err := s.deletePage(c, page, opts); err != nil {
		s.fail(c, err)
		return
	}
	s.writePage(c, out, page)
}

// deletePage deletes the objects of a page; those gone meanwhile are fine.
func (s *Server) deletePage(c *call, page registry.Page, opts *metav1.DeleteOptions) error {
	w := s.writeOf(c, func(api.Object) runtime.Object { return opts }, len(opts.DryRun) > 0)
	ctx := context.WithoutCancel(c.ctx())
	for _, kv := range page.Items {
		w.Namespace, w.Name = c.ep.reg.Split(kv.Key)
		own := opts.DeepCopy()
		if _, _, err := c.ep.reg.Delete(ctx, w, own); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
