package apiserver

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/policy"
)

// kinds tells policies of what the server serves.
type kinds struct{ *Server }

// find returns the endpoint of a stored kind, or nil.
func (s kinds) find(ctx context.Context, kind schema.GroupVersionKind) *endpoint {
	for _, ep := range s.endpoints {
		if ep.kind == kind && ep.reg != nil {
			return ep
		}
	}
	for _, res := range s.served().resources {
		if res.Codec != nil && res.Kind == kind.Kind && res.Group == kind.Group {
			return s.customEndpoints(ctx, res.Name, res.Group)[kind.Version]
		}
	}
	return nil
}

// Stored implements policy.Kinds.
func (s kinds) Stored(ctx context.Context, kind schema.GroupVersionKind) (policy.Stored, bool) {
	ep := s.find(ctx, kind)
	if ep == nil {
		return policy.Stored{}, false
	}
	return policy.Stored{Resource: ep.res, Verbatim: ep.verbatim, Registry: ep.reg, Show: ep.served}, true
}

// Types implements policy.Kinds.
func (s kinds) Types(ctx context.Context, kind schema.GroupVersionKind) (managedfields.TypeConverter, error) {
	if ep := s.find(ctx, kind); ep != nil && ep.fields != nil {
		return ep.fields.Types()
	}
	if kind == api.ScaleKind() { // policies know what OpenAPI tells of a group, and it tells nothing of Scales
		return managedfields.NewSchemeTypeConverter(scheme.Scheme, &typed.Parser{}), nil
	}
	return (&managed.Type{}).Types()
}
