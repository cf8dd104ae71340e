package apiserver

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission"
)

// forms shows the objects of a call to admission in every version they are served in.
type forms struct {
	s *Server
	c *call
}

// Forms implements admission.Shower.
func (f forms) Forms(r *admission.Request) []admission.Form {
	own := f.c.ep
	sub := own.subs[r.Subresource]
	out := []admission.Form{own.form(own, r, sub)}
	for _, ep := range f.s.siblings(f.c) {
		if ep != own && (sub == nil || ep.subs[r.Subresource] != nil) {
			out = append(out, ep.form(own, r, sub))
		}
	}
	return out
}

// siblings are the endpoints that show the same stored objects.
func (s *Server) siblings(c *call) (out []*endpoint) {
	ep := c.ep
	if ep.custom() {
		endpoints := s.customEndpoints(c.ctx(), ep.res.Name, ep.res.Group)
		for _, v := range slices.Sorted(maps.Keys(endpoints)) {
			out = append(out, endpoints[v])
		}
		return out
	}
	if ep.fields == nil {
		return nil
	}
	for _, res := range append([]*api.Resource{ep.res}, ep.fields.Sharing...) {
		for i := range res.Versions {
			out = append(out, s.endpoints[key3(res.Group, res.Versions[i].Name, res.Name)])
		}
	}
	return out
}

// form is how e shows the objects of a request on own. The body of a
// subresource that is no view looks the same everywhere.
func (e *endpoint) form(own *endpoint, r *admission.Request, sub *api.Subresource) admission.Form {
	resource := e.kind.GroupVersion().WithResource(e.res.Name)
	if sub != nil && sub.View == nil || e.reg == nil {
		return r.BodyForm(resource)
	}
	return admission.Form{
		Resource: resource, Kind: e.kind, New: e.ver.New, Default: e.ver.Default,
		Show: func(obj api.Object) (api.Object, error) {
			obj = obj.DeepCopyObject().(api.Object)
			if own.custom() && e != own {
				return own.convert(obj, e)
			}
			return e.served(obj)
		},
		Store: func(obj api.Object) (api.Object, error) {
			if !own.custom() {
				return e.stored(obj.DeepCopyObject().(api.Object))
			}
			obj, err := own.convert(obj.DeepCopyObject().(api.Object), own)
			if err == nil {
				_, err = own.ver.Coerce(obj, false)
			}
			return obj, err
		},
	}
}

// convert changes the version of a custom resource to that of another endpoint of its definition.
func (e *endpoint) convert(obj api.Object, to *endpoint) (api.Object, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("a custom resource is a %T", obj)
	}
	return e.fields.Custom.Convert(u, to.ver.Name)
}
