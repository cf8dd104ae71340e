package main

import (
	"strings"
	"testing"
)

func TestDifferencesAreListedByReasonOnce(t *testing.T) {
	got := differences("# a comment | b | c\nx | y | because\nz | y | because\n")
	if n := strings.Count(got, "- because\n"); n != 1 || strings.Contains(got, "comment") {
		t.Errorf("%d times in:\n%s", n, got)
	}
}
