// Package openapidoc keeps OpenAPI documents while clients ask for them.
package openapidoc

import (
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/munnerz/goautoneg"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/openapi"
	"github.com/skiff-project/skiff/object/codec"
)

// idle is how long documents are kept after their last use, and maxDocs how many.
const (
	idle    = time.Minute
	maxDocs = 512
)

// Cache builds documents on request and keeps them while they are in use.
type Cache struct {
	mu      sync.Mutex
	builder *openapi.Builder
	docs    map[string][]byte // by path and media type
	of      []*api.Resource   // what they describe
	drop    *time.Timer
}

// Get returns a document, built under the lock: concurrent readers want the same one.
func (o *Cache) Get(key string, build func(*openapi.Builder) ([]byte, error), cfg openapi.Config) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.drop == nil {
		o.drop = time.AfterFunc(idle, func() {
			o.mu.Lock()
			o.docs, o.builder, o.of = nil, nil, nil
			o.mu.Unlock()
			debug.FreeOSMemory() // a program that rests collects seldom, and they are a quarter of it
		})
	} else {
		o.drop.Reset(idle)
	}
	if !slices.Equal(o.of, cfg.Resources) {
		o.docs, o.builder, o.of = nil, nil, cfg.Resources
	}
	if data := o.docs[key]; data != nil {
		return data, nil
	}
	if o.builder == nil {
		var err error
		if o.builder, err = openapi.New(cfg); err != nil {
			return nil, err
		}
	}
	data, err := build(o.builder)
	if err != nil {
		return nil, err
	}
	if o.docs == nil || len(o.docs) >= maxDocs {
		o.docs = map[string][]byte{}
	}
	o.docs[key] = data
	return data, nil
}

// Accept tells whether a client wants gnostic's protobuf form.
func Accept(header, protoType string) (asProto, ok bool) {
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
		case cl.SubType == want, strings.Replace(cl.SubType, "@", ".", 1) == want:
			return true, true
		}
	}
	return false, false
}
