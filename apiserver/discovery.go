package apiserver

import (
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/apiserver/discovery"
	"github.com/skiff-project/skiff/object/codec"
)

// serveDiscovery answers /api, /apis and what is one level below; it reports
// whether the path is one of them.
func (s *Server) serveDiscovery(c *call) bool {
	path := strings.Trim(c.info.Path, "/")
	parts := strings.Split(path, "/")
	if parts[0] != "api" && parts[0] != "apis" || c.req.Method != http.MethodGet && c.req.Method != http.MethodHead {
		return false
	}
	d, media := s.groups(), discovery.WantsAggregated(c.req)
	switch {
	case len(parts) == 1 && media != "":
		s.aggregated(c, media, parts[0] == "api")
	case path == "api":
		s.discoveryDoc(c, s.legacyVersions(c))
	case path == "apis":
		s.discoveryDoc(c, d.List())
	case parts[0] == "api" && len(parts) == 2:
		return s.resourceList(c, "", parts[1])
	case parts[0] == "apis" && len(parts) == 2:
		g := d.Group(parts[1])
		if g == nil || parts[1] == "" {
			return false
		}
		doc := g.Doc()
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

func (s *Server) resourceList(c *call, group, version string) bool {
	l := s.groups().Resources(group, version)
	if l == nil {
		return false
	}
	s.discoveryDoc(c, l)
	return true
}

func (s *Server) aggregated(c *call, media string, core bool) {
	data, err := encodeObject(output{media: media}, s.groups().Aggregated(core))
	if err != nil {
		s.fail(c, err)
		return
	}
	s.writeTagged(c, media+discovery.Media, data)
}
