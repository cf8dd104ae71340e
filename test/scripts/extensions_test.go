package scripts

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
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
// beside it NAME.tar with its images, and links NAME.src/MODULE@VERSION to modules' files.
var programs = filepath.Join(os.TempDir(), "skiff-extensions")

// An extension is built by go, run in a module: a program, or a package's tests.
type extension struct {
	module  string
	pkg     string
	tests   []string // flags of go test; without, the package is a program
	sources []string // modules whose files a script wants, with their version
	images  []image
}

// image holds the program and nothing else.
type image struct {
	name string
	args []string // what its entry point gives the program
}

var extensions = map[string]extension{
	"sample-apiserver": {module: "../conformance", pkg: "k8s.io/sample-apiserver"},
	"operator":         {module: "../extensions/operator", pkg: "."},
	"gateway-standard": {module: "../extensions/gateway", pkg: "sigs.k8s.io/gateway-api/pkg/test/cel", tests: []string{"-tags=standard"},
		sources: []string{"sigs.k8s.io/gateway-api@v1.4.1", "sigs.k8s.io/gateway-api@v1.7.0"}},
	"gateway-experimental": {module: "../extensions/gateway", pkg: "sigs.k8s.io/gateway-api/pkg/test/cel", tests: []string{"-tags=experimental"}},
	"helm":                 {module: "../extensions/helm", pkg: "helm.sh/helm/v4/cmd/helm"},
	"certmanager": {module: "../extensions/certmanager", pkg: ".", sources: []string{"github.com/cert-manager/cert-manager@v1.21.2"},
		images: []image{
			{"quay.io/jetstack/cert-manager-controller:v1.21.2", []string{"controller"}},
			{"quay.io/jetstack/cert-manager-webhook:v1.21.2", []string{"webhook"}},
			{"quay.io/jetstack/cert-manager-cainjector:v1.21.2", []string{"cainjector"}},
		}},
	"metrics-server": {module: "../extensions/metrics", pkg: "sigs.k8s.io/metrics-server/cmd/metrics-server",
		sources: []string{"sigs.k8s.io/metrics-server@v0.9.0"}, images: []image{{name: "registry.k8s.io/metrics-server/metrics-server:v0.9.0"}}},
	"test-adapter": {module: "../extensions/metrics", pkg: "sigs.k8s.io/custom-metrics-apiserver/test-adapter",
		sources: []string{"sigs.k8s.io/custom-metrics-apiserver@v1.37.0"}, images: []image{{name: "localhost/k8s-test-metrics-adapter-amd64:latest"}}},
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
	return pack(filepath.Join(programs, name), e.images)
}

// pack writes the images of a program beside it.
func pack(program string, images []image) error {
	if len(images) == 0 {
		return nil
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	w.WriteHeader(&tar.Header{Name: "program", Mode: 0o755, Size: int64(len(data))})
	w.Write(data)
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return err
	}
	out := map[name.Tag]v1.Image{}
	for _, i := range images {
		tag, err := name.NewTag(i.name)
		if err != nil {
			return err
		}
		made, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
			Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"},
			Config: v1.Config{Entrypoint: append([]string{"/program"}, i.args...), User: "1000"},
		})
		if err != nil {
			return err
		}
		if out[tag], err = mutate.AppendLayers(made, layer); err != nil {
			return err
		}
	}
	return tarball.MultiWriteToFile(program+".tar", out)
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
