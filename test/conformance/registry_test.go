package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestMirror plays a runtime that pulls an image from where registries.yaml says.
func TestMirror(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "hello"), []byte("hi"), 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := image{cmd: []string{"hello"}}.pack(root)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("registry.k8s.io/e2e-test-images/hello:1.0")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "images.tar")
	if err := tarball.MultiWriteToFile(archive, map[name.Tag]v1.Image{tag: img}); err != nil {
		t.Fatal(err)
	}
	c := &cluster{dir: dir}
	if err := os.MkdirAll(c.data(), 0o755); err != nil {
		t.Fatal(err)
	}
	settled, err := json.Marshal(map[string]any{"nodeName": "n", "nodeCIDR": netip.MustParsePrefix("127.0.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.data(), "cluster.json"), settled, 0o600); err != nil {
		t.Fatal(err)
	}
	stop, err := c.mirror(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	file, err := os.ReadFile(filepath.Join(c.data(), "registries.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, url, _ := strings.Cut(string(file), `registry.k8s.io:
    endpoint: ["`)
	url, _, _ = strings.Cut(url, `"]`)
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Fatalf("registries.yaml:\n%s", file)
	}
	get := func(path string, status int) (*http.Response, []byte) {
		t.Helper()
		res, err := http.Get(url + "/v2/" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != status {
			t.Fatalf("%s: %s %v %.200q", path, res.Status, err, body)
		}
		return res, body
	}
	get("", 200)
	get("e2e-test-images/hello/manifests/2.0", 404)
	res, raw := get("e2e-test-images/hello/manifests/1.0", 200)
	digest := res.Header.Get("Docker-Content-Digest")
	if _, again := get("e2e-test-images/hello/manifests/"+digest, 200); string(again) != string(raw) {
		t.Error("by digest the manifest differs")
	}
	m, err := v1.ParseManifest(strings.NewReader(string(raw)))
	if err != nil || len(m.Layers) != 1 {
		t.Fatalf("%v %+v", err, m)
	}
	for _, d := range append(m.Layers, m.Config) {
		_, body := get("e2e-test-images/hello/blobs/"+d.Digest.String(), 200)
		if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != d.Digest.Hex || int64(len(body)) != d.Size {
			t.Errorf("%s has %d bytes and another digest", d.Digest, len(body))
		}
	}
	get("e2e-test-images/hello/blobs/sha256:"+strings.Repeat("0", 64), 404)
}
