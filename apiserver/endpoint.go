package apiserver

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/discovery"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/registry"
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
	storedV  string // apiVersion of stored bytes
	subs     map[string]*api.Subresource
	// formNames name this endpoint's encodings among those shared per version; true is protobuf.
	formNames map[bool]string
	fields    *managed.Type
}

func key3(group, version, resource string) string { return group + "/" + version + "/" + resource }

func (s *Server) buildEndpoints() error {
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
			k := key3(res.Group, e.ver.Name, res.Name)
			if s.endpoints[k] != nil {
				return fmt.Errorf("resource %s is listed twice", k)
			}
			s.endpoints[k] = e
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
			if e.fields != nil && res != e.res && !res.Virtual && res.StoragePrefix == e.res.StoragePrefix {
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
		subs: map[string]*api.Subresource{},
	}
	e.apiV = e.kind.GroupVersion().String()
	e.formNames = map[bool]string{false: e.apiV + ";json", true: e.apiV + ";protobuf"}
	if reg != nil {
		e.storedV = reg.Kind().GroupVersion().String()
		e.verbatim = ver.FromStorage == nil
		e.fields = &managed.Type{Resource: res, Version: ver, Kind: e.kind, Stored: reg.Kind(), New: reg.New}
	}
	for i := range res.Subresources {
		e.subs[res.Subresources[i].Name] = &res.Subresources[i]
	}
	return e
}

// registryConfig adds what single resources need besides their strategy.
func (s *Server) registryConfig(res *api.Resource) registry.Config {
	c := registry.Config{Resource: res, Store: s.cfg.Store, Clock: s.cfg.Clock}
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

func (e *endpoint) serves(verb string) bool { return slices.Contains(discovery.Verbs(e.res), verb) }

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
