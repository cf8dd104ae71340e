// Command nginximage assembles an nginx image from Debian's nginx-light and
// what it needs, and writes it as a Docker archive: the documentation's nginx
// Deployment can then run with no registry. Each --tag becomes an image of its
// own that answers with its tag, so that a client can tell a roll-out's stages.
//
//	go run ./test/nginximage -o nginx.tar -tag nginx:1.14.2 -tag nginx:1.16.1
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

var packages = []string{
	"nginx-light", "nginx", "nginx-common", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g", "libnginx-mod-http-echo",
	"dash", "libnginx-mod-http-ndk",
}

const config = `user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 512; }
http {
	access_log /dev/stdout;
	default_type text/html;
	server { listen 80; root /usr/share/nginx/html; index index.html; }
}
`

const passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"

const group = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	var tags list
	out := flag.String("o", "nginx.tar", "archive to write")
	cache := flag.String("cache", filepath.Join(os.TempDir(), "skiff-nginx-debs"), "folder to keep downloaded packages in")
	flag.Var(&tags, "tag", "image name, repeatable")
	flag.Parse()
	if err := build(*out, *cache, tags); err != nil {
		fmt.Fprintln(os.Stderr, "nginximage:", err)
		os.Exit(1)
	}
}

func build(out, cache string, tags []string) error {
	if len(tags) == 0 {
		return fmt.Errorf("give at least one -tag")
	}
	root, err := os.MkdirTemp("", "nginximage")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := unpack(cache, root); err != nil {
		return err
	}
	base, err := layer(root)
	if err != nil {
		return err
	}
	images := map[name.Tag]v1.Image{}
	for _, t := range tags {
		tag, err := name.NewTag(t)
		if err != nil {
			return err
		}
		if images[tag], err = image(base, t); err != nil {
			return err
		}
	}
	return tarball.MultiWriteToFile(out, images)
}

// unpack fetches the packages once and extracts them below root.
func unpack(cache, root string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	for _, p := range packages {
		found, _ := filepath.Glob(filepath.Join(cache, p+"_*.deb"))
		if len(found) == 0 {
			if err := download(cache, p); err != nil {
				return err
			}
			found, _ = filepath.Glob(filepath.Join(cache, p+"_*.deb"))
		}
		if msg, err := exec.Command("dpkg-deb", "-x", found[0], root).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w\n%s", found[0], err, msg)
		}
	}
	for path, text := range map[string]string{
		"etc/nginx/nginx.conf": config, "etc/passwd": passwd, "etc/group": group,
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, d := range []string{"run", "tmp", "var/log/nginx", "var/lib/nginx", "usr/share/nginx/html"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// download fetches one package. A fresh machine has no package lists yet: they
// are fetched once when the package is not known.
func download(dir, pkg string) error {
	get := func() ([]byte, error) {
		cmd := exec.Command("apt-get", "download", "-q", pkg)
		cmd.Dir = dir
		return cmd.CombinedOutput()
	}
	msg, err := get()
	if err != nil {
		if msg, err := exec.Command("apt-get", "update", "-q").CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get update: %w\n%s", err, msg)
		}
		msg, err = get()
	}
	if err != nil {
		return fmt.Errorf("apt-get download %s: %w\n%s", pkg, err, msg)
	}
	return nil
}

// layer archives the tree, leaving out what an image has no use for.
func layer(root string) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		for _, skip := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian"} {
			if rel == skip {
				return fs.SkipDir
			}
		}
		if rel == "." {
			return nil
		}
		return add(w, path, rel)
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}

func add(w *tar.Writer, path, rel string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	target := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name = rel
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid = int(sys.Uid), int(sys.Gid)
	}
	if err := w.WriteHeader(h); err != nil || !st.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// image adds the page that names the tag, and how to run.
func image(base v1.Layer, tag string) (v1.Image, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	page := "<h1>" + tag + "</h1>\n"
	if err := w.WriteHeader(&tar.Header{Name: "usr/share/nginx/html/index.html", Mode: 0o644, Size: int64(len(page))}); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, page); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	top, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, base, top)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(img, withConfig(img))
}

func withConfig(img v1.Image) *v1.ConfigFile {
	cfg, err := img.ConfigFile()
	if err != nil {
		panic(err) // an image made in memory has one
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config = v1.Config{
		Entrypoint: []string{"/usr/sbin/nginx"}, Cmd: []string{"-g", "daemon off;"},
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, StopSignal: "SIGQUIT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}
	return cfg
}
