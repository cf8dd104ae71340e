package features

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The list is what it says it is: sorted, each gate once.
func TestList(t *testing.T) {
	line := regexp.MustCompile(`^\w+ ((true|false) (ALPHA|BETA|GA|DEPRECATED)|false (BETA|GA) absent)$`)
	for _, l := range strings.Split(strings.TrimSpace(text), "\n")[1:] {
		if !line.MatchString(l) {
			t.Errorf("bad line %q", l)
		}
	}
	var names []string
	for f := range All() {
		names = append(names, f.Name)
		if f.Absent && f.On {
			t.Errorf("%s is on, and absent", f.Name)
		}
	}
	if len(names) < 200 || !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("%d gates: %v", len(names), names)
	}
}
