package wal

import (
	"fmt"

	"github.com/skiff-project/skiff/store/vfs"
)

// Checkpoint is a checkpoint being written. It may be written while the log
// is appended to.
type Checkpoint struct {
	l    *Log
	f    vfs.File
	num  uint64
	salt uint32
	n    uint64 // frames written
	off  int64
	buf  []byte
}

// NewCheckpoint begins the checkpoint of number num, which Cut returned. End
// it with Commit or Abort.
func (l *Log) NewCheckpoint(num uint64) (*Checkpoint, error) {
	c := &Checkpoint{l: l, num: num, salt: l.opt.Salt()}
	f, err := l.opt.FS.Create(c.tmp())
	if err != nil {
		return nil, full(err)
	}
	c.f = f
	c.buf = appendHeader(nil, kindCheckpt, num, c.salt)
	return c, c.flush()
}

func (c *Checkpoint) tmp() string { return c.l.path(checkpointName(c.num) + ".tmp") }

func (c *Checkpoint) flush() error {
	if _, err := c.f.WriteAt(c.buf, c.off); err != nil {
		return full(err)
	}
	c.off += int64(len(c.buf))
	c.buf = c.buf[:0]
	return nil
}

// Write appends one frame.
func (c *Checkpoint) Write(payload []byte) error {
	c.n++
	c.buf = appendFrame(c.buf, c.salt, c.off, c.n, payload)
	return c.flush()
}

// Commit makes the checkpoint durable and removes what it replaces.
func (c *Checkpoint) Commit() error {
	if err := c.Write(nil); err != nil {
		return err
	}
	if err := c.l.sync(c.f); err != nil {
		return err
	}
	if err := c.f.Close(); err != nil {
		return err
	}
	name := checkpointName(c.num)
	if err := c.l.opt.FS.Rename(c.tmp(), c.l.path(name)); err != nil {
		return err
	}
	if err := c.l.syncDir(); err != nil {
		return err
	}
	return c.l.replaced(fileInfo{name, c.num, c.off})
}

// Abort removes an unfinished checkpoint.
func (c *Checkpoint) Abort() {
	c.f.Close()
	c.l.opt.FS.Remove(c.tmp())
}

// replaced removes the files that a durable checkpoint stands for.
func (l *Log) replaced(by fileInfo) error {
	l.mu.Lock()
	var gone []string
	// With nothing logged since, the new checkpoint has the old one's name.
	if l.checkpoint.name != "" && l.checkpoint.name != by.name {
		gone = append(gone, l.checkpoint.name)
	}
	l.checkpoint = by
	n := 0
	for n < len(l.segments) && l.segments[n].num < by.num {
		gone = append(gone, l.segments[n].name)
		n++
	}
	l.segments = l.segments[n:]
	l.mu.Unlock()
	for _, name := range gone {
		if err := l.opt.FS.Remove(l.path(name)); err != nil {
			return fmt.Errorf("remove replaced %s: %w", name, err)
		}
	}
	return nil
}
