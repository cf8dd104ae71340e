package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// source is one layer to unpack.
type source struct {
	diffID string // digest of the uncompressed stream; required
	digest string // digest as stored; empty if unknown
	size   int64  // as stored; 0 if unknown
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// unpacked is a verified layer, not yet in its place.
type unpacked struct {
	dir     string // below tmp; empty if the layer is here already
	implied map[string]bool
	stored  int64
}

// ChainIDs turns diff ids into chain ids (image-spec, "Layer ChainID").
func ChainIDs(diffIDs []string) []string {
	out := make([]string, len(diffIDs))
	for i, d := range diffIDs {
		if i == 0 {
			out[0] = d
			continue
		}
		out[i] = Digest([]byte(out[i-1] + " " + d))
	}
	return out
}

// lease keeps chains from Collect until the returned function is called.
func (s *Store) lease(chains []string) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range chains {
		s.leases[c]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range chains {
			if s.leases[c]--; s.leases[c] <= 0 {
				delete(s.leases, c)
			}
		}
	}
}

// unpackAll makes every layer of an image present and returns their chain ids and
// stored sizes. Layers unpack side by side; they enter their places in order, since
// the folders a layer only implies take their owner from the layers below.
// On an error nothing of this call stays.
func (s *Store) unpackAll(ctx context.Context, layers []source) ([]string, uint64, error) {
	diffs := make([]string, len(layers))
	for i, l := range layers {
		if !digestRE.MatchString(l.diffID) {
			return nil, 0, fmt.Errorf("layer %d: bad diff id %q", i, l.diffID)
		}
		diffs[i] = l.diffID
	}
	chains := ChainIDs(diffs)
	parts := make([]unpacked, len(layers))
	defer func() {
		for _, p := range parts {
			if p.dir != "" {
				os.RemoveAll(p.dir)
			}
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Concurrency)
	for i := range layers {
		if _, err := os.Stat(s.LayerDir(chains[i])); err == nil {
			parts[i].stored = layers[i].size
			continue
		}
		g.Go(func() error {
			return s.unpackOne(gctx, layers[i], &parts[i])
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, err
	}
	var size uint64
	for i := range parts {
		size += uint64(parts[i].stored)
		if err := s.place(chains[:i+1], &parts[i]); err != nil {
			return nil, 0, err
		}
	}
	return chains, size, nil
}

func (s *Store) unpackOne(ctx context.Context, l source, out *unpacked) error {
	raw, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer raw.Close()
	if out.dir, err = os.MkdirTemp(s.path("tmp"), "layer-"); err != nil {
		return err
	}
	if err := os.Chmod(out.dir, 0o755); err != nil {
		return err
	}
	stored := newHashing(&ctxReader{ctx, raw}, s.cfg.MaxLayerBytes)
	plain, done, err := decompress(stored)
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.diffID, err)
	}
	defer done()
	diff := newHashing(plain, s.cfg.MaxLayerBytes)
	if out.implied, err = unpackTar(diff, out.dir); err != nil {
		return err
	}
	// The digest covers padding after the archive's end too.
	if _, err := io.Copy(io.Discard, diff); err != nil {
		return fmt.Errorf("layer %s: %w", l.diffID, err)
	}
	if _, err := io.Copy(io.Discard, stored); err != nil {
		return fmt.Errorf("layer %s: %w", l.diffID, err)
	}
	if got := diff.digest(); got != l.diffID {
		return fmt.Errorf("layer content is %s but the image configuration says %s: the image is corrupt", got, l.diffID)
	}
	if got := stored.digest(); l.digest != "" && got != l.digest {
		return fmt.Errorf("layer blob is %s but the manifest says %s: the image is corrupt", got, l.digest)
	}
	out.stored = stored.n
	return nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// place moves a verified layer to its chain id. chains ends with its own.
func (s *Store) place(chains []string, p *unpacked) error {
	if p.dir == "" {
		return nil
	}
	for name := range p.implied {
		s.adoptImplied(p.dir, name, chains[:len(chains)-1])
	}
	if err := syncFS(p.dir); err != nil {
		return err
	}
	err := os.Rename(p.dir, s.LayerDir(chains[len(chains)-1]))
	if errors.Is(err, os.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil // another image brought it meanwhile; the deferred clean-up drops ours
	}
	if err == nil {
		p.dir = ""
	}
	return err
}

// adoptImplied copies owner and mode of a folder from the topmost lower layer that
// has it: overlayfs shows the upper folder's, and /tmp must stay 1777.
func (s *Store) adoptImplied(dir, name string, lower []string) {
	for i := len(lower) - 1; i >= 0; i-- {
		root, err := unix.Open(s.LayerDir(lower[i]), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		fd, err := openIn(root, name)
		unix.Close(root)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil {
			return
		}
		mine, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(mine)
		up, base := path.Split(name)
		parent, err := openIn(mine, filepath.Clean(up))
		if err != nil {
			return
		}
		defer unix.Close(parent)
		unix.Fchownat(parent, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
		unix.Fchmodat(parent, base, st.Mode&0o7777, 0)
		return
	}
}
