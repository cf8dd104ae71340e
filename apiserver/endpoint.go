package apiserver

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/api/apiregistration"
	"github.com/skiff-project/skiff/api/resource"
	"github.com/skiff-project/skiff/apiserver/asjson"
	"github.com/skiff-project/skiff/apiserver/claimstatus"
	"github.com/skiff-project/skiff/apiserver/discovery"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/object/codec"
)

// endpoint is one resource in one served version.
type endpoint struct {
	res  *api.Resource
	ver  *api.Version
	reg  *registry.Registry // nil for virtual resources
	kind schema.GroupVersionKind
	gr   schema.GroupResource
	apiV string // "v1", "apps/v1"
	// verbatim: the stored bytes are this version's own, so protobuf responses copy them.
	verbatim bool
	asJSON   asjson.Writer
	storedV  string // apiVersion of stored bytes
	subs     map[string]*api.Subresource
	// formNames name this endpoint's encodings among those shared per version; true is protobuf.
	formNames map[bool]string
	fields    *managed.Type
	codec     *codec.Codec    // of this endpoint's bodies; nil: the built-in types'
	gone      <-chan struct{} // closed when the endpoint is served no more; nil: never
	// terminating says that no object may be created any more.
	terminating bool
	// converts says that another server may be asked for another version of an object.
	converts bool
}

// custom tells whether the objects are custom resources: JSON, with no protobuf form.
func (e *endpoint) custom() bool { return e.res.Codec != nil }

func key3(group, version, resource string) string { return group + "/" + version + "/" + resource }

func (s *Server) buildEndpoints() error {
	// Groups whose types client-go does not know.
	own := map[string]func() *runtime.Scheme{apiextensions.Group: apiextensions.Scheme, apiregistration.Group: apiregistration.Scheme}
	s.endpoints = map[string]*endpoint{}
	s.stores = map[string]*endpoint{}
	for _, res := range s.cfg.Resources {
		var reg *registry.Registry
		if !res.Virtual {
			var err error
			if reg, err = registry.New(s.registryConfig(res)); err != nil {
				return err
			}
		}
		for i := range res.Versions {
			e := newEndpoint(res, &res.Versions[i], reg)
			if e.verbatim {
				e.asJSON = asjson.FromProtobuf(&s.plans, e.ver.New)
			}
			k := key3(res.Group, e.ver.Name, res.Name)
			if s.endpoints[k] != nil {
				return fmt.Errorf("resource %s is listed twice", k)
			}
			s.endpoints[k] = e
			if types := own[res.Group]; types != nil {
				e.fields.Scheme = types()
				e.codec = codec.New(e.fields.Scheme)
			}
			if gr := res.Group + "/" + res.Name; s.stores[gr] == nil || e.verbatim {
				s.stores[gr] = e
			}
		}
	}
	s.linkSharing()
	return nil
}

// linkSharing tells endpoints which other resources show the same stored objects.
func (s *Server) linkSharing() {
	for _, e := range s.endpoints {
		for _, res := range s.cfg.Resources {
			if e.fields != nil && res != e.res && !res.Virtual && res.Prefix() == e.res.Prefix() {
				e.fields.Sharing = append(e.fields.Sharing, res)
			}
		}
	}
}

func newEndpoint(res *api.Resource, ver *api.Version, reg *registry.Registry) *endpoint {
	e := &endpoint{
		res: res, ver: ver, reg: reg,
		kind: schema.GroupVersionKind{Group: res.Group, Version: ver.Name, Kind: res.Kind},
		gr:   schema.GroupResource{Group: res.Group, Resource: res.Name},
		subs: map[string]*api.Subresource{}, asJSON: asjson.Never,
	}
	e.apiV = e.kind.GroupVersion().String()
	e.formNames = map[bool]string{false: e.apiV + ";json" + res.Revision, true: e.apiV + ";protobuf"}
	if reg != nil {
		e.storedV = reg.Kind().GroupVersion().String()
		e.verbatim = ver.FromStorage == nil && res.Codec == nil
		if res.Codec != nil {
			e.asJSON = asjson.Stored(res.Codec, e.apiV)
		}
		e.fields = &managed.Type{Resource: res, Version: ver, Kind: e.kind, Stored: reg.Kind(), New: reg.New}
	}
	for i := range res.Subresources {
		e.subs[res.Subresources[i].Name] = &res.Subresources[i]
	}
	return e
}

// registryConfig adds what single resources need besides their strategy.
func (s *Server) registryConfig(res *api.Resource) registry.Config {
	c := registry.Config{Resource: res, Store: s.cfg.Store, Clock: s.cfg.Clock, Encryption: s.cfg.Encryption, TTL: s.cfg.EventTTL}
	c.Counted = s.storage.Of(schema.GroupResource{Group: res.Group, Resource: res.Name})
	if res.Group == apiextensions.Group {
		// The first request to delete a definition only begins it: its instances go first.
		c.MayRemove = func(obj api.Object) bool { return obj.GetDeletionTimestamp() != nil }
		c.Marked = s.beginDeletion
	}
	if res.Group == resource.Group {
		c.Validate = func(ctx context.Context, obj, old api.Object) field.ErrorList {
			return append(resource.CheckAdminAccess(obj, old, s.reader), claimstatus.Check(ctx, s.cfg.Authorizer, obj, old)...)
		}
	}
	if res.Group != "" {
		return c
	}
	switch res.Name {
	case "services":
		c.Begin, c.Deleted = s.services.Begin, s.services.Deleted
	case "namespaces":
		c.MayRemove, c.Marked = namespaceEmpty, terminating
	}
	return c
}

func (s *Server) beginDeletion(obj api.Object) {
	if crd, ok := obj.(*apiextensions.CRD); ok {
		crd.DeletionGracePeriodSeconds = nil
		apiextensions.BeginDeletion(crd, metav1.NewTime(s.cfg.Clock.Now().Truncate(time.Second)))
	}
}

// serves tells whether a verb is answered; of a custom resource being deleted
// more are than discovery tells.
func (e *endpoint) serves(verb string) bool {
	return e.custom() || slices.Contains(discovery.Verbs(e.res), verb)
}

// served converts a stored object to this endpoint's version and sets its kind.
func (e *endpoint) served(obj api.Object) (api.Object, error) {
	if e.ver.FromStorage != nil {
		var err error
		if obj, err = e.ver.FromStorage(obj); err != nil {
			return nil, err
		}
	}
	obj.GetObjectKind().SetGroupVersionKind(e.kind)
	return obj, nil
}

// stored converts an object of this endpoint's version to the stored type.
func (e *endpoint) stored(obj api.Object) (api.Object, error) {
	if e.ver.ToStorage == nil {
		return obj, nil
	}
	return e.ver.ToStorage(obj)
}
