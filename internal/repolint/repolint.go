// Package repolint holds the rules of this repository that a compiler does
// not check: which room may import which, with the reason; that every package
// says what it is; that files, functions and packages stay small enough to
// read; that names mean something. Its test runs with all others.
package repolint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Module is the import path of the repository.
const Module = "github.com/skiff-project/skiff"

// Caps, in lines. What is over a cap today is named in ratchet.txt with its
// size and may only shrink.
const (
	MaxFileLines     = 800
	MaxFunctionLines = 70
	MaxPackageLines  = 5000
)

// File is one parsed Go file.
type File struct {
	Path  string // slash-separated, from the root of the repository
	Test  bool
	Lines int
	AST   *ast.File
}

// Tree is a parsed repository.
type Tree struct {
	Fset  *token.FileSet
	Files []File
}

// Load parses every Go file below root, leaving out testdata, hidden folders
// and modules of their own (a folder other than root with a go.mod).
func Load(root string) (*Tree, error) {
	t := &Tree{Fset: token.NewFileSet()}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipFolder(root, p, rel)
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(t.Fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		t.Files = append(t.Files, File{
			Path:  filepath.ToSlash(rel),
			Test:  strings.HasSuffix(p, "_test.go"),
			Lines: t.Fset.File(f.Pos()).LineCount(),
			AST:   f,
		})
		return nil
	})
	return t, err
}

func skipFolder(root, p, rel string) error {
	name := filepath.Base(p)
	if rel == "." {
		return nil
	}
	if name == "testdata" || name == "bin" || strings.HasPrefix(name, ".") {
		return fs.SkipDir
	}
	if m, _ := filepath.Glob(filepath.Join(p, "go.mod")); len(m) > 0 && p != root {
		return fs.SkipDir
	}
	return nil
}

// Rule forbids imports between rooms.
type Rule struct {
	From   string   // folder (and all below) the rule binds
	Except []string // folders below From that are free of it
	Deny   []string // import path prefixes, Module-relative when they start with "/"
	Allow  []string // exceptions to Deny
	Why    string
}

// within reports whether the slash path p is folder or lies below it.
func within(p, folder string) bool {
	return folder == "" || p == folder || strings.HasPrefix(p, folder+"/")
}

func (r Rule) denies(imp string) bool {
	for _, a := range r.Allow {
		if within(imp, absolute(a)) {
			return false
		}
	}
	for _, d := range r.Deny {
		if within(imp, absolute(d)) {
			return true
		}
	}
	return false
}

func absolute(imp string) string {
	if strings.HasPrefix(imp, "/") {
		return Module + imp
	}
	return imp
}

// Imports checks the rules; test files are bound too, except where a rule
// could only be met by not testing (a test may import what it tests with).
func (t *Tree) Imports(rules []Rule) []string {
	var bad []string
	for _, f := range t.Files {
		dir := path.Dir(f.Path)
		for _, spec := range f.AST.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			for _, r := range rules {
				if f.Test || !within(dir, r.From) || exempt(dir, r.Except) || !r.denies(imp) {
					continue
				}
				bad = append(bad, fmt.Sprintf("%s imports %s: %s", f.Path, imp, r.Why))
			}
		}
	}
	return bad
}

func exempt(dir string, folders []string) bool {
	for _, e := range folders {
		if within(dir, e) {
			return true
		}
	}
	return false
}

// Docs lists packages without a package comment.
func (t *Tree) Docs() []string {
	has := map[string]bool{}
	for _, f := range t.Files {
		if f.Test {
			continue
		}
		dir := path.Dir(f.Path)
		has[dir] = has[dir] || f.AST.Doc != nil
	}
	var bad []string
	for dir, ok := range has {
		if !ok {
			bad = append(bad, dir+": no file has a package comment; say in one what the package is for")
		}
	}
	sort.Strings(bad)
	return bad
}

var bannedNames = map[string]bool{
	"util": true, "utils": true, "common": true, "helper": true, "helpers": true,
	"types": true, "manager": true, "misc": true, "shared": true,
}

// Names lists packages whose name says nothing, and init functions, which
// hide wiring that belongs in an explicit list.
func (t *Tree) Names() []string {
	var bad []string
	for _, f := range t.Files {
		if bannedNames[f.AST.Name.Name] {
			bad = append(bad, f.Path+": package name "+f.AST.Name.Name+" says nothing; name what is in it")
		}
		for _, d := range f.AST.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && fn.Name.Name == "init" {
				bad = append(bad, f.Path+": init function; wire it in an explicit list")
			}
		}
	}
	return bad
}

// Size is one thing over its cap: the key names it in ratchet.txt.
type Size struct {
	Key   string
	Lines int
	Cap   int
}

// Sizes lists files, functions and packages (tests not counted) over their caps.
func (t *Tree) Sizes() []Size {
	var over []Size
	packages := map[string]int{}
	for _, f := range t.Files {
		if f.Test {
			continue
		}
		packages[path.Dir(f.Path)] += f.Lines
		if f.Lines > MaxFileLines {
			over = append(over, Size{"file " + f.Path, f.Lines, MaxFileLines})
		}
		for _, d := range f.AST.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
				n := t.Fset.Position(fn.End()).Line - t.Fset.Position(fn.Pos()).Line + 1
				if n > MaxFunctionLines {
					over = append(over, Size{"func " + f.Path + ":" + functionName(fn), n, MaxFunctionLines})
				}
			}
		}
	}
	for dir, n := range packages {
		if n > MaxPackageLines {
			over = append(over, Size{"package " + dir, n, MaxPackageLines})
		}
	}
	sort.Slice(over, func(i, j int) bool { return over[i].Key < over[j].Key })
	return over
}

func functionName(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return fn.Name.Name
	}
	e := fn.Recv.List[0].Type
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	if g, ok := e.(*ast.IndexExpr); ok {
		e = g.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name + "." + fn.Name.Name
	}
	return fn.Name.Name
}
