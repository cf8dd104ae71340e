package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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

const e2eImages = "registry.k8s.io/e2e-test-images/"

// image says how one image the suite uses is put together from Debian packages,
// programs built from Go source and files of the Kubernetes module.
type image struct {
	name       string
	packages   []string          // Debian packages; what they depend on comes along
	programs   map[string]string // built program → path in the image
	files      map[string]string // path in the Kubernetes module → path in the image
	texts      map[string]string // path in the image → contents
	links      map[string]string // path in the image → target
	dirs       []string
	setuid     []string // paths owned by root that run as root
	applets    bool     // a link for every busybox applet not there yet
	entrypoint []string
	cmd        []string
	user       string // default root
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
	group  = "root:x:0:\nnogroup:x:65534:\n"
)

func images() []image {
	agnhost := image{
		name: e2eImages + "agnhost:2.66.1",
		packages: []string{"dash", "bash", "coreutils", "curl", "netcat-openbsd", "bind9-dnsutils", "bind9-host", "iproute2", "libc-bin",
			"grep", "sed", "mawk", "util-linux", "hostname", "procps", "findutils", "wget", "net-tools"},
		programs: map[string]string{"agnhost": "/agnhost"},
		files: map[string]string{
			"test/images/agnhost/porter/localhost.crt": "/localhost.crt",
			"test/images/agnhost/porter/localhost.key": "/localhost.key",
		},
		texts: map[string]string{
			"/etc/passwd":        passwd + "user-defined-in-image:x:1000:1000::/home:/bin/sh\n",
			"/etc/group":         group + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
			"/etc/nsswitch.conf": "hosts: files dns\n",
		},
		links: map[string]string{"/agnhost-2": "agnhost", "/bin/sh": "dash", "/bin/nc": "nc.openbsd", "/usr/bin/awk": "mawk"},
		dirs:  []string{"/uploads", "/tmp"}, entrypoint: []string{"/agnhost"}, cmd: []string{"pause"},
	}
	previous := agnhost
	previous.name = e2eImages + "agnhost:2.55"
	previous.texts = with(agnhost.texts, "/etc/agnhost-release", "2.55\n")
	derived := func(name, files string) image {
		d := agnhost
		d.name, d.cmd = e2eImages+name, []string{"test-webserver"}
		d.files = map[string]string{files + "/data.json": "/data.json", files + "/" + strings.Split(name, ":")[0] + ".jpg": "/" + strings.Split(name, ":")[0] + ".jpg"}
		return d
	}
	users := map[string]string{"/etc/passwd": passwd, "/etc/group": group}
	nginx := image{
		name: e2eImages + "nginx:1.27.0-2", packages: []string{"nginx-light", "dash", "coreutils"}, dirs: []string{"/run", "/tmp", "/var/log/nginx", "/var/lib/nginx"},
		texts: map[string]string{
			"/etc/passwd": passwd + "www-data:x:33:33::/var/www:/bin/false\n", "/etc/group": group + "www-data:x:33:\n",
			"/etc/nginx/nginx.conf": "user www-data;\nerror_log /dev/stderr notice;\npid /run/nginx.pid;\nevents {}\n" +
				"http { access_log /dev/stdout; server { listen 80; root /usr/share/nginx/html; } }\n",
		},
		entrypoint: []string{"/usr/sbin/nginx"}, cmd: []string{"-g", "daemon off;"},
	}
	next := nginx
	next.name = e2eImages + "nginx:1.28.0-2"
	next.texts = with(nginx.texts, "/etc/nginx-release", "1.28\n")
	return []image{
		agnhost, previous, nginx, next,
		derived("nautilus:1.8", "test/images/nautilus/html"), derived("kitten:1.8", "test/images/kitten/html"),
		{
			name: e2eImages + "busybox:1.37.0-2", packages: []string{"busybox-static", "bash"}, applets: true, programs: map[string]string{"busyboxsh": "/bin/sh"},
			texts: users, dirs: []string{"/tmp", "/root"}, cmd: []string{"sh"},
		},
		{
			name: e2eImages + "nonroot:1.5", packages: []string{"busybox-static", "bash"}, applets: true, programs: map[string]string{"busyboxsh": "/bin/sh"},
			texts: users, dirs: []string{"/tmp"}, cmd: []string{"sh"}, user: "1234",
		},
		{name: "registry.k8s.io/pause:3.10.2", programs: map[string]string{"pause": "/pause"}, entrypoint: []string{"/pause"}},
		{
			name: e2eImages + "glibc-dns-testing:2.1.1", packages: []string{"dash", "bash", "coreutils", "bind9-dnsutils", "bind9-host", "libc-bin", "hostname"},
			texts: with(users, "/etc/nsswitch.conf", "hosts: files dns\n"), links: map[string]string{"/bin/sh": "dash"}, dirs: []string{"/tmp"}, cmd: []string{"bash"},
		},
		{
			name: e2eImages + "nonewprivs:1.4", packages: []string{"busybox-static"}, applets: true, texts: users,
			programs: map[string]string{"nnp": "/usr/local/bin/nnp"}, setuid: []string{"/usr/local/bin/nnp"}, cmd: []string{"nnp"},
		},
		{
			name: e2eImages + "regression-issue-74839:1.5", programs: map[string]string{"regression-issue-74839": "/regression-issue-74839"},
			entrypoint: []string{"/regression-issue-74839"},
		},
		{name: e2eImages + "sample-apiserver:1.29.2", programs: map[string]string{"sample-apiserver": "/kube-sample-apiserver"}, dirs: []string{"/tmp"}, entrypoint: []string{"/kube-sample-apiserver"}},
		{name: "registry.k8s.io/etcd:3.7.0-0", programs: map[string]string{"etcd": "/usr/local/bin/etcd"}, dirs: []string{"/tmp"}, cmd: []string{"/usr/local/bin/etcd"}},
	}
}

func with(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// assemble returns an archive of every image, made once per set of tools and
// recipes.
func assemble(ctx context.Context, cache string, t tools) (string, error) {
	hash := sha256.Sum256([]byte(fmt.Sprintf("%+v", images())))
	archive := filepath.Join(t.dir, "images-"+hex.EncodeToString(hash[:6])+".tar")
	if _, err := os.Stat(archive); err == nil {
		return archive, nil
	}
	fmt.Println("assembling images …")
	source, err := moduleDir(ctx, "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	debs := filepath.Join(cache, "debs")
	built := map[name.Tag]v1.Image{}
	for _, i := range images() {
		tag, err := name.NewTag(i.name)
		if err != nil {
			return "", err
		}
		root, err := os.MkdirTemp(cache, "image-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(root)
		if err := i.fill(ctx, root, debs, source, t); err != nil {
			return "", fmt.Errorf("%s: %w", i.name, err)
		}
		if built[tag], err = i.pack(root); err != nil {
			return "", fmt.Errorf("%s: %w", i.name, err)
		}
	}
	if err := tarball.MultiWriteToFile(archive+".new", built); err != nil {
		return "", err
	}
	return archive, os.Rename(archive+".new", archive)
}

// fill lays the image's files below root.
func (i image) fill(ctx context.Context, root, debs, source string, t tools) error {
	at := func(path string) string { return filepath.Join(root, path) }
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	if err := unpack(ctx, i.packages, debs, root); err != nil {
		return err
	}
	for _, d := range i.dirs {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			return err
		}
		if d == "/tmp" || d == "/uploads" {
			if err := os.Chmod(at(d), 0o777|os.ModeSticky); err != nil {
				return err
			}
		}
	}
	for program, path := range i.programs {
		if err := copyFile(t.path(program), at(path), 0o755); err != nil {
			return err
		}
	}
	for file, path := range i.files {
		if err := copyFile(filepath.Join(source, file), at(path), 0o644); err != nil {
			return err
		}
	}
	for path, text := range i.texts {
		if err := os.MkdirAll(filepath.Dir(at(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at(path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for path, target := range i.links {
		os.Remove(at(path))
		if err := os.Symlink(target, at(path)); err != nil {
			return err
		}
	}
	for _, path := range i.setuid {
		if err := os.Chmod(at(path), 0o755|os.ModeSetuid); err != nil {
			return err
		}
	}
	if i.applets {
		return linkApplets(ctx, root)
	}
	return nil
}

func linkApplets(ctx context.Context, root string) error {
	out, err := exec.CommandContext(ctx, filepath.Join(root, "bin/busybox"), "--list").Output()
	if err != nil {
		return err
	}
	for _, a := range strings.Fields(string(out)) {
		// What is there already, the shell above all, stays.
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

func copyFile(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, mode)
}

// pack makes the tree one layer and says how it is run.
func (i image) pack(root string) (v1.Image, error) {
	data, err := archiveTree(root)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS = "amd64", "linux"
	cf.Config.Entrypoint, cf.Config.Cmd, cf.Config.User = i.entrypoint, i.cmd, i.user
	cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return mutate.ConfigFile(img, cf)
}

// archiveTree writes the tree as a tar of root's files, leaving out
// documentation.
func archiveTree(root string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := filepath.Walk(root, func(path string, st os.FileInfo, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch rel {
		case "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian":
			return filepath.SkipDir
		}
		target := ""
		if st.Mode()&os.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(st, target)
		if err != nil {
			return err
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = rel, 0, 0, "", ""
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
	})
	if err != nil {
		return nil, err
	}
	return buf.Bytes(), w.Close()
}
