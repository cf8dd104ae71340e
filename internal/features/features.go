// Package features knows upstream v1.37's feature gates, and which of their features are here.
package features

import (
	_ "embed"
	"iter"
	"strings"
)

//go:embed features.txt
var text string

// Feature is one gate. What it is cannot be changed.
type Feature struct {
	Name   string
	Stage  string // ALPHA, BETA, GA or DEPRECATED
	On     bool   // as by default in upstream, unless Absent
	Absent bool   // it is on by default in upstream
}

// All are the gates, by name.
func All() iter.Seq[Feature] {
	return func(yield func(Feature) bool) {
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if f[0] != "#" && !yield(Feature{f[0], f[2], f[1] == "true", len(f) > 3}) {
				return
			}
		}
	}
}
