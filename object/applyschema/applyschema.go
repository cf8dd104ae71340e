// Package applyschema is the schema by which server-side apply merges built-in
// types. It is client-go's, kept decoded: client-go parses 430 KB of YAML at
// the first use, which takes as long as the rest of a cluster's start. Types
// that client-go's does not have are as their groups' own OpenAPI tells them:
// CustomResourceDefinition, APIService, Scale.
//
// The test fails when schema.gob.gz is not that any more; with -update it
// writes the file.
package applyschema

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/gob"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
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

// Converter knows the types of a scheme by that schema.
func Converter(types *runtime.Scheme) managedfields.TypeConverter {
	return managedfields.NewSchemeTypeConverter(types, parser())
}

func unpack(data []byte, p *typed.Parser) error {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	gob.Register(map[string]any{}) // defaults of fields
	return gob.NewDecoder(z).Decode(&p.Schema.Types)
}
