// Package applyschema is the schema by which server-side apply merges built-in
// types. It is client-go's, kept decoded: client-go parses 430 KB of YAML at
// the first use, which takes as long as the rest of a cluster's start.
//
// The test fails when schema.gob.gz is not client-go's any more; with -update
// it writes the file.
package applyschema

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/gob"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

//go:embed schema.gob.gz
var packed []byte

var parser = sync.OnceValue(func() *typed.Parser {
	p := &typed.Parser{}
	if err := unpack(packed, p); err != nil {
		panic(fmt.Sprintf("the embedded schema of built-in types: %v", err)) // the build is broken
	}
	return p
})

// Types are the types of the schema; they are shared and not to be changed.
func Types() []schema.TypeDef { return parser().Schema.Types }

// Converter knows the built-in types by that schema.
func Converter() managedfields.TypeConverter {
	return managedfields.NewSchemeTypeConverter(scheme.Scheme, parser())
}

func unpack(data []byte, p *typed.Parser) error {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	gob.Register(map[string]any{}) // defaults of fields
	return gob.NewDecoder(z).Decode(&p.Schema.Types)
}
