// Package gates are the flags by which upstream's components turn features and API versions on and off. Here they are
// what they are: a value that asks for that is taken, any other is an error.
package gates

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/internal/features"
)

// Gates is the value of --feature-gates: Name=true or false, comma-separated, each maybe with "kube:" before it.
type Gates struct{ given string }

func (g *Gates) String() string { return g.given }
func (g *Gates) Type() string   { return "mapStringBool" }

// Set takes a list of gates, or "" or {}.
func (g *Gates) Set(list string) error {
	for pair := range strings.SplitSeq(strings.Trim(list, "{}"), ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(pair, "kube:"), "=")
		if name = strings.TrimSpace(name); !ok {
			return fmt.Errorf("missing bool value for %s", name)
		}
		want, err := strconv.ParseBool(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("invalid value of %s=%s, err: %w", name, value, err)
		}
		if err := Check(name, want); err != nil {
			return err
		}
	}
	g.given = list
	return nil
}

// Check returns an error unless a gate is known and is what is wanted.
func Check(name string, want bool) error {
	for f := range features.All() {
		if f.Name != name {
			continue
		}
		switch {
		case f.On == want:
			return nil
		case f.Absent:
			return fmt.Errorf("%s: this feature is not here: leave it out", name)
		case want:
			return fmt.Errorf("%s is off, as it is by default in v1.37, and its feature is not here: leave it out", name)
		}
		return fmt.Errorf("%s is on, as it is by default in v1.37, and cannot be turned off: leave it out", name)
	}
	return fmt.Errorf("unrecognized feature gate: %s", name)
}

// APIs is the value of --runtime-config: group/version, group/version/resource or one of api/all, api/ga, api/beta,
// api/alpha and api/legacy, each =true or false, comma-separated.
type APIs struct {
	given string
	// Served lists what is; required.
	Served func() []schema.GroupVersionResource
}

func (a *APIs) String() string { return a.given }
func (a *APIs) Type() string   { return "mapStringString" }

// Set takes such a list.
func (a *APIs) Set(list string) error {
	for pair := range strings.SplitSeq(list, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		want := true // upstream: a name alone is on
		if value != "" {
			var err error
			if want, err = strconv.ParseBool(value); err != nil {
				return fmt.Errorf("invalid value of %s=%s, err: %w", name, value, err)
			}
		}
		if err := a.check(name, want); err != nil {
			return err
		}
	}
	a.given = list
	return nil
}

func (a *APIs) check(name string, want bool) error {
	switch name {
	case "api/all", "api/ga", "api/legacy": // all: those that are there
		if !want {
			return fmt.Errorf("%s=false: what is stable is always served: leave it out", name)
		}
		return nil
	case "api/beta", "api/alpha":
		if want {
			return fmt.Errorf("%s=true: of these versions only those are served that are on by default: leave it out", name)
		}
		return nil
	}
	group, rest, _ := strings.Cut(name, "/")
	version, resource, _ := strings.Cut(rest, "/")
	if group == "v1" && rest == "" || group == "api" { // the core group: v1, api/v1
		group, version = "", "v1"
	}
	served := false
	for _, r := range a.Served() {
		served = served || r.Group == group && r.Version == version && (resource == "" || r.Resource == resource)
	}
	switch {
	case served && !want:
		return fmt.Errorf("%s=false: it is served, and cannot be turned off: leave it out", name)
	case !served && want:
		return fmt.Errorf("%s=true: it is not served here: leave it out", name)
	}
	return nil
}
