package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/munnerz/goautoneg"
	"k8s.io/apimachinery/pkg/runtime/schema"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/api/openapi"
	"github.com/skiff-project/skiff/object/codec"
)

// Media types of the OpenAPI documents.
const (
	openAPIv2Proto = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	openAPIv3Proto = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// openAPIIdle is how long documents are kept after their last use.
const openAPIIdle = time.Minute

// openAPI builds documents on request and keeps them while they are in use.
type openAPI struct {
	mu      sync.Mutex
	builder *openapi.Builder
	docs    map[string][]byte // by path and media type
	drop    *time.Timer
}

// get returns a document, built under the lock: concurrent readers want the same one.
func (o *openAPI) get(key string, build func(*openapi.Builder) ([]byte, error), cfg openapi.Config) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.drop == nil {
		o.drop = time.AfterFunc(openAPIIdle, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.docs, o.builder = nil, nil
		})
	} else {
		o.drop.Reset(openAPIIdle)
	}
	if data := o.docs[key]; data != nil {
		return data, nil
	}
	if o.builder == nil {
		rules, err := openapi.DefaultMergeRules()
		if err != nil {
			return nil, err
		}
		cfg.MergeRules = rules
		if o.builder, err = openapi.New(cfg); err != nil {
			return nil, err
		}
	}
	data, err := build(o.builder)
	if err != nil {
		return nil, err
	}
	if o.docs == nil {
		o.docs = map[string][]byte{}
	}
	o.docs[key] = data
	return data, nil
}

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
	asProto, ok := openAPIAccept(c.req.Header.Get("Accept"), protoType)
	if !ok {
		c.w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	cfg := openapi.Config{Resources: s.cfg.Resources, Version: s.cfg.Version.GitVersion}
	data, err := s.openapi.get(path, build, cfg)
	media := codec.JSON
	if err == nil && asProto {
		media = protoType
		doc := data
		data, err = s.openapi.get(path+" proto", func(*openapi.Builder) ([]byte, error) { return toProto(doc) }, cfg)
	}
	if err != nil {
		s.fail(c, apierrors.NewInternalError(err))
		return
	}
	s.writeTagged(c, media, data)
}

// openAPIAccept tells whether a client wants gnostic's protobuf form.
func openAPIAccept(header, protoType string) (asProto, ok bool) {
	if header == "" {
		return false, true
	}
	if len(header) > 4096 {
		return false, false
	}
	want := strings.TrimPrefix(protoType, "application/")
	for _, cl := range goautoneg.ParseAccept(header) {
		switch full := cl.Type + "/" + cl.SubType; {
		case full == codec.JSON, full == "*/*", full == "application/*":
			return false, true
		case cl.SubType == want, cl.SubType == strings.Replace(want, "@", ".", 1):
			return true, true
		}
	}
	return false, false
}

func (s *Server) servedGroupVersion(path string) (schema.GroupVersion, bool) {
	for _, g := range s.discovery {
		for _, v := range g.Versions {
			if gv := (schema.GroupVersion{Group: g.Name, Version: v.Name}); openapi.PathOf(gv) == path {
				return gv, true
			}
		}
	}
	return schema.GroupVersion{}, false
}

// openAPIHash identifies a document without building it: what is served in a
// group version depends on the binary alone.
func (s *Server) openAPIHash(gv schema.GroupVersion) string {
	h := sha256.New()
	fmt.Fprintln(h, s.cfg.Version.GitVersion, s.cfg.Version.GitCommit, gv)
	if g := s.discovery.Group(gv.Group); g != nil {
		for _, v := range g.Versions {
			if v.Name == gv.Version {
				for _, r := range v.Resources {
					fmt.Fprintln(h, r.Name)
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
	for _, g := range s.discovery {
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
