// Package image is the runtime's image store: names, content, unpacked layers and the
// root file systems made of them.
//
// On disk, below Config.Root (0700: layers hold set-uid programs):
//
//	images.json              every image: id, tags, digests, layers
//	blobs/sha256/<hex>       configurations and manifests
//	layers/<chain id>/       one unpacked layer each, as overlayfs reads it
//	tmp/                     what is being made; swept at start
//
// Compressed layers are not kept: they are verified while they are unpacked, so a
// node's disk holds every layer once, and a pull writes it once.
// What is in use is never counted, but recomputed from images and containers.
package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// ErrNotFound says that no such image is here.
var ErrNotFound = errors.New("image not found")

// Config is what New needs.
type Config struct {
	Root string // folder; required
	Log  *slog.Logger
	// LayersInUse returns chain ids that containers use, which removal must keep.
	// Default: none.
	LayersInUse func() []string
	// MaxLayerBytes bounds one unpacked layer. Default: 64 GiB.
	MaxLayerBytes int64
	// Concurrency bounds layers fetched and unpacked at once. Default: 3.
	Concurrency int
	// Mirrors is a file that names mirrors of registries, in k3s' form: see endpoints.
	// Default: none.
	Mirrors string
}

// Image is one image. Values handed out are copies of the store's.
type Image struct {
	ID      string   // digest of the configuration
	Tags    []string // docker.io/library/nginx:latest
	Digests []string // docker.io/library/nginx@sha256:…
	Size    uint64   // bytes of configuration and layers as transferred
	Layers  []string // chain ids, lowest first
	Pinned  bool
	// Manifest is the manifest's digest, empty for images made here.
	Manifest string `json:",omitempty"`
	// User is the configuration's user, kept to answer without reading it.
	User string `json:",omitempty"`
}

// Store holds images. Safe for concurrent use.
type Store struct {
	cfg  Config
	mu   sync.Mutex
	byID map[string]*Image
	// leases are chain ids of images being made: not yet in byID, not to be removed.
	leases map[string]int
	making map[string]chan struct{}
}

// New opens or makes the store and sweeps what a crash left.
func New(cfg Config) (*Store, error) {
	if cfg.Root == "" {
		return nil, errors.New("image store: Root is required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.LayersInUse == nil {
		cfg.LayersInUse = func() []string { return nil }
	}
	if cfg.MaxLayerBytes == 0 {
		cfg.MaxLayerBytes = 64 << 30
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 3
	}
	s := &Store{cfg: cfg, byID: map[string]*Image{}, leases: map[string]int{}, making: map[string]chan struct{}{}}
	if err := os.RemoveAll(s.path("tmp")); err != nil {
		return nil, err
	}
	for _, d := range []string{"", "blobs/sha256", "layers", "tmp"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, err
		}
	}
	return s, s.load()
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, parts...)...)
}

func (s *Store) load() error {
	b, err := os.ReadFile(s.path("images.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var list []*Image
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("image list %s is damaged: %w; remove it and load the images again", s.path("images.json"), err)
	}
	for _, img := range list {
		s.byID[img.ID] = img
	}
	return nil
}

// save writes the list; the caller holds mu.
func (s *Store) save() error {
	list := make([]*Image, 0, len(s.byID))
	for _, img := range s.byID {
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b *Image) int { return strings.Compare(a.ID, b.ID) })
	b, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return err
	}
	return writeFile(s.path("images.json"), b)
}

// writeFile writes beside, syncs, renames.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Digest returns the sha256 digest of b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (s *Store) putBlob(b []byte) (string, error) {
	d := Digest(b)
	path := s.path("blobs", "sha256", d[7:])
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return d, nil
	}
	return d, writeFile(path, b)
}

// List returns all images, in a stable order.
func (s *Store) List() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Image, 0, len(s.byID))
	for _, img := range s.byID {
		out = append(out, *img)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Resolve finds an image by id, id without "sha256:", tag or digest reference.
func (s *Store) Resolve(ref string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, _, err := s.resolve(ref)
	if err != nil {
		return Image{}, err
	}
	return *img, nil
}

// resolve also tells whether ref was an id.
func (s *Store) resolve(ref string) (*Image, bool, error) {
	if img := s.byID[ref]; img != nil {
		return img, true, nil
	}
	if img := s.byID["sha256:"+ref]; img != nil {
		return img, true, nil
	}
	r, err := Parse(ref)
	if err != nil {
		return nil, false, err
	}
	for _, img := range s.byID {
		if r.Digest != "" && slices.Contains(img.Digests, r.Digested()) {
			return img, false, nil
		}
		if r.Digest == "" && slices.Contains(img.Tags, r.Tagged()) {
			return img, false, nil
		}
	}
	return nil, false, fmt.Errorf("image %q: %w", ref, ErrNotFound)
}

// ReadConfig returns an image's configuration.
func (s *Store) ReadConfig(id string) (*ocispec.Image, error) {
	b, err := s.readBlob(id)
	if err != nil {
		return nil, fmt.Errorf("configuration of image %s: %w", id, err)
	}
	var cfg ocispec.Image
	if err := json.Unmarshal(b, &cfg); err != nil {
		return nil, fmt.Errorf("configuration of image %s: %w", id, err)
	}
	return &cfg, nil
}

func (s *Store) readBlob(digest string) ([]byte, error) {
	if !digestRE.MatchString(digest) {
		return nil, fmt.Errorf("bad digest %q", digest)
	}
	b, err := os.ReadFile(s.path("blobs", "sha256", digest[7:]))
	if err == nil && Digest(b) != digest {
		err = fmt.Errorf("blob %s is damaged on disk; remove the image and load it again", digest)
	}
	return b, err
}

// add makes an image visible under its tags, moving each tag from the image that had
// it, and takes the lease's place.
func (s *Store) add(img *Image) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.byID {
		if other.ID != img.ID {
			other.Tags = slices.DeleteFunc(slices.Clone(other.Tags), func(t string) bool { return slices.Contains(img.Tags, t) })
		}
	}
	if old := s.byID[img.ID]; old != nil {
		img.Tags = union(old.Tags, img.Tags)
		img.Digests = union(old.Digests, img.Digests)
		img.Pinned = img.Pinned || old.Pinned
		if img.Manifest == "" {
			img.Manifest = old.Manifest
		}
	}
	s.byID[img.ID] = img
	return s.save()
}

func union(a, b []string) []string {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// Remove removes what ref names. As CRI wants it, removing an image that is not there
// succeeds. A name removes the whole image: the kubelet's image manager relies on it.
func (s *Store) Remove(ref string) error {
	s.mu.Lock()
	img, _, err := s.resolve(ref)
	if err != nil {
		s.mu.Unlock()
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	delete(s.byID, img.ID)
	err = s.save()
	if err != nil {
		s.byID[img.ID] = img
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.Collect()
}

// Untag takes one name away; the image goes with its last name.
func (s *Store) Untag(ref string) error {
	r, err := Parse(ref)
	if err != nil {
		return err
	}
	s.mu.Lock()
	img, _, err := s.resolve(ref)
	if err != nil || len(img.Tags)+len(img.Digests) <= 1 || r.Tag == "" {
		s.mu.Unlock()
		return s.Remove(ref)
	}
	img.Tags = slices.DeleteFunc(slices.Clone(img.Tags), func(t string) bool { return t == r.Tagged() })
	err = s.save()
	s.mu.Unlock()
	return err
}

// Collect deletes layers and blobs that nothing refers to.
func (s *Store) Collect() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := map[string]bool{}
	for _, l := range s.cfg.LayersInUse() {
		keep[l] = true
	}
	for l := range s.leases {
		keep[l] = true
	}
	blobs := map[string]bool{}
	for _, img := range s.byID {
		blobs[img.ID] = true
		blobs[img.Manifest] = true
		for _, l := range img.Layers {
			keep[l] = true
		}
	}
	var errs []error
	layers, err := os.ReadDir(s.path("layers"))
	errs = append(errs, err)
	for _, e := range layers {
		if !keep["sha256:"+e.Name()] {
			errs = append(errs, s.discard(s.path("layers", e.Name())))
		}
	}
	if len(s.leases) > 0 {
		return errors.Join(errs...) // blobs of an image being made are not listed yet
	}
	all, err := os.ReadDir(s.path("blobs", "sha256"))
	errs = append(errs, err)
	for _, e := range all {
		if !blobs["sha256:"+e.Name()] {
			errs = append(errs, os.Remove(s.path("blobs", "sha256", e.Name())))
		}
	}
	return errors.Join(errs...)
}

// discard moves a folder out of sight, then deletes it: a half-deleted layer must
// never be taken for a whole one.
func (s *Store) discard(dir string) error {
	tmp, err := os.MkdirTemp(s.path("tmp"), "gone-")
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(tmp, "d")); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.RemoveAll(tmp)
}

// LayerDir is the folder of an unpacked layer.
func (s *Store) LayerDir(chainID string) string {
	return s.path("layers", strings.TrimPrefix(chainID, "sha256:"))
}

// Usage is what the store takes on disk.
func (s *Store) Usage() (bytes, inodes uint64, err error) { return DiskUsage(s.cfg.Root) }

// DiskUsage sums a folder's files, each hard link once.
func DiskUsage(dir string) (bytes, inodes uint64, err error) {
	seen := map[[2]uint64]bool{}
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // deleted meanwhile
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			k := [2]uint64{uint64(st.Dev), st.Ino}
			if seen[k] {
				return nil
			}
			seen[k] = true
		}
		bytes += uint64(st.Blocks) * 512
		inodes++
		return nil
	})
	return bytes, inodes, err
}

func syncFS(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}
