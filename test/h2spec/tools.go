//go:build tools

// Package h2spec pins the program that holds internal/h2 against HTTP/2's
// specifications; make h2spec builds and runs it.
package h2spec

import _ "github.com/summerwind/h2spec/cmd/h2spec"
