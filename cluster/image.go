package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/internal/atomicfile"
	"github.com/skiff-project/skiff/runtime"
	helper "github.com/skiff-project/skiff/runtime/embedded"
)

// ImageName is Skiff's own image: this binary under the names of its
// userland. It is made from the running program, so it is always at hand.
func ImageName() string { return "localhost/skiff:" + Version }

// imageFiles lists Skiff's own image: the binary once, a link per program name.
func imageFiles(self string, shim []byte, applets []string) []runtime.File {
	files := []runtime.File{
		{Path: "/bin/skiff", Host: self, Mode: 0o755},
		{Path: "/bin/skiff-shim", Data: shim, Mode: 0o755},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{Path: "/usr/bin", Link: "../bin"},
		{Path: "/tmp", Mode: os.ModeDir | os.ModeSticky | 0o777},
	}
	for _, dir := range []string{"/root", "/run", "/var/log"} {
		files = append(files, runtime.File{Path: dir, Mode: os.ModeDir | 0o755})
	}
	for _, name := range append([]string{"kubectl", "etcdctl"}, applets...) {
		files = append(files, runtime.File{Path: "/bin/" + name, Link: "skiff"})
	}
	return files
}

var imageConfig = ocispec.ImageConfig{
	Env:        []string{"PATH=/bin", "HOME=/root"},
	Cmd:        []string{"sh"},
	WorkingDir: "/",
}

// imageStamp tells this very binary from one built before or after. A digest of 80 MB at each start would cost more than the start: size,
// times and inode tell a rebuilt binary apart.
func imageStamp(self string) (string, error) {
	f, err := os.Open(self)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %d\n", Version, st.Size(), st.ModTime().UnixNano())
	// The head holds the build ID and changes with every build.
	if _, err := io.CopyN(h, f, 1<<16); err != nil && err != io.EOF {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ensureImage makes Skiff's own image unless the one there is of this binary.
func (c *Cluster) ensureImage(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	stamp, err := imageStamp(self)
	if err != nil {
		return "", err
	}
	mark := c.opts.path("runtime", "skiff-image")
	if old, err := os.ReadFile(mark); err == nil && strings.TrimSpace(string(old)) == stamp && c.hasImage(ctx) {
		return ImageName(), nil
	}
	shim, err := helper.Shim()
	if err != nil {
		return "", err
	}
	if _, err := c.runtime.ImportImage(ctx, ImageName(), imageFiles(self, shim, c.opts.Applets), imageConfig); err != nil {
		return "", fmt.Errorf("make image %s: %w", ImageName(), err)
	}
	if err := os.MkdirAll(filepath.Dir(mark), 0o700); err != nil {
		return "", err
	}
	return ImageName() + " made", atomicfile.Write(mark, []byte(stamp+"\n"), 0o600)
}

func (c *Cluster) hasImage(ctx context.Context) bool {
	resp, err := c.runtime.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: ImageName()}, false)
	return err == nil && resp.GetImage() != nil
}
