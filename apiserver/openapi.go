package apiserver

import (
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/api/openapi"
	"github.com/skiff-project/skiff/apiserver/openapidoc"
	"github.com/skiff-project/skiff/object/codec"
)

// Media types of the OpenAPI documents. Clients ask by older names too, with an @, which is in no media type.
const (
	openAPIv2Proto = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	openAPIv3Proto = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

// serveOpenAPI serves /openapi/v2, the index /openapi/v3 and its documents.
func (s *Server) serveOpenAPI(c *call, path string) {
	switch {
	case path == "/openapi/v3":
		s.openAPIIndex(c)
	case path == "/openapi/v2":
		s.openAPIv2(c)
	default:
		below := strings.TrimPrefix(path, "/openapi/v3/")
		if doc, is := s.aggregator.ServeOpenAPIV3(below, c.w, c.req, s.caller(c)); is {
			if doc != nil {
				s.openAPIDocument(c, openAPIv3Proto, path+" converted", func(*openapi.Builder) ([]byte, error) { return doc, nil }, openapi.ProtoV3)
			}
			return
		}
		resources, ok := openapi.Documents(s.served().resources)[below]
		if !ok {
			s.notFoundPath(c)
			return
		}
		if h := c.query.Get("hash"); h != "" {
			if want := openapidoc.Hash(s.openAPISalt(), below, resources); h != want {
				c.w.Header().Set("Location", path+"?hash="+want)
				c.w.WriteHeader(http.StatusMovedPermanently)
				return
			}
		}
		s.openAPIDocument(c, openAPIv3Proto, path, func(b *openapi.Builder) ([]byte, error) { return b.V3(below) }, openapi.ProtoV3)
	}
}

func (s *Server) openAPIv2(c *call) {
	tag, merge := s.aggregator.OpenAPIV2(c.ctx())
	s.openAPIDocument(c, openAPIv2Proto, "/openapi/v2"+tag, func(b *openapi.Builder) ([]byte, error) {
		doc, err := b.V2()
		if err != nil || tag == "" {
			return doc, err
		}
		return merge(doc)
	}, openapi.ProtoV2)
}

func (s *Server) openAPIDocument(c *call, protoType, path string, build func(*openapi.Builder) ([]byte, error), toProto func([]byte) ([]byte, error)) {
	asProto, ok := openapidoc.Accept(c.req.Header.Get("Accept"), protoType)
	if !ok {
		c.w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	cfg := openapi.Config{Resources: s.served().resources, Version: s.cfg.Version.Major + "." + s.cfg.Version.Minor}
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

// openAPISalt makes the hashes of documents differ between releases.
func (s *Server) openAPISalt() string {
	return s.cfg.Version.GitVersion + "\n" + s.cfg.Version.GitCommit
}

func (s *Server) openAPIIndex(c *call) {
	data, err := openapidoc.Index(s.openAPISalt(), openapi.Documents(s.served().resources), s.aggregator.OpenAPIV3(c.ctx()))
	if err != nil {
		s.fail(c, apierrors.NewInternalError(err))
		return
	}
	s.writeTagged(c, codec.JSON, data)
}
