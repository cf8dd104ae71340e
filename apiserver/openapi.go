package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/api/openapi"
	"github.com/skiff-project/skiff/apiserver/openapidoc"
	"github.com/skiff-project/skiff/object/codec"
)

// Media types of the OpenAPI documents.
const (
	openAPIv2Proto = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	openAPIv3Proto = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// serveOpenAPI serves /openapi/v2, the index /openapi/v3 and its documents.
func (s *Server) serveOpenAPI(c *call, path string) {
	switch {
	case path == "/openapi/v3":
		s.openAPIIndex(c)
	case path == "/openapi/v2":
		s.openAPIDocument(c, openAPIv2Proto, path, func(b *openapi.Builder) ([]byte, error) { return b.V2() }, openapi.ProtoV2)
	default:
		gv, ok := s.servedGroupVersion(strings.TrimPrefix(path, "/openapi/v3/"))
		if !ok {
			s.notFoundPath(c)
			return
		}
		if h := c.query.Get("hash"); h != "" {
			if want := s.openAPIHash(gv); h != want {
				c.w.Header().Set("Location", path+"?hash="+want)
				c.w.WriteHeader(http.StatusMovedPermanently)
				return
			}
		}
		s.openAPIDocument(c, openAPIv3Proto, path, func(b *openapi.Builder) ([]byte, error) { return b.V3(gv) }, openapi.ProtoV3)
	}
}

func (s *Server) openAPIDocument(c *call, protoType, path string, build func(*openapi.Builder) ([]byte, error), toProto func([]byte) ([]byte, error)) {
	asProto, ok := openapidoc.Accept(c.req.Header.Get("Accept"), protoType)
	if !ok {
		c.w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	cfg := openapi.Config{Resources: s.served().resources, Version: s.cfg.Version.GitVersion}
	data, err := s.openapi.Get(path, build, cfg)
	media := codec.JSON
	if err == nil && asProto {
		media = protoType
		doc := data
		data, err = s.openapi.Get(path+" proto", func(*openapi.Builder) ([]byte, error) { return toProto(doc) }, cfg)
	}
	if err != nil {
		s.fail(c, apierrors.NewInternalError(err))
		return
	}
	s.writeTagged(c, media, data)
}

func (s *Server) servedGroupVersion(path string) (schema.GroupVersion, bool) {
	for _, g := range s.served().groups {
		for _, v := range g.Versions {
			if gv := (schema.GroupVersion{Group: g.Name, Version: v.Name}); openapi.PathOf(gv) == path {
				return gv, true
			}
		}
	}
	return schema.GroupVersion{}, false
}

// openAPIHash identifies a document without building it: what is served in a
// group version depends on the binary and on custom resources' revisions.
func (s *Server) openAPIHash(gv schema.GroupVersion) string {
	h := sha256.New()
	fmt.Fprintln(h, s.cfg.Version.GitVersion, s.cfg.Version.GitCommit, gv)
	if g := s.served().groups.Group(gv.Group); g != nil {
		for _, v := range g.Versions {
			if v.Name == gv.Version {
				for _, r := range v.Resources {
					fmt.Fprintln(h, r.Name, r.Revision)
				}
			}
		}
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

func (s *Server) openAPIIndex(c *call) {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := map[string]entry{}
	for _, g := range s.served().groups {
		for _, v := range g.Versions {
			gv := schema.GroupVersion{Group: g.Name, Version: v.Name}
			p := openapi.PathOf(gv)
			paths[p] = entry{"/openapi/v3/" + p + "?hash=" + s.openAPIHash(gv)}
		}
	}
	data, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		s.fail(c, apierrors.NewInternalError(err))
		return
	}
	s.writeTagged(c, codec.JSON, data)
}
