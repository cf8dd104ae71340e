package apiserver

import (
	"crypto/sha512"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/munnerz/goautoneg"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/object/codec"
)

// discovery answers what is served. The documents are small and made on request.
type discovery struct {
	groups []discoveryGroup
}

type discoveryGroup struct {
	name     string
	versions []discoveryVersion // preferred first
}

type discoveryVersion struct {
	name      string
	resources []*api.Resource
}

// groupOrder is the order upstream lists its groups in; others follow by name.
var groupOrder = []string{
	"", "apiregistration.k8s.io", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch",
	"certificates.k8s.io", "networking.k8s.io", "policy", "rbac.authorization.k8s.io", "storage.k8s.io", "storagemigration.k8s.io", "flowcontrol.apiserver.k8s.io",
	"admissionregistration.k8s.io", "apiextensions.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io", "discovery.k8s.io", "resource.k8s.io",
}

func newDiscovery(resources []*api.Resource) *discovery {
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
	d := &discovery{}
	for name, versions := range groups {
		g := discoveryGroup{name: name}
		for v, rs := range versions {
			slices.SortFunc(rs, func(a, b *api.Resource) int { return strings.Compare(a.Name, b.Name) })
			g.versions = append(g.versions, discoveryVersion{v, rs})
		}
		slices.SortFunc(g.versions, func(a, b discoveryVersion) int { return version.CompareKubeAwareVersionStrings(b.name, a.name) })
		d.groups = append(d.groups, g)
	}
	rank := func(name string) int {
		if i := slices.Index(groupOrder, name); i >= 0 {
			return i
		}
		return len(groupOrder)
	}
	slices.SortFunc(d.groups, func(a, b discoveryGroup) int {
		if c := rank(a.name) - rank(b.name); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	return d
}

func (d *discovery) group(name string) *discoveryGroup {
	for i := range d.groups {
		if d.groups[i].name == name {
			return &d.groups[i]
		}
	}
	return nil
}

// serveDiscovery answers /api, /apis and what is one level below; it reports
// whether the path is one of them.
func (s *Server) serveDiscovery(c *call) bool {
	path := strings.Trim(c.info.Path, "/")
	parts := strings.Split(path, "/")
	if parts[0] != "api" && parts[0] != "apis" || c.req.Method != http.MethodGet && c.req.Method != http.MethodHead {
		return false
	}
	d := s.discovery
	switch {
	case len(parts) == 1 && wantsAggregated(c.req) != "":
		s.aggregated(c, parts[0] == "api")
	case path == "api":
		s.discoveryDoc(c, s.legacyVersions(c))
	case path == "apis":
		s.discoveryDoc(c, d.groupList())
	case parts[0] == "api" && len(parts) == 2:
		return s.resourceList(c, "", parts[1])
	case parts[0] == "apis" && len(parts) == 2:
		g := d.group(parts[1])
		if g == nil || parts[1] == "" {
			return false
		}
		doc := g.doc()
		doc.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
		s.discoveryDoc(c, &doc)
	case parts[0] == "apis" && len(parts) == 3:
		return s.resourceList(c, parts[1], parts[2])
	default:
		return false
	}
	return true
}

func (s *Server) discoveryDoc(c *call, obj runtime.Object) {
	out, err := negotiate(c.req, c.query, false)
	if err != nil {
		out = output{media: codec.JSON} // a client that prefers the aggregated form falls back to this
	}
	s.writeObject(c, out, http.StatusOK, obj)
}

func (s *Server) legacyVersions(c *call) *metav1.APIVersions {
	v := &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	address := c.req.Host
	if s.cfg.AdvertiseAddress.IsValid() {
		address = s.endpointAddress()
	}
	v.ServerAddressByClientCIDRs = []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: address}}
	return v
}

func (g *discoveryGroup) doc() metav1.APIGroup {
	a := metav1.APIGroup{Name: g.name}
	for _, v := range g.versions {
		a.Versions = append(a.Versions, metav1.GroupVersionForDiscovery{GroupVersion: g.name + "/" + v.name, Version: v.name})
	}
	a.PreferredVersion = a.Versions[0]
	return a
}

func (d *discovery) groupList() *metav1.APIGroupList {
	l := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for i := range d.groups {
		if d.groups[i].name != "" {
			l.Groups = append(l.Groups, d.groups[i].doc())
		}
	}
	return l
}

func (s *Server) resourceList(c *call, group, version string) bool {
	g := s.discovery.group(group)
	if g == nil {
		return false
	}
	for _, v := range g.versions {
		if v.name != version {
			continue
		}
		gv := version
		if group != "" {
			gv = group + "/" + version
		}
		l := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv}
		if group == "" {
			l.TypeMeta.APIVersion = ""
		}
		for _, r := range v.resources {
			l.APIResources = append(l.APIResources, apiResources(r, version)...)
		}
		slices.SortFunc(l.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
		s.discoveryDoc(c, l)
		return true
	}
	return false
}

func apiResources(r *api.Resource, version string) []metav1.APIResource {
	main := metav1.APIResource{
		Name: r.Name, SingularName: r.Singular, Namespaced: r.Namespaced, Kind: r.Kind,
		Verbs: slices.Sorted(slices.Values(verbs(r))), ShortNames: r.ShortNames, Categories: r.Categories,
	}
	if !r.Virtual {
		main.StorageVersionHash = storageHash(r)
	}
	out := []metav1.APIResource{main}
	for i := range r.Subresources {
		sub := &r.Subresources[i]
		kind, group, ver := subKind(r, sub)
		a := metav1.APIResource{Name: r.Name + "/" + sub.Name, Namespaced: r.Namespaced, Kind: kind, Verbs: slices.Sorted(slices.Values(subVerbs(sub)))}
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

func subVerbs(sub *api.Subresource) []string {
	if sub.Verbs != nil {
		return sub.Verbs
	}
	return []string{"get", "patch", "update"}
}

// storageHash is upstream's opaque hash of the storage version.
func storageHash(r *api.Resource) string {
	v := r.StorageVersion
	if v == "" {
		v = r.Versions[0].Name
	}
	group := r.StorageGroup
	if group == "" {
		group = r.Group
	}
	sum := sha512.Sum512(fmt.Appendf(nil, "%s/%s/%s", group, v, r.Kind))
	return base64Std(sum[:8])
}

// wantsAggregated returns the version of aggregated discovery asked for, or "".
func wantsAggregated(req *http.Request) string {
	header := req.Header.Get("Accept")
	if !strings.Contains(header, "APIGroupDiscoveryList") || len(header) > 4096 {
		return ""
	}
	for _, cl := range goautoneg.ParseAccept(header) {
		if cl.Type != "application" || cl.SubType != "json" && cl.SubType != "vnd.kubernetes.protobuf" {
			continue
		}
		if cl.Params["as"] == "APIGroupDiscoveryList" && cl.Params["g"] == "apidiscovery.k8s.io" && cl.Params["v"] == "v2" {
			return cl.SubType
		}
		if cl.Params["as"] == "" {
			return "" // the plain form is preferred
		}
	}
	return ""
}

func (s *Server) aggregated(c *call, legacy bool) {
	l := &apidiscoveryv2.APIGroupDiscoveryList{}
	l.SetGroupVersionKind(apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList"))
	for i := range s.discovery.groups {
		if g := &s.discovery.groups[i]; (g.name == "") == legacy {
			l.Items = append(l.Items, g.aggregated())
		}
	}
	out := output{media: codec.JSON}
	if wantsAggregated(c.req) != "json" {
		out.media = codec.Protobuf
	}
	data, err := encodeObject(out, l)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.writeTagged(c, out.media+";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", data)
}

func (g *discoveryGroup) aggregated() apidiscoveryv2.APIGroupDiscovery {
	out := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
	for _, v := range g.versions {
		dv := apidiscoveryv2.APIVersionDiscovery{Version: v.name, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
		for _, r := range v.resources {
			dv.Resources = append(dv.Resources, aggregatedResource(r, v.name))
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
		ResponseKind: &metav1.GroupVersionKind{Group: r.Group, Version: version, Kind: r.Kind}, Verbs: slices.Sorted(slices.Values(verbs(r))),
	}
	for i := range r.Subresources {
		sub := &r.Subresources[i]
		kind, group, ver := subKind(r, sub)
		if ver == "" {
			ver = version
		}
		d.Subresources = append(d.Subresources, apidiscoveryv2.APISubresourceDiscovery{
			Subresource: sub.Name, ResponseKind: &metav1.GroupVersionKind{Group: group, Version: ver, Kind: kind}, Verbs: slices.Sorted(slices.Values(subVerbs(sub))),
		})
	}
	return d
}
