package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/listing"
	"github.com/skiff-project/skiff/apiserver/partial"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/reply"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

func (s *Server) get(c *call) {
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	it, err := c.ep.reg.Get(c.ctx(), c.info.Namespace, c.info.Name, c.query.Get("resourceVersion"))
	if err != nil {
		s.fail(c, err)
		return
	}
	s.writeItem(c, out, 200, it)
}

// writeItem sends one stored object.
func (s *Server) writeItem(c *call, out output, code int, it registry.Item) {
	data, err := s.encodeItem(c, out, it)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.write(c, out.media, code, data)
}

// encodeItem encodes one stored object as the client wants it.
func (s *Server) encodeItem(c *call, out output, it registry.Item) ([]byte, error) {
	if it.KV != nil && out.media == codec.JSON && !out.pretty && out.shape == shapePlain {
		if data, ok := c.ep.asJSON(nil, it.KV, it.ResourceVersion, it.Fresh); ok && c.ep.custom() {
			return append(data, '\n'), nil
		} else if ok {
			return append(codec.JSONWithKind(c.ep.kind.Kind, c.ep.apiV, data), '\n'), nil
		}
	}
	if it.KV != nil && out.media == codec.Protobuf {
		raw := wire.Raw(it.KV.Value)
		switch {
		case raw == nil:
		case out.shape == shapePartial && !out.list:
			return wire.AppendObject(nil, partial.APIVersion(out.version), "PartialObjectMetadata", wire.MetadataOnly(raw), it.ResourceVersion), nil
		case out.shape == shapePlain && c.ep.verbatim:
			return wire.AppendObject(nil, c.ep.apiV, c.ep.kind.Kind, raw, it.ResourceVersion), nil
		}
	}
	obj, err := c.ep.reg.Object(it)
	if err != nil {
		return nil, err
	}
	return s.encodeOne(c, out, obj)
}

func (s *Server) encodeOne(c *call, out output, obj api.Object) (_ []byte, err error) {
	switch out.shape {
	case shapeTable:
		t, err := s.table(c, out, []api.Object{obj})
		if err != nil {
			return nil, err
		}
		t.ResourceVersion = obj.GetResourceVersion()
		return encodeObject(out, t)
	case shapePartial:
		if out.list {
			return nil, notShaped(c, "PartialObjectMetadataList, but the requested object is not a list", c.ep.kind.Kind)
		}
		return encodeObject(out, partial.Of(out.version, obj))
	}
	if obj, err = c.ep.served(obj); err != nil {
		return nil, err
	}
	return encodeObject(out, obj)
}

// listOptions are the query parameters of list, watch and deletecollection.
type listOptions struct {
	registry.ListOptions
	watch       bool
	bookmarks   bool
	sendInitial *bool
	timeout     *int64 // seconds
}

func parseListOptions(c *call) (listOptions, error) {
	q := c.query
	o := listOptions{watch: c.info.Verb == "watch"}
	o.Namespace = c.info.Namespace
	o.Fields = c.info.Fields
	o.ResourceVersion = q.Get("resourceVersion")
	o.Match = metav1.ResourceVersionMatch(q.Get("resourceVersionMatch"))
	o.Continue = q.Get("continue")
	var err error
	if o.Labels, err = labels.Parse(q.Get("labelSelector")); err != nil {
		return o, apierrors.NewBadRequest(err.Error())
	}
	if err := c.ep.reg.CheckFields(o.Fields); err != nil {
		return o, err
	}
	if o.bookmarks, err = request.Bool(q, "allowWatchBookmarks"); err != nil {
		return o, err
	}
	if q.Has("sendInitialEvents") {
		v, err := request.Bool(q, "sendInitialEvents")
		if err != nil {
			return o, err
		}
		o.sendInitial = &v
	}
	if limit, err := request.Int(q, "limit"); err != nil {
		return o, err
	} else if limit != nil {
		o.Limit = *limit
	}
	if o.timeout, err = request.Int(q, "timeoutSeconds"); err != nil {
		return o, err
	}
	return o, o.validate()
}

func (o *listOptions) validate() error {
	in := &internalversion.ListOptions{
		Watch: o.watch, ResourceVersion: o.ResourceVersion, ResourceVersionMatch: o.Match, Continue: o.Continue, SendInitialEvents: o.sendInitial,
	}
	internalversion.SetListOptionsDefaults(in, true)
	if errs := internalvalidation.ValidateListOptions(in, true); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	return nil
}

func (s *Server) list(c *call) {
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	o, err := parseListOptions(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	page, err := c.ep.reg.List(c.ctx(), o.ListOptions)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.writePage(c, out, page)
}

// writePage sends a list; a large one in pieces, while its objects are encoded.
func (s *Server) writePage(c *call, out output, page registry.Page) {
	body := s.body(c, out.media, http.StatusOK)
	rest, err := s.encodePage(c, out, page, body)
	switch {
	case err == nil:
		s.end(c, body, rest)
		return
	case errors.Is(err, reply.ErrGone):
	case body.Begun():
		s.cfg.Log.Error("a list ends early: an object cannot be encoded", "path", c.req.URL.Path, "error", err)
		defer panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
	default:
		s.fail(c, err)
	}
	body.Drop()
}

// encodePage encodes a list. What it returns is left to be sent.
func (s *Server) encodePage(c *call, out output, page registry.Page, body *reply.Body) ([]byte, error) {
	lmeta := wire.ListMeta{ResourceVersion: strconv.FormatInt(page.Revision, 10), Continue: page.Continue, Remaining: page.Remaining}
	stored := out.media == codec.Protobuf && !slices.ContainsFunc(page.Items, func(kv *store.KV) bool { return !wire.IsProtobuf(kv.Value) })
	switch {
	case stored && out.shape == shapePartial && out.list:
		metadata := func(v []byte) []byte { return wire.MetadataOnly(wire.Raw(v)) }
		return listing.Protobuf{APIVersion: partial.APIVersion(out.version), Kind: "PartialObjectMetadataList", Meta: lmeta, Raw: metadata}.Append(body, page.Items)
	case stored && out.shape == shapePlain && c.ep.verbatim:
		return listing.Protobuf{APIVersion: c.ep.apiV, Kind: c.ep.res.List(), Meta: lmeta, Raw: wire.Raw}.Append(body, page.Items)
	case out.media == codec.JSON && !out.pretty && out.shape == shapePlain:
		return s.listJSON(c, lmeta, page.Items, body)
	}
	lm := metav1.ListMeta{ResourceVersion: lmeta.ResourceVersion, Continue: lmeta.Continue, RemainingItemCount: lmeta.Remaining}
	if out.media == codec.JSON && !out.pretty && out.shape == shapeTable && c.ep.res.RowOrder == nil && c.includes() == metav1.IncludeMetadata {
		head, cells := s.emptyTable(c, out)
		head.ListMeta = lm
		return listing.Table{Head: head, Version: out.version, Each: c.ep.reg.Each, Cells: cells, Plans: &s.plans}.Append(body, page.Items)
	}
	objs := make([]api.Object, 0, len(page.Items))
	if err := c.ep.reg.Each(page.Items, func(obj api.Object) error { objs = append(objs, obj); return nil }); err != nil {
		return nil, err
	}
	return s.encodeMany(c, out, objs, lm)
}

func (s *Server) encodeMany(c *call, out output, objs []api.Object, lm metav1.ListMeta) ([]byte, error) {
	switch out.shape {
	case shapeTable:
		t, err := s.table(c, out, objs)
		if err != nil {
			return nil, err
		}
		t.ListMeta = lm
		return encodeObject(out, t)
	case shapePartial:
		if !out.list {
			return nil, notShaped(c, "PartialObjectMetadata, but the requested object is a list", c.ep.res.List())
		}
		return encodeObject(out, partial.List(out.version, objs, lm))
	}
	l, err := typedList(c.ep, objs, lm)
	if err != nil {
		return nil, err
	}
	return encodeObject(out, l)
}

// typedList makes a list of the endpoint's version from stored objects.
func typedList(e *endpoint, objs []api.Object, lm metav1.ListMeta) (runtime.Object, error) {
	l := e.ver.NewList()
	items := make([]runtime.Object, len(objs))
	for i, o := range objs {
		o, err := e.served(o)
		if err != nil {
			return nil, err
		}
		if !e.custom() {
			o.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		}
		items[i] = o
	}
	if err := meta.SetList(l, items); err != nil {
		return nil, err
	}
	if a, err := meta.ListAccessor(l); err == nil {
		a.SetResourceVersion(lm.ResourceVersion)
		a.SetContinue(lm.Continue)
		a.SetRemainingItemCount(lm.RemainingItemCount)
	}
	l.GetObjectKind().SetGroupVersionKind(e.kind.GroupVersion().WithKind(e.res.List()))
	return l, nil
}

// listJSON assembles a JSON list; what must be decoded is, one object at a time.
func (s *Server) listJSON(c *call, meta wire.ListMeta, items []*store.KV, body *reply.Body) ([]byte, error) {
	lm, err := codec.AppendJSON(nil, metav1.ListMeta{ResourceVersion: meta.ResourceVersion, Continue: meta.Continue, RemainingItemCount: meta.Remaining})
	if err != nil {
		return nil, err
	}
	if c.ep.custom() && meta.Continue == "" { // upstream's lists of custom resources always tell
		lm = append([]byte(`{"continue":"",`), lm[1:]...)
	}
	size := 0
	for _, kv := range items {
		size += len(kv.Value)
	}
	buf := fmt.Appendf(body.Buffer(2*size+256), `{"kind":%q,"apiVersion":%q,"metadata":%s,"items":[`, c.ep.res.List(), c.ep.apiV, lm[:len(lm)-1])
	separator := ""
	decoded := func(obj api.Object) (err error) {
		if buf, err = c.ep.appendBareJSON(append(buf, separator...), obj); err == nil {
			separator = ","
			buf, err = body.Spill(buf)
		}
		return err
	}
	for len(items) > 0 && err == nil {
		if out, ok := c.ep.asJSON(append(buf, separator...), items[0], items[0].ModRevision, false); ok {
			separator, items = ",", items[1:]
			buf, err = body.Spill(out)
			continue
		}
		n := 1
		if !c.ep.verbatim {
			n = len(items) // all at once
		}
		err = c.ep.reg.Each(items[:n], decoded)
		items = items[n:]
	}
	return append(buf, "]}\n"...), err
}

// appendBareJSON appends an object without kind and apiVersion, as list items
// are; custom resources keep theirs.
func (e *endpoint) appendBareJSON(buf []byte, obj api.Object) (_ []byte, err error) {
	if e.ver.FromStorage != nil {
		if obj, err = e.ver.FromStorage(obj); err != nil {
			return nil, err
		}
	}
	if !e.custom() {
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	buf, err = codec.AppendJSON(buf, obj)
	if err != nil {
		return nil, err
	}
	return buf[:len(buf)-1], nil // without the newline
}
