// Package embedded carries the helper's binary inside Skiff's.
package embedded

import (
	"embed"
	"errors"
)

//go:embed all:bin
var bin embed.FS

// ErrMissing says that this binary was built without the helper.
var ErrMissing = errors.New("container helper missing from this binary: build with make build")

// Shim returns the helper's bytes. They are shared: do not write to them.
func Shim() ([]byte, error) {
	b, err := bin.ReadFile("bin/skiff-shim")
	if err != nil {
		return nil, ErrMissing
	}
	return b, nil
}
