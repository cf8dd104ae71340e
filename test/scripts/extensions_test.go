package scripts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestExtensions runs other people's programs against Skiff, unmodified and built from
// their Go modules: minutes the first time, so only where SKIFF_EXTENSIONS is set, as by
// make extensions.
func TestExtensions(t *testing.T) {
	if os.Getenv("SKIFF_EXTENSIONS") == "" {
		t.Skip("make extensions runs it: it builds cert-manager, Helm and others from their modules")
	}
	run(t, filepath.Join("testdata", "extensions"))
}

// programs is where what the conditions "extension:NAME" build is put, each under its name;
// beside it links NAME.src/MODULE@VERSION to modules' files.
var programs = filepath.Join(os.TempDir(), "skiff-extensions")

// An extension is built by go, run in a module: a program, or a package's tests.
type extension struct {
	module  string
	pkg     string
	tests   []string // flags of go test; without, the package is a program
	sources []string // modules whose files a script wants, with their version
}

var extensions = map[string]extension{
	"sample-apiserver": {module: "../conformance", pkg: "k8s.io/sample-apiserver"},
	"operator":         {module: "../extensions/operator", pkg: "."},
	"gateway-standard": {module: "../extensions/gateway", pkg: "sigs.k8s.io/gateway-api/pkg/test/cel", tests: []string{"-tags=standard"},
		sources: []string{"sigs.k8s.io/gateway-api@v1.4.1", "sigs.k8s.io/gateway-api@v1.7.0"}},
	"gateway-experimental": {module: "../extensions/gateway", pkg: "sigs.k8s.io/gateway-api/pkg/test/cel", tests: []string{"-tags=experimental"}},
}

// haveExtension builds it, or says that it cannot be built; where the extensions are what is asked for that is an error.
func haveExtension(name string) (bool, error) {
	e, ok := extensions[name]
	if !ok {
		return false, fmt.Errorf("unknown extension %q", name)
	}
	err := e.make(name)
	if err != nil && os.Getenv("CI")+os.Getenv("SKIFF_EXTENSIONS") != "" {
		return false, fmt.Errorf("extension %s: %w", name, err)
	}
	return err == nil, nil
}

func (e extension) make(name string) error {
	args := []string{"build"}
	if e.tests != nil {
		args = append([]string{"test", "-c"}, e.tests...)
	}
	if _, err := e.run(append(args, "-o", filepath.Join(programs, name), e.pkg)...); err != nil {
		return err
	}
	for _, module := range e.sources {
		out, err := e.run("mod", "download", "-json", module)
		var at struct{ Dir string }
		if err == nil {
			err = json.Unmarshal(out, &at)
		}
		if err != nil {
			return err
		}
		link := filepath.Join(programs, name+".src", module)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		os.Remove(link)
		if err := os.Symlink(at.Dir, link); err != nil {
			return err
		}
	}
	return nil
}

// run runs go in the module. Some modules want a newer go, which comes from the proxy as they do.
func (e extension) run(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = e.module, append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=auto")
	out, err := cmd.Output()
	if failed, ok := err.(*exec.ExitError); ok {
		return nil, fmt.Errorf("%s, in test/scripts/%s: %w\n%s%s", cmd, e.module, err, out, failed.Stderr)
	}
	return out, err
}
