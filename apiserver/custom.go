package apiserver

import (
	"context"
	"path"
	"slices"
	"sync"

	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/api/customresource"
	"github.com/skiff-project/skiff/api/openapi"
	"github.com/skiff-project/skiff/apiserver/aggregator"
	"github.com/skiff-project/skiff/apiserver/definitions"
	"github.com/skiff-project/skiff/apiserver/discovery"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/store"
)

// customs are the resources stored CustomResourceDefinitions make.
type customs struct {
	*definitions.Table // nil: definitions are not served
	codec              *codec.Codec
	mu                 sync.Mutex
	shown              *shown
}

// shown is everything discovery and OpenAPI show.
type shown struct {
	kvs       []*store.KV
	groups    discovery.Groups
	resources []*api.Resource
}

func (s *Server) openDefinitions() {
	s.customs.codec = codec.Unstructured()
	if ep := s.stores[definitions.Key]; ep != nil {
		s.customs.Table = definitions.New(definitions.Config{
			Store: s.cfg.Store, Encryption: s.cfg.Encryption, Clock: s.cfg.Clock, Log: s.cfg.Log, Registry: ep.reg, Build: s.buildCustom,
			Dial: s.cfg.Dial, Host: s.routes.Route, Body: 4 * MaxBody,
		})
	}
}

// openAggregator reads which versions of API groups other servers answer.
func (s *Server) openAggregator() (err error) {
	ep := s.stores[aggregator.Key]
	if ep == nil {
		return nil
	}
	s.aggregator, err = aggregator.New(aggregator.Config{
		Registry: ep.reg, Local: s.cfg.Resources, Definitions: s.customs.Table, Reader: s.reader,
		Services: s.stores["/services"].reg, Slices: s.stores["discovery.k8s.io/endpointslices"].reg,
		Route: s.routes.Route, Proxy: s.proxy, Certificate: s.cfg.FrontProxy, Metrics: s.metrics.Registry, Clock: s.cfg.Clock, Log: s.cfg.Log,
	})
	return err
}

// countObjects counts the stored objects of every resource.
func (s *Server) countObjects(yield func(schema.GroupResource, int, int64)) {
	for _, ep := range s.stores {
		if ep.reg != nil {
			n, each := ep.reg.Stats()
			yield(ep.gr, n, each)
		}
	}
	if s.customs.Table == nil {
		return
	}
	kvs, _, _ := s.customs.Stored(s.background())
	for _, kv := range kvs {
		gr := schema.ParseGroupResource(path.Base(kv.Key)) // a definition's name
		if reg, err := registry.New(s.registryConfig(customresource.Unread(gr.Group, gr.Resource))); err == nil {
			n, each := reg.Stats()
			yield(gr, n, each)
		}
	}
}

// groups are all that are served, here or by aggregated servers.
func (s *Server) groups() discovery.Groups { return s.aggregator.Groups(s.served().groups) }

// served returns what is served here now; the same pointer while nothing changes.
func (s *Server) served() *shown {
	var kvs []*store.KV
	var revision int64
	if s.customs.Table != nil {
		kvs, revision, _ = s.customs.Stored(s.background()) // without a store nothing else works either
	}
	s.customs.mu.Lock()
	defer s.customs.mu.Unlock()
	t := s.customs.shown
	if t != nil && slices.Equal(t.kvs, kvs) {
		return t
	}
	t = &shown{kvs: kvs, resources: slices.Clip(s.cfg.Resources)}
	if s.customs.Table != nil {
		for _, e := range s.customs.Entries(kvs, revision) {
			if e.Serving != nil && apiextensions.Published(e.CRD) {
				t.resources = append(t.resources, e.Def.Resources...)
			}
		}
	}
	t.groups = discovery.New(t.resources)
	s.customs.shown = t
	return t
}

// buildCustom makes the endpoints of a definition's served versions.
func (s *Server) buildCustom(e *definitions.Entry) (any, error) {
	endpoints := map[string]*endpoint{}
	for _, res := range e.Def.Resources {
		reg, err := registry.New(s.registryConfig(res))
		if err != nil {
			return nil, err
		}
		ep := newEndpoint(res, &res.Versions[0], reg)
		ep.codec, ep.gone, ep.terminating = s.customs.codec, e.Gone, apiextensions.Terminating(e.CRD)
		conversion := e.CRD.Spec.Conversion
		ep.converts = conversion != nil && conversion.Strategy != v1.NoneConverter
		def := e.Def
		ep.fields.Custom = &managed.Custom{Kinds: def.Kinds(), HasStatus: def.Status, Convert: def.To, Default: ep.ver.Default}
		ep.fields.Custom.Types = func() (managedfields.TypeConverter, error) {
			return openapi.TypeConverter(def.All(), def.Outline.Spec.PreserveUnknownFields)
		}
		endpoints[ep.ver.Name] = ep
	}
	return endpoints, nil
}

// customEndpoint finds the endpoint of a custom resource, or nil. A request
// whose path does not fit the scope finds none either.
func (s *Server) customEndpoint(c *call) *endpoint {
	i := c.info
	if i.Group == "" || i.Prefix != "apis" {
		return nil
	}
	ep := s.customEndpoints(c.ctx(), i.Resource, i.Group)[i.Version]
	if ep == nil || ep.res.Name != i.Resource || ep.res.Namespaced && i.Namespace == "" && i.Verb != "list" && i.Verb != "watch" {
		return nil
	}
	return ep
}

// customEndpoints are the endpoints of a custom resource by version.
func (s *Server) customEndpoints(ctx context.Context, resource, group string) map[string]*endpoint {
	if s.customs.Table == nil {
		return nil
	}
	e := s.customs.Entry(ctx, resource+"."+group)
	if e == nil {
		return nil
	}
	endpoints, _ := e.Serving.(map[string]*endpoint)
	return endpoints
}
