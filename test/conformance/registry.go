package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// mirror serves an archive's images to the cluster in place of registry.k8s.io until close is
// called: some tests want an image pulled although it is there. It listens where all nodes reach
// this machine.
func (c *cluster) mirror(archive string) (close func(), err error) {
	var settled struct {
		NodeCIDR netip.Prefix `json:"nodeCIDR"`
	}
	data, err := os.ReadFile(filepath.Join(c.data(), "cluster.json"))
	if err == nil {
		err = json.Unmarshal(data, &settled)
	}
	if err != nil {
		return nil, err
	}
	addr := netip.MustParseAddr("127.0.0.1")
	if settled.NodeCIDR.IsValid() {
		addr = settled.NodeCIDR.Masked().Addr().Next()
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: &shelf{archive: archive, images: map[string]v1.Image{}}}
	go srv.Serve(l)
	file := fmt.Sprintf("mirrors:\n  registry.k8s.io:\n    endpoint: [%q]\n", "http://"+l.Addr().String())
	return func() { srv.Close() }, os.WriteFile(filepath.Join(c.data(), "registries.yaml"), []byte(file), 0o600)
}

// shelf is a registry one can only pull from.
type shelf struct {
	archive string
	mu      sync.Mutex
	images  map[string]v1.Image // those asked for, by name@tag and by name@digest
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := strings.TrimPrefix(r.URL.Path, "/v2/")
	if at == "" {
		return
	}
	var err error
	if repo, ref, ok := strings.Cut(at, "/manifests/"); ok {
		err = s.manifest(w, repo, ref)
	} else if repo, digest, ok := strings.Cut(at, "/blobs/"); ok {
		err = s.blob(w, repo, digest)
	} else {
		err = fmt.Errorf("nothing is served at %s", r.URL.Path)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
	}
}

func (s *shelf) manifest(w http.ResponseWriter, repo, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[repo+"@"+ref]
	if img == nil {
		tag, err := name.NewTag("registry.k8s.io/" + repo + ":" + ref)
		if err != nil {
			return err
		}
		if img, err = tarball.ImageFromPath(s.archive, &tag); err != nil {
			return err
		}
	}
	raw, err := img.RawManifest()
	if err != nil {
		return err
	}
	kind, err := img.MediaType()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	s.images[repo+"@"+ref], s.images[repo+"@"+digest.String()] = img, img
	w.Header().Set("Content-Type", string(kind))
	w.Header().Set("Docker-Content-Digest", digest.String())
	_, err = w.Write(raw)
	return err
}

func (s *shelf) blob(w http.ResponseWriter, repo, digest string) error {
	want, err := v1.NewHash(digest)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, img := range s.images {
		if !strings.HasPrefix(key, repo+"@") {
			continue
		}
		if config, err := img.ConfigName(); err == nil && config == want {
			raw, err := img.RawConfigFile()
			if err == nil {
				_, err = w.Write(raw)
			}
			return err
		}
		if l, err := img.LayerByDigest(want); err == nil {
			data, err := l.Compressed()
			if err != nil {
				return err
			}
			defer data.Close()
			_, err = io.Copy(w, data)
			return err
		}
	}
	return fmt.Errorf("no blob %s in %s", digest, repo)
}
