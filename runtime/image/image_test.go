package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func newStore(t testing.TB) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	s, err := New(Config{Root: filepath.Join(t.TempDir(), "images")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// entry is one member of a layer; content is the body of a file or a link's target.
type entry struct {
	name    string
	typ     byte
	content string
	mode    int64
	pax     map[string]string
}

func layerBytes(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Mode: e.mode, PAXRecords: e.pax, Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		switch h.Typeflag {
		case tar.TypeReg:
			h.Size = int64(len(e.content))
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = e.content
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write([]byte(e.content))
		}
	}
	w.Close()
	return b.Bytes()
}

func makeImage(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	conf, _ := img.ConfigFile()
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", runtime.GOARCH
	conf.Config = v1.Config{Entrypoint: []string{"/bin/x"}, User: "1000"}
	img, err := mutate.ConfigFile(img, conf)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func dockerArchive(t testing.TB, img v1.Image, ref string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func ociLayout(t testing.TB, img v1.Image, ref string) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: ref})); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tarDir(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return b.Bytes()
}

func compressed(t testing.TB, kind string, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	switch kind {
	case "gzip":
		z := gzip.NewWriter(&out)
		z.Write(b)
		z.Close()
	case "zstd":
		z, _ := zstd.NewWriter(&out)
		z.Write(b)
		z.Close()
	default:
		out.Write(b)
	}
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// leftovers lists everything a store holds.
func leftovers(s *Store) []string {
	var out []string
	for _, d := range []string{"layers", "tmp", "blobs/sha256"} {
		es, _ := os.ReadDir(s.path(d))
		for _, e := range es {
			out = append(out, d+"/"+e.Name())
		}
	}
	return out
}

func TestLoadEveryKindOfArchive(t *testing.T) {
	img := makeImage(t, layerBytes(t, entry{name: "a", content: "one"}), layerBytes(t, entry{name: "b", content: "two"}))
	docker, err := os.ReadFile(dockerArchive(t, img, "example.com/app:v1"))
	if err != nil {
		t.Fatal(err)
	}
	dir := ociLayout(t, img, "example.com/app:v1")
	oci := tarDir(t, dir)
	for name, path := range map[string]string{
		"docker": compressed(t, "", docker), "docker gzip": compressed(t, "gzip", docker), "docker zstd": compressed(t, "zstd", docker),
		"oci": compressed(t, "", oci), "oci gzip": compressed(t, "gzip", oci), "layout folder": dir,
	} {
		s := newStore(t)
		names, err := s.LoadArchive(context.Background(), path)
		if err != nil || len(names) != 1 || names[0] != "example.com/app:v1" {
			t.Errorf("%s: %v %v", name, names, err)
			continue
		}
		got, err := s.Resolve("example.com/app:v1")
		want, _ := img.ConfigName()
		if err != nil || got.ID != want.String() || len(got.Layers) != 2 || got.User != "1000" {
			t.Errorf("%s: %+v %v, want id %s", name, got, err, want)
		}
		if b, err := os.ReadFile(filepath.Join(s.LayerDir(got.Layers[1]), "b")); string(b) != "two" {
			t.Errorf("%s: %q %v", name, b, err)
		}
		if err := s.Remove("example.com/app:v1"); err != nil {
			t.Error(err)
		}
		if l := leftovers(s); len(l) != 0 {
			t.Errorf("%s: left after removal: %v", name, l)
		}
	}
}

func TestCorruptArchiveLeavesNothing(t *testing.T) {
	img := makeImage(t, layerBytes(t, entry{name: "a", content: strings.Repeat("one", 1000)}), layerBytes(t, entry{name: "b", content: strings.Repeat("two", 1000)}))
	good, _ := os.ReadFile(dockerArchive(t, img, "example.com/app:v1"))
	oci := tarDir(t, ociLayout(t, img, "example.com/app:v1"))
	s := newStore(t)
	tried := 0
	for _, archive := range [][]byte{good, oci} {
		for cut := 1; cut < len(archive)-1024; cut += len(archive) / 23 {
			_, err := s.LoadReader(context.Background(), bytes.NewReader(archive[:cut]))
			for _, i := range s.List() {
				s.Remove(i.ID) // only the end's padding was missing
			}
			if err == nil && cut < len(archive)-2048 {
				t.Errorf("archive cut at %d of %d was loaded", cut, len(archive))
			}
			tried++
		}
		for at := 0; at < len(archive); at += 97 {
			bad := bytes.Clone(archive)
			bad[at] ^= 0x40
			if _, err := s.LoadReader(context.Background(), bytes.NewReader(bad)); err == nil {
				// A flip in padding or in an unused header field changes nothing.
				for _, i := range s.List() {
					want, _ := img.ConfigName()
					if i.ID != want.String() && len(i.Layers) != 2 {
						t.Errorf("flip at %d loaded %+v", at, i)
					}
					s.Remove(i.ID)
				}
			}
			tried++
		}
	}
	if l := leftovers(s); len(l) != 0 || tried < 100 {
		t.Errorf("after %d damaged archives: %v", tried, l)
	}
	if _, err := s.LoadReader(context.Background(), strings.NewReader("not an archive at all")); err == nil {
		t.Error("garbage was loaded")
	}
}

func TestLayerContent(t *testing.T) {
	s := newStore(t)
	base := layerBytes(t,
		entry{name: "tmp", typ: tar.TypeDir, mode: 0o1777}, entry{name: "etc", typ: tar.TypeDir, mode: 0o755}, entry{name: "etc/gone", content: "x"},
		entry{name: "opq", typ: tar.TypeDir, mode: 0o755}, entry{name: "opq/below", content: "x"},
		entry{name: "bin/su", content: "x", mode: 0o4755, pax: map[string]string{"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
		entry{name: "bin/su2", typ: tar.TypeLink, content: "bin/su"}, entry{name: "link", typ: tar.TypeSymlink, content: "etc"},
		entry{name: "etc/again", content: "first"}, entry{name: "etc/again", content: "second"})
	top := layerBytes(t, entry{name: "etc/.wh.gone"}, entry{name: "opq/.wh..wh..opq"}, entry{name: "opq/above", content: "y"}, entry{name: "tmp/file", content: "z"})
	names, err := s.LoadArchive(context.Background(), dockerArchive(t, makeImage(t, base, top), "x/y:1"))
	if err != nil {
		t.Fatal(err)
	}
	img, _ := s.Resolve(names[0])
	fd, err := s.RootFS(img.Layers, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	stat := func(p string) (st unix.Stat_t, err error) {
		err = unix.Fstatat(fd, p, &st, unix.AT_SYMLINK_NOFOLLOW)
		return st, err
	}
	for _, p := range []string{"etc/gone", "opq/below"} {
		if _, err := stat(p); err != unix.ENOENT {
			t.Errorf("%s is still there: %v", p, err)
		}
	}
	if st, _ := stat("tmp"); st.Mode&0o7777 != 0o1777 {
		t.Errorf("/tmp is %o", st.Mode)
	}
	a, _ := stat("bin/su")
	b, _ := stat("bin/su2")
	if a.Ino != b.Ino || a.Nlink != 2 || a.Mode&0o7777 != 0o4755 {
		t.Errorf("hard link: %+v %+v", a, b)
	}
	dir := s.LayerDir(img.Layers[0])
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(dir, "bin/su"), "user.note", buf); err != nil || string(buf[:n]) != "kept" {
		t.Errorf("attribute: %q %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Getxattr(filepath.Join(dir, "bin/su"), "trusted.overlay.redirect", buf); err == nil {
		t.Error("an image set an attribute of overlayfs")
	}
	if c, _ := os.ReadFile(filepath.Join(dir, "etc/again")); string(c) != "second" {
		t.Errorf("repeated entry: %q", c)
	}
}

func TestHostileLayersStayInside(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	os.MkdirAll(victim, 0o755)
	os.WriteFile(filepath.Join(victim, "f"), []byte("safe"), 0o644)
	for name, entries := range map[string][]entry{
		"dotdot":             {{name: "../../../../../../../../" + victim + "/f", content: "owned"}},
		"link then file":     {{name: "l", typ: tar.TypeSymlink, content: victim}, {name: "l/f", content: "owned"}},
		"link chain":         {{name: "a", typ: tar.TypeSymlink, content: "b"}, {name: "b", typ: tar.TypeSymlink, content: victim}, {name: "a/f", content: "owned"}},
		"hard link outside":  {{name: "h", typ: tar.TypeLink, content: victim + "/f"}},
		"hard link dotdot":   {{name: "h", typ: tar.TypeLink, content: "../../../../../../.." + victim + "/f"}},
		"hard link via link": {{name: "l", typ: tar.TypeSymlink, content: victim}, {name: "h", typ: tar.TypeLink, content: "l/f"}},
		"whiteout via link":  {{name: "l", typ: tar.TypeSymlink, content: victim}, {name: "l/.wh.f"}},
		"opaque via link":    {{name: "l", typ: tar.TypeSymlink, content: victim}, {name: "l/.wh..wh..opq"}},
		"replace link":       {{name: "l", typ: tar.TypeSymlink, content: victim + "/f"}, {name: "l", content: "owned"}},
		"fake whiteout":      {{name: "w", typ: tar.TypeChar}},
		"bad whiteout":       {{name: "d/.wh..."}, {name: ".wh..."}},
		"magic link":         {{name: "p", typ: tar.TypeSymlink, content: "/proc/self/root" + victim}, {name: "p/f", content: "owned"}},
	} {
		s := newStore(t)
		_, err := s.LoadArchive(context.Background(), dockerArchive(t, makeImage(t, layerBytes(t, entries...)), "x/y:1"))
		b, rerr := os.ReadFile(filepath.Join(victim, "f"))
		es, _ := os.ReadDir(victim)
		if string(b) != "safe" || rerr != nil || len(es) != 1 {
			t.Fatalf("%s: the host was changed: %q %v %v (load: %v)", name, b, rerr, es, err)
		}
		if l := leftovers(s); err != nil && len(l) != 0 {
			t.Errorf("%s: left %v", name, l)
		}
	}
}

func TestPull(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	img := makeImage(t, layerBytes(t, entry{name: "a", content: "one"}))
	ref, err := name.ParseReference(host + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	got, err := s.Pull(context.Background(), host+"/team/app:v1", Auth{})
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := img.Digest()
	if len(got.Tags) != 1 || got.Tags[0] != host+"/team/app:v1" || got.Digests[0] != host+"/team/app@"+digest.String() {
		t.Errorf("%+v", got)
	}
	again, err := s.Pull(context.Background(), host+"/team/app@"+digest.String(), Auth{})
	if err != nil || again.ID != got.ID {
		t.Errorf("by digest: %+v %v", again, err)
	}
	if _, err := s.Resolve(host + "/team/app@" + digest.String()); err != nil {
		t.Error(err)
	}
	if _, err := s.Pull(context.Background(), host+"/team/none:v1", Auth{}); err == nil {
		t.Error("an image that does not exist was pulled")
	}
	// It survives a restart.
	s2, err := New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if img, err := s2.Resolve(host + "/team/app:v1"); err != nil || img.ID != got.ID {
		t.Errorf("after restart: %+v %v", img, err)
	}
}

func TestPullFromMirrors(t *testing.T) {
	var asked []string // host and Authorization of each request
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	record := func(h http.Handler) *httptest.Server {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Host+" "+r.Header.Get("Authorization"))
			h.ServeHTTP(w, r)
		}))
		t.Cleanup(srv.Close)
		return srv
	}
	origin, mirror, nothing := record(reg), record(reg), record(http.NotFoundHandler())
	host := strings.TrimPrefix(origin.URL, "http://")
	ref, err := name.ParseReference(strings.TrimPrefix(mirror.URL, "http://") + "/copies/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	img := makeImage(t, layerBytes(t, entry{name: "a", content: "one"}))
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	s.cfg.Mirrors = filepath.Join(t.TempDir(), "registries.yaml")
	pull := func(file string) (Image, error) {
		t.Helper()
		if err := os.WriteFile(s.cfg.Mirrors, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		asked = nil
		return s.Pull(context.Background(), host+"/app:v1", Auth{Username: "u", Password: "p"})
	}
	got, err := pull(fmt.Sprintf("mirrors: {%q: {endpoint: [%q, %q]}}", host, nothing.URL, mirror.URL+"/v2/copies/"))
	if err != nil || got.Tags[0] != host+"/app:v1" {
		t.Fatalf("the image keeps the name asked for: %+v %v", got, err)
	}
	for _, a := range asked {
		if strings.HasPrefix(a, host+" ") || !strings.HasSuffix(a, " ") {
			t.Errorf("asked %q: a mirror that has the image is enough, and gets no credentials", a)
		}
	}
	if _, err := pull(fmt.Sprintf("mirrors: {'*': {endpoint: [%q]}}", nothing.URL)); err == nil || !strings.Contains(err.Error(), "mirror "+nothing.URL) ||
		!strings.HasPrefix(asked[len(asked)-1], host+" ") {
		t.Errorf("after the mirrors the registry itself is asked: %v %q", err, asked)
	}
	for file, want := range map[string]string{
		"mirrors: {'*': {endpoint: [localhost]}}": `the mirror "localhost" of ` + host,
		"mirrors: {'*': {rewrite: {}}}":           `unknown field "rewrite"`,
	} {
		if _, err := pull(file); err == nil || !strings.Contains(err.Error(), want) || len(asked) > 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestSharedLayersAndLayersInUse(t *testing.T) {
	s := newStore(t)
	var used []string
	s.cfg.LayersInUse = func() []string { return used }
	base := layerBytes(t, entry{name: "a", content: "one"})
	one := dockerArchive(t, makeImage(t, base), "x/one:1")
	two := dockerArchive(t, makeImage(t, base, layerBytes(t, entry{name: "b", content: "two"})), "x/two:1")
	for _, p := range []string{one, two} {
		if _, err := s.LoadArchive(context.Background(), p); err != nil {
			t.Fatal(err)
		}
	}
	img, _ := s.Resolve("x/two:1")
	s.Remove("x/two:1")
	if _, err := os.Stat(s.LayerDir(img.Layers[0])); err != nil {
		t.Error("a shared layer was removed")
	}
	if _, err := os.Stat(s.LayerDir(img.Layers[1])); err == nil {
		t.Error("an unused layer stays")
	}
	used = img.Layers[:1]
	s.Remove("x/one:1")
	if _, err := os.Stat(s.LayerDir(img.Layers[0])); err != nil {
		t.Error("a container's layer was removed")
	}
	if err := s.Remove("x/one:1"); err != nil {
		t.Errorf("second removal: %v", err)
	}
}

func TestImportImageLinksFiles(t *testing.T) {
	s := newStore(t)
	src := s.path("binary") // same file system
	os.WriteFile(src, []byte("program"), 0o755)
	files := []File{{Path: "/bin/sk", Host: src, Mode: 0o755}, {Path: "/bin/sh", Link: "sk"}, {Path: "/etc/passwd", Data: []byte("root:x:0:0::/:\n")}}
	img, err := s.ImportImage("skiff:local", files, ocispec.ImageConfig{Entrypoint: []string{"/bin/sk"}})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := os.Stat(src)
	b, err := os.Stat(filepath.Join(s.LayerDir(img.Layers[0]), "bin/sk"))
	if err != nil || !os.SameFile(a, b) {
		t.Errorf("not linked: %v", err)
	}
	if again, err := s.ImportImage("skiff:local", files, ocispec.ImageConfig{Entrypoint: []string{"/bin/sk"}}); err != nil || again.ID != img.ID {
		t.Errorf("second import: %v %v", again, err)
	}
	os.Remove(src)
	os.WriteFile(src, []byte("newer program"), 0o755)
	newer, err := s.ImportImage("skiff:local", files, ocispec.ImageConfig{Entrypoint: []string{"/bin/sk"}})
	if err != nil || newer.ID == img.ID {
		t.Errorf("a changed binary made the same image: %v", err)
	}
}

func TestManyLayers(t *testing.T) {
	s := newStore(t)
	var layers [][]byte
	for i := range 120 {
		layers = append(layers, layerBytes(t, entry{name: "f" + string(rune('a'+i%26)) + string(rune('a'+i/26)), content: "x"}))
	}
	names, err := s.LoadArchive(context.Background(), dockerArchive(t, makeImage(t, layers...), "x/many:1"))
	if err != nil {
		t.Fatal(err)
	}
	img, _ := s.Resolve(names[0])
	fd, err := s.RootFS(img.Layers, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "faa", &st, 0); err != nil {
		t.Error(err)
	}
}

func TestParse(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "nginx:1.14.2": "docker.io/library/nginx:1.14.2", "user/app": "docker.io/user/app:latest",
		"localhost/app": "localhost/app:latest", "localhost:5000/app:x": "localhost:5000/app:x", "example.com/a/b/c": "example.com/a/b/c:latest",
		"index.docker.io/nginx": "docker.io/library/nginx:latest", "nginx@" + d: "docker.io/library/nginx@" + d,
		"nginx:1@" + d: "docker.io/library/nginx:1@" + d, "": "", "UPPER": "", "a:b:c": "", "nginx@sha256:12": "", "a//b": "", "/a": "", "a/": "",
		"nginx:" + strings.Repeat("x", 129): "", "example.com/..": "", "a b": "", "nginx:\x00": "",
	} {
		r, err := Parse(in)
		if want == "" {
			if err == nil {
				t.Errorf("%q parsed as %s", in, r)
			}
			continue
		}
		if err != nil || r.String() != want {
			t.Errorf("%q: %s %v, want %s", in, r, err, want)
		}
	}
}

func TestConfigsOfOtherPlatformsAreRefused(t *testing.T) {
	img := makeImage(t, layerBytes(t, entry{name: "a", content: "one"}))
	conf, _ := img.ConfigFile()
	conf = conf.DeepCopy()
	conf.Architecture = "s390x"
	img, _ = mutate.ConfigFile(img, conf)
	s := newStore(t)
	if _, err := s.LoadArchive(context.Background(), dockerArchive(t, img, "x/y:1")); err == nil || !strings.Contains(err.Error(), "no image for linux/") {
		t.Errorf("err %v", err)
	}
	var list []any
	if b, err := os.ReadFile(s.path("images.json")); err == nil && (json.Unmarshal(b, &list) != nil || len(list) > 0) {
		t.Errorf("images.json: %s", b)
	}
}
