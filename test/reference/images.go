package reference

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// PauseImage holds the namespaces of containerd's pods.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// SkiffImage is the image of Skiff's binary under the names of its userland
// (sh, web, sleep, wget …); NextImage the same under another name, to roll to.
const (
	SkiffImage = "localhost/skiff:reference"
	NextImage  = "localhost/skiff:next"
)

// Images writes an archive of PauseImage, SkiffImage and NextImage to path.
func Images(ctx context.Context, b Binaries, skiff, path string) error {
	out, err := exec.CommandContext(ctx, skiff, "sh", "-c", "ls /nonexistent; :").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s does not work: %w\n%s", skiff, err, out)
	}
	pause, err := pack([]entry{{path: "pause", file: b.Path("pause")}}, []string{"/pause"})
	if err != nil {
		return err
	}
	tree := []entry{
		{path: "bin/skiff", file: skiff},
		{path: "etc/passwd", text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"},
		{path: "etc/group", text: "root:x:0:\nnogroup:x:65534:\n"},
	}
	for _, name := range strings.Fields("kubectl etcdctl sh web sleep wget cat echo env hostname id ls nc nslookup ps test true false") {
		tree = append(tree, entry{path: "bin/" + name, link: "skiff"})
	}
	box, err := pack(tree, nil)
	if err != nil {
		return err
	}
	return tarball.MultiWriteToFile(path, map[name.Tag]v1.Image{
		name.MustParseReference(PauseImage).(name.Tag): pause,
		name.MustParseReference(SkiffImage).(name.Tag): box,
		name.MustParseReference(NextImage).(name.Tag):  box,
	})
}

// entry is a file of an image: one of the host, a text, or a link.
type entry struct{ path, file, text, link string }

func pack(tree []entry, entrypoint []string) (v1.Image, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, d := range []string{"bin", "etc", "tmp", "root"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o1777}); err != nil {
			return nil, err
		}
	}
	for _, e := range tree {
		if err := e.write(w); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS = "amd64", "linux"
	cf.Config.Entrypoint, cf.Config.Env = entrypoint, []string{"PATH=/bin"}
	return mutate.ConfigFile(img, cf)
}

func (e entry) write(w *tar.Writer) error {
	h := &tar.Header{Name: e.path, Mode: 0o755}
	data := []byte(e.text)
	switch {
	case e.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
	case e.file != "":
		var err error
		if data, err = os.ReadFile(filepath.Clean(e.file)); err != nil {
			return err
		}
	}
	h.Size = int64(len(data))
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
