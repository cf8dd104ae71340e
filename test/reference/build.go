// Package reference builds upstream's programs (Kubernetes and etcd, in the
// versions of the modules in upstream/ and etcd/) and runs clusters of them, in which
// each component may be upstream's, Skiff's, or absent. Tests compare Skiff
// with such a cluster, and mix the two.
package reference

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Version is the release of Kubernetes that is built; EtcdVersion that of etcd.
const (
	Version     = "v1.37.2"
	EtcdVersion = "v3.7.3"
)

const module = "github.com/skiff-project/skiff"

const ldflags = "-s -w -X k8s.io/component-base/version.gitVersion=" + Version +
	" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37 -X k8s.io/component-base/version.gitTreeState=clean"

// programs lists what is built, and in which folder below the repository.
var programs = []struct{ name, dir, pkg string }{
	{"etcd", etcdDir, "go.etcd.io/etcd/server/v3"},
	{"etcdctl", etcdDir, "go.etcd.io/etcd/etcdctl/v3"},
	{"etcdutl", etcdDir, "go.etcd.io/etcd/etcdutl/v3"},
	{"kube-apiserver", upstreamDir, "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", upstreamDir, "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"kube-scheduler", upstreamDir, "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"kubelet", upstreamDir, "k8s.io/kubernetes/cmd/kubelet"},
	{"kube-proxy", upstreamDir, "k8s.io/kubernetes/cmd/kube-proxy"},
	{"kubectl", upstreamDir, "k8s.io/kubernetes/cmd/kubectl"},
	{"pause", "test/conformance", "./pause"},
}

const (
	upstreamDir = "test/reference/upstream"
	etcdDir     = "test/reference/etcd"
)

// BuildOptions say where to build.
type BuildOptions struct {
	Dir string    // cache of programs; default bin/reference in the repository
	Out io.Writer // progress; default os.Stdout
}

// Binaries are upstream's programs, built.
type Binaries struct{ Dir string }

// Path is where the program of that name is: etcd, etcdctl, etcdutl,
// kube-apiserver, kube-controller-manager, kube-scheduler, kubelet,
// kube-proxy, kubectl, pause.
func (b Binaries) Path(name string) string { return filepath.Join(b.Dir, name) }

// Build compiles what the cache lacks. The first time takes minutes, a
// repeat well under a second. The working folder must be in the repository or
// in a module that requires it.
func Build(ctx context.Context, o BuildOptions) (Binaries, error) {
	if o.Out == nil {
		o.Out = os.Stdout
	}
	root, err := repository(ctx)
	if err != nil {
		return Binaries{}, err
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(root, "bin", "reference")
	}
	versions := runtime.Version() + ldflags
	for _, dir := range []string{upstreamDir, etcdDir} {
		sum, err := os.ReadFile(filepath.Join(root, dir, "go.sum"))
		if err != nil {
			return Binaries{}, err
		}
		versions += string(sum)
	}
	hash := sha256.Sum256([]byte(versions))
	b := Binaries{filepath.Join(o.Dir, hex.EncodeToString(hash[:6]))}
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return b, err
	}
	for i, p := range programs {
		if _, err := os.Stat(b.Path(p.name)); err == nil {
			continue
		}
		fmt.Fprintf(o.Out, "building %s from %s (%d of %d) …\n", p.name, p.pkg, i+1, len(programs))
		began := time.Now()
		if err := compile(ctx, filepath.Join(root, p.dir), p.pkg, b.Path(p.name)); err != nil {
			return b, err
		}
		fmt.Fprintf(o.Out, "built %s in %s\n", p.name, time.Since(began).Round(time.Second))
	}
	return b, nil
}

func compile(ctx context.Context, dir, pkg, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", to+".new", pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "PWD="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return os.Rename(to+".new", to)
}

// repository is the folder of Skiff's sources.
func repository(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the repository (run inside it): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
