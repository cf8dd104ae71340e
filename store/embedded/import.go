package embedded

import (
	"fmt"

	"github.com/skiff-project/skiff/store/mvcc"
	"github.com/skiff-project/skiff/store/wal"
)

// Import makes a store of an image in the folder opt.Dir, which holds none
// yet, and proves that it opens. Errors: those of Open, and an error if the
// folder holds a store or the image does not make sense.
func Import(opt Options, img *mvcc.Image) error {
	opt.setDefaults()
	empty := true
	l, err := wal.Open(wal.Options{FS: opt.FS, Dir: opt.Dir, SegmentDir: opt.SegmentDir, SegmentBytes: opt.SegmentBytes, ExtendBytes: opt.ExtendBytes, Log: opt.Log}, func([]byte) error {
		empty = false
		return nil
	})
	if err != nil {
		return err
	}
	if !empty {
		l.Close()
		return fmt.Errorf("folder %s holds a store already: choose another", opt.Dir)
	}
	if err := importInto(l, img); err != nil {
		l.Close()
		return fmt.Errorf("import into %s: %w", opt.Dir, err)
	}
	if err := l.Close(); err != nil {
		return err
	}
	s, err := Open(opt)
	if err != nil {
		return err
	}
	return s.Close()
}

func importInto(l *wal.Log, img *mvcc.Image) error {
	// A frame before the cut: the checkpoint stands for something.
	if err := l.Append(nil); err != nil {
		return err
	}
	num, err := l.Cut()
	if err != nil {
		return err
	}
	c, err := l.NewCheckpoint(num)
	if err != nil {
		if c != nil {
			c.Abort()
		}
		return err
	}
	if err := mvcc.WriteImage(img, c.Write); err != nil {
		c.Abort()
		return err
	}
	return c.Commit()
}
