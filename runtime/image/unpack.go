package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// maxEntries bounds the entries of one layer.
const maxEntries = 4_000_000

// decompress recognises gzip and zstd by their first bytes, whatever a media type
// claims; anything else passes unchanged.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { z.Close() }, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// hashing counts and hashes what passes through it, and stops at a limit.
type hashing struct {
	r    io.Reader
	h    hash.Hash
	n    int64
	left int64
}

func newHashing(r io.Reader, limit int64) *hashing {
	return &hashing{r: r, h: sha256.New(), left: limit}
}

func (h *hashing) Read(p []byte) (int, error) {
	if h.left <= 0 {
		return 0, errors.New("larger than allowed")
	}
	if int64(len(p)) > h.left {
		p = p[:h.left]
	}
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	h.left -= int64(n)
	return n, err
}

func (h *hashing) digest() string { return "sha256:" + hex.EncodeToString(h.h.Sum(nil)) }

// unpacker writes one layer's tar stream into a folder in overlayfs' own form:
// whiteouts as 0:0 devices, opaque folders by attribute.
//
// Layers are hostile. Every parent is opened with openat2(RESOLVE_IN_ROOT), and the
// last part of a name is only ever created relative to that descriptor, without
// following links.
type unpacker struct {
	root   int
	parent string // cached parent and its descriptor
	fd     int
	// implied are folders the stream uses but does not list: they take their owner and
	// mode from the layers below, see Store.adoptImplied.
	implied map[string]bool
	times   []dirTime
}

type dirTime struct {
	name string
	at   time.Time
}

func unpackTar(r io.Reader, dir string) (implied map[string]bool, err error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	u := &unpacker{root: root, fd: -1, implied: map[string]bool{}}
	defer u.forget()
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		if n > maxEntries {
			return nil, fmt.Errorf("layer has more than %d entries", maxEntries)
		}
		if err := u.entry(h, tr); err != nil {
			return nil, fmt.Errorf("layer entry %q: %w", h.Name, err)
		}
	}
	return u.implied, u.setTimes()
}

func (u *unpacker) forget() {
	if u.fd >= 0 {
		unix.Close(u.fd)
	}
	u.fd, u.parent = -1, ""
}

// clean makes a name relative and free of "..": such parts can only mean harm.
func clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", errors.New("name holds a NUL byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New("name holds \"..\"")
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag == tar.TypeDir {
			return u.meta(u.root, ".", h)
		}
		return nil
	}
	dir, base := path.Split(name)
	parent, err := u.open(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(base, ".wh."); ok {
		return u.whiteout(parent, rest)
	}
	if h.Typeflag != tar.TypeDir {
		// A later entry replaces an earlier one; a folder is replaced only by a folder.
		if err := unix.Unlinkat(parent, base, 0); err != nil && err != unix.ENOENT {
			if err := unix.Unlinkat(parent, base, unix.AT_REMOVEDIR); err != nil {
				return err
			}
			u.forget()
			if parent, err = u.open(strings.TrimSuffix(dir, "/")); err != nil {
				return err
			}
		}
	}
	return u.create(parent, base, name, h, r)
}

func (u *unpacker) create(parent int, base, name string, h *tar.Header, r io.Reader) error {
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.mkdir(parent, base)
		delete(u.implied, name)
		u.times = append(u.times, dirTime{name, h.ModTime})
	case tar.TypeReg:
		err = writeEntry(parent, base, r)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, parent, base)
	case tar.TypeLink:
		return u.link(parent, base, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = mknod(parent, base, h)
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return fmt.Errorf("unknown type %q", h.Typeflag)
	}
	if err != nil {
		return err
	}
	return u.meta(parent, base, h)
}

func (u *unpacker) mkdir(parent int, base string) error {
	err := unix.Mkdirat(parent, base, 0o755)
	if err != unix.EEXIST {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := unix.Unlinkat(parent, base, 0); err != nil {
		return err
	}
	u.forget()
	return unix.Mkdirat(parent, base, 0o755)
}

func writeEntry(parent int, base string, r io.Reader) error {
	fd, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func mknod(parent int, base string, h *tar.Header) error {
	mode := uint32(0o600)
	switch h.Typeflag {
	case tar.TypeChar:
		mode |= unix.S_IFCHR
		if h.Devmajor == 0 && h.Devminor == 0 {
			return errors.New("device 0:0 is overlayfs' own whiteout and not allowed in a layer")
		}
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	default:
		mode |= unix.S_IFIFO
	}
	return unix.Mknodat(parent, base, mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
}

// link makes a hard link to an entry of the same layer.
func (u *unpacker) link(parent int, base, target string) error {
	name, err := clean(target)
	if err != nil {
		return err
	}
	dir, old := path.Split(name)
	from, err := openIn(u.root, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	defer unix.Close(from)
	if err := unix.Linkat(from, old, parent, base, 0); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	return nil
}

func (u *unpacker) whiteout(parent int, name string) error {
	if name == ".wh..opq" {
		return unix.Fsetxattr(parent, "trusted.overlay.opaque", []byte("y"), 0)
	}
	if name == "" || name == "." || name == ".." {
		return errors.New("bad whiteout")
	}
	if strings.HasPrefix(name, ".wh.") {
		return nil // aufs' own bookkeeping
	}
	err := unix.Mknodat(parent, name, unix.S_IFCHR, 0)
	if err == unix.EEXIST {
		return nil // the same layer makes it again: overlayfs hides what is below
	}
	return err
}

func openIn(root int, name string) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	return unix.Openat2(root, name, &how)
}

// open returns the folder name, made with its parents if the stream did not list it.
// The descriptor stays the unpacker's.
func (u *unpacker) open(name string) (int, error) {
	if u.fd >= 0 && u.parent == name {
		return u.fd, nil
	}
	fd, err := openIn(u.root, name)
	if err == unix.ENOENT {
		up, base := path.Split(name)
		parent, perr := u.open(strings.TrimSuffix(up, "/"))
		if perr != nil {
			return -1, perr
		}
		if err := unix.Mkdirat(parent, base, 0o755); err != nil {
			return -1, err
		}
		u.implied[name] = true
		fd, err = openIn(u.root, name)
	}
	if err != nil {
		return -1, err
	}
	u.forget()
	u.fd, u.parent = fd, name
	return fd, nil
}

// meta sets owner, mode, attributes and time, in this order: a change of owner clears
// set-uid bits and file capabilities.
func (u *unpacker) meta(parent int, base string, h *tar.Header) error {
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(parent, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return err
		}
	}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "system.") {
			continue // overlayfs' own attributes are ours to set
		}
		p := fmt.Sprintf("/proc/self/fd/%d/%s", parent, base)
		if err := unix.Lsetxattr(p, name, []byte(v), 0); err != nil && err != unix.ENOTSUP && err != unix.EPERM {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return setTime(parent, base, h.ModTime)
}

func setTime(parent int, base string, at time.Time) error {
	ts := unix.NsecToTimespec(at.UnixNano())
	if at.Year() < 1902 || at.Year() > 2200 {
		ts = unix.Timespec{}
	}
	return unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// setTimes sets folder times last: their content changed them.
func (u *unpacker) setTimes() error {
	for i := len(u.times) - 1; i >= 0; i-- {
		dir, base := path.Split(u.times[i].name)
		fd, err := openIn(u.root, strings.TrimSuffix(dir, "/"))
		if err != nil {
			continue // replaced by a later entry
		}
		err = setTime(fd, base, u.times[i].at)
		unix.Close(fd)
		if err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}
