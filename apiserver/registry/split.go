package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/store"
)

// Override says which etcd servers the objects of a resource are in; resource "*" is all of its group that no other
// Override names.
type Override struct {
	Resource schema.GroupResource
	Servers  []string
}

// ParseOverrides reads upstream's --etcd-servers-overrides.
func ParseOverrides(list []string) (out []Override, err error) {
	for _, text := range list {
		what, where, ok := strings.Cut(text, "#")
		group, resource, ok2 := strings.Cut(what, "/")
		servers := strings.Split(where, ";")
		if !ok || !ok2 || strings.Contains(where, "#") || strings.Contains(resource, "/") || slices.Contains(servers, "") {
			return nil, errors.New("--etcd-servers-overrides invalid, must be of format: group/resource#servers, where servers are URLs, semicolon separated")
		}
		out = append(out, Override{schema.GroupResource{Group: group, Resource: resource}, servers})
	}
	return out, nil
}

// split is a store beside which there are others, for the objects of some resources. All else is in the first.
type split struct {
	store.Store
	others []store.Store
	of     map[string]store.Store // by prefix of keys
}

// Split returns first with what the overrides say of resources; open is called once for each set of servers. As with
// upstream no override is about definitions, custom resources and APIServices. Close closes all; if Split fails, first
// is the caller's.
func Split(first store.Store, list []Override, resources []*api.Resource, open func(servers []string) (store.Store, error), log *slog.Logger) (store.Store, error) {
	s := &split{Store: first, of: map[string]store.Store{}}
	opened, exact := map[string]store.Store{}, map[string]bool{}
	for _, o := range list {
		key := strings.Join(slices.Sorted(slices.Values(o.Servers)), ";")
		if opened[key] == nil {
			other, err := open(o.Servers)
			if err != nil {
				for _, st := range s.others {
					err = errors.Join(err, st.Close())
				}
				return nil, fmt.Errorf("--etcd-servers-overrides of %s: %w", o.Resource, err)
			}
			opened[key], s.others = other, append(s.others, other)
		}
		found := false
		for _, res := range resources {
			group, all, prefix := res.StoredKind().Group, o.Resource.Resource == "*", keyPrefix(res)
			if res.Virtual || group != o.Resource.Group || !all && res.Name != o.Resource.Resource || notSplit(group) {
				continue
			}
			if found = true; all && exact[prefix] {
				continue
			}
			s.of[prefix], exact[prefix] = opened[key], !all
		}
		if !found {
			log.Warn("--etcd-servers-overrides names no resource that it could be about", "resource", o.Resource)
		}
	}
	return s, nil
}

func notSplit(group string) bool {
	return group == "apiextensions.k8s.io" || group == "apiregistration.k8s.io"
}

func keyPrefix(res *api.Resource) string { return Root + res.Prefix() + "/" }

// Close implements store.Store.
func (s *split) Close() error {
	err := s.Store.Close()
	for _, other := range s.others {
		err = errors.Join(err, other.Close())
	}
	return err
}

// storeOf is where s has the keys that begin with prefix.
func storeOf(s store.Store, prefix string) store.Store {
	if all, ok := s.(*split); ok && all.of[prefix] != nil {
		return all.of[prefix]
	}
	return s
}

// Stores are s and the others beside it, these in the order of the overrides.
func Stores(s store.Store) []store.Store {
	if all, ok := s.(*split); ok {
		return append([]store.Store{all.Store}, all.others...)
	}
	return []store.Store{s}
}
