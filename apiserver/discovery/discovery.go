// Package discovery makes the documents that tell clients what is served:
// groups, versions, resources, plain and aggregated. The documents are small
// and made on request.
package discovery

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/munnerz/goautoneg"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiregistration"
)

// Groups are the served API groups, in upstream's order.
type Groups []Group

// Group is one API group; "" is core.
type Group struct {
	Name     string
	Versions []Version // preferred first
}

// Version is one served version of a group: this server's own, or, with
// Remote set, that of an aggregated one.
type Version struct {
	Name      string
	Priority  apiregistration.Priority
	Resources []*api.Resource
	Remote    *apidiscoveryv2.APIVersionDiscovery
}

// New groups the resources.
func New(resources []*api.Resource) Groups {
	var out Groups
	at := map[string]int{}
	for _, r := range resources {
		for i := range r.Versions {
			v := out.version(at, r.Group, r.Versions[i].Name)
			v.Resources = append(v.Resources, r)
		}
	}
	for i := range out {
		for j := range out[i].Versions {
			v := &out[i].Versions[j]
			v.Priority = apiregistration.PriorityOf(out[i].Name, v.Name)
			slices.SortFunc(v.Resources, func(a, b *api.Resource) int { return strings.Compare(a.Name, b.Name) })
		}
	}
	out.sort()
	return out
}

// version finds or adds a version; at has the places of the groups.
func (l *Groups) version(at map[string]int, group, name string) *Version {
	i, ok := at[group]
	if !ok {
		i = len(*l)
		at[group] = i
		*l = append(*l, Group{Name: group})
	}
	g := &(*l)[i]
	j := slices.IndexFunc(g.Versions, func(v Version) bool { return v.Name == name })
	if j < 0 {
		j = len(g.Versions)
		g.Versions = append(g.Versions, Version{Name: name})
	}
	return &g.Versions[j]
}

// With returns the groups with aggregated versions, by group, among them: they take
// the place of what this server has itself. The receiver is left alone.
func (l Groups) With(remote map[string][]Version) Groups {
	out, at := make(Groups, len(l)), map[string]int{}
	for i, g := range l {
		out[i], at[g.Name] = Group{g.Name, slices.Clone(g.Versions)}, i
	}
	for group, versions := range remote {
		for _, v := range versions {
			*out.version(at, group, v.Name) = v
		}
	}
	out.sort()
	return out
}

// sort brings groups and versions into upstream's order: by priority, then
// groups by the name of their first APIService.
func (l Groups) sort() {
	first := make(map[string]string, len(l))
	for i := range l {
		g := &l[i]
		slices.SortFunc(g.Versions, func(a, b Version) int {
			if a.Priority.Version != b.Priority.Version {
				return int(b.Priority.Version - a.Priority.Version)
			}
			return version.CompareKubeAwareVersionStrings(b.Name, a.Name)
		})
		highest := g.priority()
		for _, v := range g.Versions {
			if name := v.Name + "." + g.Name; v.Priority.Group == highest && (first[g.Name] == "" || name < first[g.Name]) {
				first[g.Name] = name
			}
		}
	}
	slices.SortFunc(l, func(a, b Group) int {
		if c := b.priority() - a.priority(); c != 0 {
			return int(c)
		}
		return strings.Compare(first[a.Name], first[b.Name])
	})
}

func (g *Group) priority() (highest int32) {
	for i := range g.Versions {
		highest = max(highest, g.Versions[i].Priority.Group)
	}
	return highest
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
	if r.Codec != nil && r.Verbs == nil { // in upstream's order, which for custom resources is another
		main.Verbs = []string{"delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"}
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
	if r.Codec == nil {
		slices.SortFunc(out[1:], func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
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

// Media is the media type of the aggregated documents, after the encoding's.
const Media = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

// WantsAggregated returns the encoding of aggregated discovery a client asks for, or "".
func WantsAggregated(req *http.Request) string {
	header := req.Header.Get("Accept")
	if !strings.Contains(header, "APIGroupDiscoveryList") || len(header) > 4096 {
		return ""
	}
	for _, cl := range goautoneg.ParseAccept(header) {
		if cl.Type != "application" || cl.SubType != "json" && cl.SubType != "vnd.kubernetes.protobuf" {
			continue
		}
		if cl.Params["as"] == "APIGroupDiscoveryList" && cl.Params["g"] == "apidiscovery.k8s.io" && cl.Params["v"] == "v2" {
			return cl.Type + "/" + cl.SubType
		}
		if cl.Params["as"] == "" {
			return "" // the plain form is preferred
		}
	}
	return ""
}

// Aggregated is the document of all groups but core, or of core alone.
func (l Groups) Aggregated(core bool) *apidiscoveryv2.APIGroupDiscoveryList {
	out := &apidiscoveryv2.APIGroupDiscoveryList{}
	out.SetGroupVersionKind(apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList"))
	groups := slices.Clone(l)
	slices.SortFunc(groups, func(a, b Group) int {
		if c := b.priority() - a.priority(); c != 0 {
			return int(c)
		}
		return strings.Compare(a.Name, b.Name)
	})
	for i := range groups {
		if g := &groups[i]; (g.Name == "") == core {
			out.Items = append(out.Items, g.Aggregated())
		}
	}
	return out
}

// Aggregated is the group's entry in the aggregated documents.
func (g *Group) Aggregated() apidiscoveryv2.APIGroupDiscovery {
	out := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.Name}}
	for _, v := range g.Versions {
		if v.Remote != nil {
			out.Versions = append(out.Versions, *v.Remote)
			continue
		}
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
		ResponseKind: &metav1.GroupVersionKind{Kind: r.Kind}, Verbs: slices.Sorted(slices.Values(Verbs(r))),
	}
	for i := range r.Subresources {
		sub := &r.Subresources[i]
		kind, group, ver := subKind(r, sub)
		if group == r.Group && (ver == "" || ver == version) {
			group, ver = "", "" // as the resource's own: not told again
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
	byName := slices.SortedFunc(slices.Values(g.Versions[i].Resources), func(a, b *api.Resource) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range byName {
		out.APIResources = append(out.APIResources, apiResources(r, version)...)
	}
	return out
}

// Verbs are the verbs of a resource itself.
func Verbs(r *api.Resource) []string {
	if r.Verbs != nil {
		return r.Verbs
	}
	return []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
}
