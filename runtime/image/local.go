package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// File is one file of an image made from local files.
type File struct {
	Path string // in the image, absolute
	// Exactly one of Host (a file to hard-link, or to copy across file systems), Link
	// (target of a symbolic link) and Data is used; with none and Mode's directory bit
	// set a folder is made.
	Host string
	Link string
	Data []byte
	Mode os.FileMode // permission bits, os.ModeDir, os.ModeSticky. Default: 0644
}

// ImportImage makes a one-layer image named ref from local files and returns it. A
// Host file is hard-linked where the file system allows: the image of a big binary
// costs no copy and no hashing. Its layer is therefore named by what identifies the
// file (device, inode, size, time), not by a tar stream's digest, and such an image
// cannot be pushed.
func (s *Store) ImportImage(ref string, list []File, cfg ocispec.ImageConfig) (Image, error) {
	r, err := Parse(ref)
	if err != nil {
		return Image{}, err
	}
	id, size, err := identity(list)
	if err != nil {
		return Image{}, err
	}
	conf := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: cfg}
	conf.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest(id)}}
	b, err := json.Marshal(conf)
	if err != nil {
		return Image{}, err
	}
	if old, err := s.Resolve(ref); err == nil && old.ID == Digest(b) {
		if _, err := os.Stat(s.LayerDir(id)); err == nil {
			return old, nil
		}
	}
	release := s.lease([]string{id})
	defer release()
	if err := s.makeLayer(id, list); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	img := &Image{Layers: []string{id}, Tags: []string{r.Tagged()}, Size: size + uint64(len(b)), User: cfg.User, Pinned: true}
	if img.ID, err = s.putBlob(b); err != nil {
		return Image{}, err
	}
	return *img, s.add(img)
}

func identity(list []File) (string, uint64, error) {
	var b strings.Builder
	b.WriteString("skiff local layer\n")
	var size uint64
	for _, f := range list {
		fmt.Fprintf(&b, "%q %q %o %s\n", f.Path, f.Link, f.Mode, Digest(f.Data))
		size += uint64(len(f.Data))
		if f.Host == "" {
			continue
		}
		st, err := os.Stat(f.Host)
		if err != nil {
			return "", 0, err
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok || !st.Mode().IsRegular() {
			return "", 0, fmt.Errorf("%s is not a plain file", f.Host)
		}
		fmt.Fprintf(&b, "%d %d %d %d\n", sys.Dev, sys.Ino, st.Size(), st.ModTime().UnixNano())
		size += uint64(st.Size())
	}
	return Digest([]byte(b.String())), size, nil
}

func (s *Store) makeLayer(id string, list []File) error {
	if _, err := os.Stat(s.LayerDir(id)); err == nil {
		return nil
	}
	dir, err := os.MkdirTemp(s.path("tmp"), "local-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, f := range list {
		if err := placeFile(dir, f); err != nil {
			return err
		}
	}
	if err := os.Rename(dir, s.LayerDir(id)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func placeFile(dir string, f File) error {
	name := filepath.Join(dir, path.Clean("/"+f.Path))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	switch {
	case f.Link != "":
		return os.Symlink(f.Link, name)
	case f.Host != "":
		return linkOrCopy(f.Host, name, mode)
	case mode.IsDir():
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(name, f.Data, 0o600); err != nil {
			return err
		}
	}
	return os.Chmod(name, mode&^os.ModeDir)
}

// linkOrCopy links; a link shares the mode, so a file whose mode differs is copied.
func linkOrCopy(from, to string, mode os.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if st.Mode().Perm() == mode.Perm() {
		// Through the descriptor: the path may be a link, or replaced meanwhile.
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", src.Fd()), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			return nil
		}
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Chmod(mode.Perm())
	}
	if err == nil {
		err = os.Chtimes(to, time.Time{}, st.ModTime())
	}
	return errors.Join(err, dst.Close())
}
