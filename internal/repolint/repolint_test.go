package repolint

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite ratchet.txt with today's sizes (sizes may only shrink in review)")

func load(t *testing.T) *Tree {
	t.Helper()
	tree, err := Load("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files) < 10 {
		t.Fatalf("only %d Go files found: the walk is broken", len(tree.Files))
	}
	return tree
}

func TestImportsGoOneWay(t *testing.T) { report(t, load(t).Imports(Rules())) }
func TestPackagesAreDocumented(t *testing.T) {
	report(t, load(t).Docs())
}
func TestNamesMeanSomething(t *testing.T) { report(t, load(t).Names()) }

func report(t *testing.T, bad []string) {
	t.Helper()
	for _, b := range bad {
		t.Error(b)
	}
}

func TestSizesOnlyShrink(t *testing.T) {
	sizes := load(t).Sizes()
	if *rewrite {
		writeRatchet(t, sizes)
		return
	}
	allowed := readRatchet(t)
	seen := map[string]bool{}
	for _, s := range sizes {
		seen[s.Key] = true
		switch was, ok := allowed[s.Key]; {
		case !ok:
			t.Errorf("%s has %d lines, cap %d: split it", s.Key, s.Lines, s.Cap)
		case s.Lines > was:
			t.Errorf("%s grew from %d to %d lines (cap %d): split it", s.Key, was, s.Lines, s.Cap)
		}
	}
	for key := range allowed {
		if !seen[key] {
			t.Errorf("%s is within its cap now: take it out of ratchet.txt", key)
		}
	}
}

func readRatchet(t *testing.T) map[string]int {
	t.Helper()
	data, err := os.ReadFile("ratchet.txt")
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]int{}
	sc := bufio.NewScanner(strings.NewReader(string(data)))
	for sc.Scan() {
		n, key, ok := strings.Cut(sc.Text(), "\t")
		if !ok || strings.HasPrefix(n, "#") {
			continue
		}
		lines, err := strconv.Atoi(n)
		if err != nil {
			t.Fatalf("ratchet.txt: %q: %v", sc.Text(), err)
		}
		allowed[key] = lines
	}
	return allowed
}

func writeRatchet(t *testing.T, sizes []Size) {
	t.Helper()
	var b strings.Builder
	b.WriteString("# What is over its cap today, with its size: entries may shrink and go, not grow.\n")
	for _, s := range sizes {
		fmt.Fprintf(&b, "%d\t%s\n", s.Lines, s.Key)
	}
	if err := os.WriteFile("ratchet.txt", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Direct requirements are a budget of 60, and each has its line in docs/SCOPE.md.
func TestDependenciesAreBudgeted(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{if not (or .Main .Indirect)}}{{.Path}}{{end}}", "all").Output()
	if err != nil {
		t.Fatal(err)
	}
	direct := strings.Fields(string(out))
	sort.Strings(direct)
	if len(direct) > 60 {
		t.Errorf("%d direct requirements, budget 60", len(direct))
	}
	scope, err := os.ReadFile(filepath.Join("..", "..", "docs", "SCOPE.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range direct {
		if !strings.Contains(string(scope), "`"+d+"`") {
			t.Errorf("docs/SCOPE.md has no line for `%s`: say why it is needed", d)
		}
	}
}

// The rules themselves: each one must catch what it names.
func TestRuleDenies(t *testing.T) {
	r := Rule{Deny: []string{"/store", "k8s.io/apiserver"}, Allow: []string{"k8s.io/apiserver/pkg/cel"}}
	for imp, want := range map[string]bool{
		Module + "/store":                 true,
		Module + "/store/wal":             true,
		Module + "/storefront":            false,
		"k8s.io/apiserver/pkg/server":     true,
		"k8s.io/apiserver/pkg/cel/common": false,
		"k8s.io/api/core/v1":              false,
	} {
		if got := r.denies(imp); got != want {
			t.Errorf("denies(%q) = %v, want %v", imp, got, want)
		}
	}
}
