package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxJSON bounds a manifest, index or configuration read from outside, in bytes.
const maxJSON = 8 << 20

// files is where an archive's members are read from.
type files interface {
	// open returns a member by its slash path; the error is os.ErrNotExist without it.
	open(name string) (io.ReadCloser, int64, error)
}

type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

type span struct{ off, size int64 }

// tarFiles indexes an uncompressed tar file once, then reads members in any order.
type tarFiles struct {
	f     *os.File
	spans map[string]span
	links map[string]string
}

func (t tarFiles) open(name string) (io.ReadCloser, int64, error) {
	for range 8 { // docker save links equal layers to each other
		if s, ok := t.spans[name]; ok {
			return io.NopCloser(io.NewSectionReader(t.f, s.off, s.size)), s.size, nil
		}
		target, ok := t.links[name]
		if !ok {
			break
		}
		name = target
	}
	return nil, 0, fmt.Errorf("archive member %q: %w", name, os.ErrNotExist)
}

func indexTar(f *os.File) (tarFiles, error) {
	t := tarFiles{f: f, spans: map[string]span{}, links: map[string]string{}}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return t, err
	}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("not an image archive, or a damaged one: %w", err)
		}
		if len(t.spans) > 100_000 {
			return t, errors.New("image archive has more than 100000 members")
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch h.Typeflag {
		case tar.TypeReg:
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return t, err
			}
			t.spans[name] = span{off, h.Size}
		case tar.TypeSymlink:
			t.links[name] = strings.TrimPrefix(path.Join("/", path.Dir(name), h.Linkname), "/")
		case tar.TypeLink:
			t.links[name] = strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		}
	}
}

// LoadArchive loads every image of the OCI archive, Docker archive (each plain, gzip
// or zstd) or OCI layout folder at name. It returns each image's tags, or its id
// where it has none. On an error no image of the archive is added.
func (s *Store) LoadArchive(ctx context.Context, name string) ([]string, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return s.loadFiles(ctx, dirFiles{root})
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return s.loadFile(ctx, f)
}

// LoadReader is LoadArchive for a stream, which is kept in a file meanwhile.
func (s *Store) LoadReader(ctx context.Context, r io.Reader) ([]string, error) {
	tmp, err := s.spool(ctx, r)
	if err != nil {
		return nil, err
	}
	defer tmp.Close()
	return s.loadFile(ctx, tmp)
}

// spool copies a stream, decompressed, to a file without a name.
func (s *Store) spool(ctx context.Context, r io.Reader) (*os.File, error) {
	plain, done, err := decompress(&ctxReader{ctx, r})
	if err != nil {
		return nil, err
	}
	defer done()
	f, err := os.CreateTemp(s.path("tmp"), "archive-")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	if _, err := io.Copy(f, io.LimitReader(plain, s.cfg.MaxLayerBytes)); err != nil {
		f.Close()
		return nil, fmt.Errorf("image archive: %w", err)
	}
	return f, nil
}

func (s *Store) loadFile(ctx context.Context, f *os.File) ([]string, error) {
	head := make([]byte, 4)
	n, _ := f.ReadAt(head, 0)
	head = head[:n]
	if n == 4 && (head[0] == 0x1f && head[1] == 0x8b || string(head) == "\x28\xb5\x2f\xfd") {
		plain, err := s.spool(ctx, io.NewSectionReader(f, 0, 1<<62))
		if err != nil {
			return nil, err
		}
		defer plain.Close()
		f = plain
	}
	t, err := indexTar(f)
	if err != nil {
		return nil, err
	}
	return s.loadFiles(ctx, t)
}

// candidate is one image found in an archive.
type candidate struct {
	config   []byte
	manifest []byte // raw OCI manifest, if the archive has one
	layers   []source
	tags     []string
}

func (s *Store) loadFiles(ctx context.Context, fs files) ([]string, error) {
	found, err := readDocker(fs)
	if errors.Is(err, os.ErrNotExist) {
		found, err = readOCI(fs)
	}
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("archive holds no image for %s/%s", "linux", runtime.GOARCH)
	}
	var names []string
	var made []*Image
	for _, c := range found {
		img, release, err := s.build(ctx, c)
		if release != nil {
			defer release()
		}
		if err != nil {
			return nil, errors.Join(err, s.afterFailure(release))
		}
		made = append(made, img)
	}
	for _, img := range made {
		if err := s.add(img); err != nil {
			return nil, err
		}
		if len(img.Tags) == 0 {
			names = append(names, img.ID)
		}
		names = append(names, img.Tags...)
	}
	return names, nil
}

// afterFailure takes away the layers a failed load had already placed.
func (s *Store) afterFailure(release func()) error {
	if release != nil {
		release()
	}
	return s.Collect()
}

// build unpacks a candidate and stores its configuration. release gives up its lease:
// call it once the image is added, or not wanted.
func (s *Store) build(ctx context.Context, c candidate) (*Image, func(), error) {
	var cfg ocispec.Image
	if err := json.Unmarshal(c.config, &cfg); err != nil {
		return nil, nil, fmt.Errorf("image configuration: %w", err)
	}
	if cfg.RootFS.Type != "" && cfg.RootFS.Type != "layers" || len(cfg.RootFS.DiffIDs) != len(c.layers) {
		return nil, nil, fmt.Errorf("image configuration lists %d layers, the manifest %d: the image is corrupt",
			len(cfg.RootFS.DiffIDs), len(c.layers))
	}
	if cfg.OS != "" && cfg.OS != "linux" {
		return nil, nil, fmt.Errorf("image is for %s, not for linux", cfg.OS)
	}
	diffs := make([]string, len(c.layers))
	for i := range c.layers {
		diffs[i] = cfg.RootFS.DiffIDs[i].String()
		c.layers[i].diffID = diffs[i]
	}
	release := onceFunc(s.lease(ChainIDs(diffs)))
	chains, size, err := s.unpackAll(ctx, c.layers)
	if err != nil {
		return nil, release, err
	}
	id, err := s.putBlob(c.config)
	if err != nil {
		return nil, release, err
	}
	img := &Image{ID: id, Tags: c.tags, Layers: chains, Size: size + uint64(len(c.config)), User: cfg.Config.User}
	if len(c.manifest) > 0 {
		if img.Manifest, err = s.putBlob(c.manifest); err != nil {
			return nil, release, err
		}
		for _, t := range c.tags {
			if r, err := Parse(t); err == nil {
				img.Digests = append(img.Digests, r.Name+"@"+img.Manifest)
			}
		}
	}
	return img, release, nil
}

func onceFunc(f func()) func() {
	done := false
	return func() {
		if !done {
			done = true
			f()
		}
	}
}

func readJSON(fs files, name string, limit int64, v any) ([]byte, error) {
	r, _, err := fs.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// readDocker reads what docker save wrote.
func readDocker(fs files) ([]candidate, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if _, err := readJSON(fs, "manifest.json", maxJSON, &list); err != nil {
		return nil, err
	}
	var out []candidate
	for _, e := range list {
		var cfg ocispec.Image
		b, err := readJSON(fs, cleanMember(e.Config), maxJSON, &cfg)
		if err != nil {
			return nil, noArchiveMember(err)
		}
		if !ourPlatform(cfg.OS, cfg.Architecture) {
			continue
		}
		c := candidate{config: b}
		for _, t := range e.RepoTags {
			r, err := Parse(t)
			if err != nil {
				return nil, err
			}
			c.tags = append(c.tags, r.Tagged())
		}
		for _, l := range e.Layers {
			c.layers = append(c.layers, source{open: opener(fs, cleanMember(l))})
		}
		out = append(out, c)
	}
	return out, nil
}

func cleanMember(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// noArchiveMember keeps a missing member from looking like a missing manifest.
func noArchiveMember(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("image archive is incomplete: %s", err)
	}
	return err
}

func opener(fs files, name string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) {
		r, _, err := fs.open(name)
		return r, noArchiveMember(err)
	}
}

func ourPlatform(os, arch string) bool {
	return (os == "" || os == "linux") && (arch == "" || arch == runtime.GOARCH)
}

// readOCI reads an OCI image layout.
func readOCI(fs files) ([]candidate, error) {
	var index ocispec.Index
	if _, err := readJSON(fs, "index.json", maxJSON, &index); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, errors.New("not an image archive: neither manifest.json nor index.json in it")
		}
		return nil, err
	}
	return readIndex(fs, index, nil, 0)
}

func readIndex(fs files, index ocispec.Index, tags []string, depth int) ([]candidate, error) {
	if depth > 4 || len(index.Manifests) > 1024 {
		return nil, errors.New("image index is nested too deeply or too long")
	}
	var out []candidate
	for _, d := range index.Manifests {
		if d.Platform != nil && !ourPlatform(d.Platform.OS, d.Platform.Architecture) {
			continue
		}
		t, err := refNames(d.Annotations)
		if err != nil {
			return nil, err
		}
		t = append(t, tags...)
		c, err := readDescriptor(fs, d, t, depth)
		if err != nil {
			return nil, err
		}
		out = append(out, c...)
	}
	return out, nil
}

// refNames are the names an index gives an image. A bare tag without a name, as
// skopeo writes it, names nothing.
func refNames(a map[string]string) ([]string, error) {
	name := a["io.containerd.image.name"]
	if name == "" {
		name = a[ocispec.AnnotationRefName]
		if !strings.ContainsAny(name, "/:") {
			return nil, nil
		}
	}
	r, err := Parse(name)
	if err != nil {
		return nil, err
	}
	if r.Tag == "" {
		return nil, nil
	}
	return []string{r.Tagged()}, nil
}

func readDescriptor(fs files, d ocispec.Descriptor, tags []string, depth int) ([]candidate, error) {
	b, err := readBlob(fs, d)
	if err != nil {
		return nil, err
	}
	var both struct {
		ocispec.Manifest
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &both); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if len(both.Manifests) > 0 {
		return readIndex(fs, ocispec.Index{Manifests: both.Manifests}, tags, depth+1)
	}
	c := candidate{manifest: b, tags: tags}
	if c.config, err = readBlob(fs, both.Config); err != nil {
		return nil, err
	}
	var cfg ocispec.Image
	if err := json.Unmarshal(c.config, &cfg); err != nil {
		return nil, fmt.Errorf("image configuration %s: %w", both.Config.Digest, err)
	}
	if !ourPlatform(cfg.OS, cfg.Architecture) {
		return nil, nil
	}
	for _, l := range both.Layers {
		member, err := blobMember(l)
		if err != nil {
			return nil, err
		}
		c.layers = append(c.layers, source{digest: l.Digest.String(), size: l.Size, open: opener(fs, member)})
	}
	return []candidate{c}, nil
}

func blobMember(d ocispec.Descriptor) (string, error) {
	if !digestRE.MatchString(d.Digest.String()) {
		return "", fmt.Errorf("unsupported digest %q in the image", d.Digest)
	}
	return filepath.ToSlash(filepath.Join("blobs", "sha256", d.Digest.Encoded())), nil
}

func readBlob(fs files, d ocispec.Descriptor) ([]byte, error) {
	member, err := blobMember(d)
	if err != nil {
		return nil, err
	}
	r, _, err := fs.open(member)
	if err != nil {
		return nil, noArchiveMember(err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxJSON {
		return nil, fmt.Errorf("blob %s is larger than %d bytes", d.Digest, maxJSON)
	}
	if got := Digest(b); got != d.Digest.String() {
		return nil, fmt.Errorf("blob %s has digest %s: the image is corrupt", d.Digest, got)
	}
	return b, nil
}
