package engine

import (
	"fmt"
	"slices"
	"strings"
)

// Graph prints which controller reads and writes what, one line each, in the given order:
//
//	replicaset: pods, replicasets.apps -> pods, replicasets.apps/status
func Graph(list []*Controller) string {
	var b strings.Builder
	for _, c := range list {
		fmt.Fprintf(&b, "%s: %s -> %s\n", c.Name, join(c.Inputs), join(c.Outputs))
	}
	return b.String()
}

// Writes reports whether c declared r among its outputs. "*" declares any resource.
func (c *Controller) Writes(r Resource) bool {
	base, sub, _ := strings.Cut(string(r), "/")
	for _, o := range c.Outputs {
		ob, os, _ := strings.Cut(string(o), "/")
		if (ob == "*" || ob == base) && os == sub {
			return true
		}
	}
	return false
}

func join(rs []Resource) string {
	ss := make([]string, len(rs))
	for i, r := range rs {
		ss[i] = string(r)
	}
	slices.Sort(ss)
	return strings.Join(ss, ", ")
}
