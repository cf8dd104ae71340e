package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// tools are upstream's programs, built once per version.
type tools struct{ dir string }

func (t tools) path(name string) string { return filepath.Join(t.dir, name) }

const version = "-X k8s.io/component-base/version.gitVersion=v1.37.2" +
	" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"

// programs lists what is built: the suite, what it calls, what its images hold.
var programs = []struct{ name, verb, pkg string }{
	{"e2e.test", "test", "k8s.io/kubernetes/test/e2e"},
	{"ginkgo", "build", "github.com/onsi/ginkgo/v2/ginkgo"},
	{"kubectl", "build", "k8s.io/kubernetes/cmd/kubectl"},
	{"agnhost", "build", "k8s.io/kubernetes/test/images/agnhost"},
	{"nnp", "build", "k8s.io/kubernetes/test/images/nonewprivs"},
	{"regression-issue-74839", "build", "k8s.io/kubernetes/test/images/regression-issue-74839"},
	{"pause", "build", "./pause"},
	{"busyboxsh", "build", "./busyboxsh"},
	{"sample-apiserver", "build", "k8s.io/sample-apiserver"},
	{"etcd", "build", "go.etcd.io/etcd/server/v3"},
}

// build compiles what the cache lacks. The first time takes ten minutes or so.
func build(ctx context.Context, cache string) (tools, error) {
	sum, err := os.ReadFile("go.sum")
	if err != nil {
		return tools{}, fmt.Errorf("run from test/conformance: %w", err)
	}
	hash := sha256.Sum256([]byte(runtime.Version() + version + string(sum)))
	t := tools{filepath.Join(cache, "bin-"+hex.EncodeToString(hash[:6]))}
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return t, err
	}
	for _, p := range programs {
		if _, err := os.Stat(t.path(p.name)); err == nil {
			continue
		}
		began := time.Now()
		fmt.Printf("building %s from %s …\n", p.name, p.pkg)
		args := []string{p.verb, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w " + version}
		if p.verb == "test" { // vet would read all 2,800 packages once more
			args = append(args, "-c", "-vet=off")
		}
		cmd := exec.CommandContext(ctx, "go", append(args, "-o", t.path(p.name)+".new", p.pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return t, fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
		}
		if err := os.Rename(t.path(p.name)+".new", t.path(p.name)); err != nil {
			return t, err
		}
		fmt.Printf("built %s in %s\n", p.name, time.Since(began).Round(time.Second))
	}
	return t, nil
}

// moduleDir is where the Go tool keeps the sources of a required module.
func moduleDir(ctx context.Context, module string) (string, error) {
	if out, err := exec.CommandContext(ctx, "go", "mod", "download", module).CombinedOutput(); err != nil {
		return "", fmt.Errorf("download %s: %w\n%s", module, err, out)
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}
