// Package discovery makes the documents that tell clients what is served:
// groups, versions, resources, plain and aggregated. The documents are small
// and made on request.
package discovery

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/skiff-project/skiff/api"
)

// Groups are the served API groups, in upstream's order.
type Groups []Group

// Group is one API group; "" is core.
type Group struct {
	Name     string
	Versions []Version // preferred first
}

// Version is one served version of a group.
type Version struct {
	Name      string
	Resources []*api.Resource
}

// groupOrder is the order upstream lists its groups in; others follow by name.
var groupOrder = []string{
	"", "apiregistration.k8s.io", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch",
	"certificates.k8s.io", "networking.k8s.io", "policy", "rbac.authorization.k8s.io", "storage.k8s.io", "storagemigration.k8s.io", "flowcontrol.apiserver.k8s.io",
	"admissionregistration.k8s.io", "apiextensions.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io", "discovery.k8s.io", "resource.k8s.io",
}

// New groups the resources.
func New(resources []*api.Resource) Groups {
	groups := map[string]map[string][]*api.Resource{}
	for _, r := range resources {
		if groups[r.Group] == nil {
			groups[r.Group] = map[string][]*api.Resource{}
		}
		for i := range r.Versions {
			v := r.Versions[i].Name
			groups[r.Group][v] = append(groups[r.Group][v], r)
		}
	}
	var out Groups
	for name, versions := range groups {
		g := Group{Name: name}
		for v, rs := range versions {
			slices.SortFunc(rs, func(a, b *api.Resource) int { return strings.Compare(a.Name, b.Name) })
			g.Versions = append(g.Versions, Version{v, rs})
		}
		slices.SortFunc(g.Versions, func(a, b Version) int { return version.CompareKubeAwareVersionStrings(b.Name, a.Name) })
		out = append(out, g)
	}
	rank := func(name string) int {
		if i := slices.Index(groupOrder, name); i >= 0 {
			return i
		}
		return len(groupOrder)
	}
	slices.SortFunc(out, func(a, b Group) int {
		if c := rank(a.Name) - rank(b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// Group returns a group, or nil.
func (l Groups) Group(name string) *Group {
	for i := range l {
		if l[i].Name == name {
			return &l[i]
		}
	}
	return nil
}

// Doc is the group's entry in /apis, and without kind the answer at /apis/<group>.
func (g *Group) Doc() metav1.APIGroup {
	a := metav1.APIGroup{Name: g.Name}
	for _, v := range g.Versions {
		a.Versions = append(a.Versions, metav1.GroupVersionForDiscovery{GroupVersion: g.Name + "/" + v.Name, Version: v.Name})
	}
	a.PreferredVersion = a.Versions[0]
	return a
}

// List is the document at /apis.
func (l Groups) List() *metav1.APIGroupList {
	out := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for i := range l {
		if l[i].Name != "" {
			out.Groups = append(out.Groups, l[i].Doc())
		}
	}
	return out
}

func apiResources(r *api.Resource, version string) []metav1.APIResource {
	main := metav1.APIResource{
		Name: r.Name, SingularName: r.Singular, Namespaced: r.Namespaced, Kind: r.Kind,
		Verbs: slices.Sorted(slices.Values(Verbs(r))), ShortNames: r.ShortNames, Categories: r.Categories,
	}
	if !r.Virtual {
		main.StorageVersionHash = storageHash(r)
	}
	out := []metav1.APIResource{main}
	for i := range r.Subresources {
		sub := &r.Subresources[i]
		kind, group, ver := subKind(r, sub)
		a := metav1.APIResource{Name: r.Name + "/" + sub.Name, Namespaced: r.Namespaced, Kind: kind, Verbs: slices.Sorted(slices.Values(SubVerbs(sub)))}
		if group != r.Group || ver != "" && ver != version {
			a.Group, a.Version = group, ver
		}
		out = append(out, a)
	}
	return out
}

// subKind is the kind of a subresource's body; group and version are empty
// where they are the parent's.
func subKind(r *api.Resource, sub *api.Subresource) (kind, group, version string) {
	kind, group, version = r.Kind, r.Group, ""
	if sub.Scale != nil || sub.Name == "scale" {
		kind, group, version = "Scale", "autoscaling", "v1"
	}
	if sub.Kind != "" {
		kind = sub.Kind
		if sub.Version != "" {
			group, version = sub.Group, sub.Version
		}
	}
	return kind, group, version
}

// SubVerbs are the verbs of a subresource.
func SubVerbs(sub *api.Subresource) []string {
	if sub.Verbs != nil {
		return sub.Verbs
	}
	return []string{"get", "patch", "update"}
}

// storageHash is upstream's opaque hash of the storage version.
func storageHash(r *api.Resource) string {
	k := r.HashKind
	if k.Empty() {
		k = r.StoredKind()
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%s", k.Group, k.Version, k.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// Aggregated is the group's entry in the aggregated documents.
func (g *Group) Aggregated() apidiscoveryv2.APIGroupDiscovery {
	out := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.Name}}
	for _, v := range g.Versions {
		dv := apidiscoveryv2.APIVersionDiscovery{Version: v.Name, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
		for _, r := range v.Resources {
			dv.Resources = append(dv.Resources, aggregatedResource(r, v.Name))
		}
		out.Versions = append(out.Versions, dv)
	}
	return out
}

func aggregatedResource(r *api.Resource, version string) apidiscoveryv2.APIResourceDiscovery {
	scope := apidiscoveryv2.ScopeCluster
	if r.Namespaced {
		scope = apidiscoveryv2.ScopeNamespace
	}
	d := apidiscoveryv2.APIResourceDiscovery{
		Resource: r.Name, SingularResource: r.Singular, Scope: scope, ShortNames: r.ShortNames, Categories: r.Categories,
		ResponseKind: &metav1.GroupVersionKind{Group: r.Group, Version: version, Kind: r.Kind}, Verbs: slices.Sorted(slices.Values(Verbs(r))),
	}
	for i := range r.Subresources {
		sub := &r.Subresources[i]
		kind, group, ver := subKind(r, sub)
		if ver == "" {
			ver = version
		}
		d.Subresources = append(d.Subresources, apidiscoveryv2.APISubresourceDiscovery{
			Subresource: sub.Name, ResponseKind: &metav1.GroupVersionKind{Group: group, Version: ver, Kind: kind}, Verbs: slices.Sorted(slices.Values(SubVerbs(sub))),
		})
	}
	return d
}

// Resources is the document at /api/<version> or /apis/<group>/<version>, or nil.
func (l Groups) Resources(group, version string) *metav1.APIResourceList {
	g := l.Group(group)
	if g == nil {
		return nil
	}
	i := slices.IndexFunc(g.Versions, func(v Version) bool { return v.Name == version })
	if i < 0 {
		return nil
	}
	out := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: version}
	if group == "" {
		out.APIVersion = ""
	} else {
		out.GroupVersion = group + "/" + version
	}
	for _, r := range g.Versions[i].Resources {
		out.APIResources = append(out.APIResources, apiResources(r, version)...)
	}
	slices.SortFunc(out.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Verbs are the verbs of a resource itself.
func Verbs(r *api.Resource) []string {
	if r.Verbs != nil {
		return r.Verbs
	}
	return []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
}
