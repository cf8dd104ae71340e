package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/skiff-project/skiff/store/vfs"
)

// Replay gets one frame's payload, valid until it returns. An error of it
// refuses the log.
type Replay func(payload []byte) error

// Open opens the log in a folder, or begins one, and hands its frames to
// replay: those of the newest checkpoint, then those logged after it.
func Open(opt Options, replay Replay) (*Log, error) {
	opt.setDefaults()
	l := &Log{opt: opt, next: 1}
	for _, dir := range l.dirs() {
		if err := opt.FS.MkdirAll(dir); err != nil {
			l.unlock()
			return nil, fmt.Errorf("make the store's folder: %w", err)
		}
		lock, err := opt.FS.Lock(path.Join(dir, "LOCK"))
		if err != nil {
			l.unlock()
			return nil, err
		}
		l.locks = append(l.locks, lock)
	}
	if err := l.recover(replay); err != nil {
		if l.cur != nil {
			l.cur.f.Close()
		}
		l.unlock()
		return nil, err
	}
	return l, nil
}

func (l *Log) recover(replay Replay) error {
	segments, checkpoints, err := l.scanDir()
	if err != nil {
		return err
	}
	if n := len(checkpoints); n > 0 {
		if err := l.readCheckpoint(checkpoints[n-1], replay); err != nil {
			return err
		}
		l.next = checkpoints[n-1]
	}
	// A crash may have kept files that the checkpoint replaced.
	keep := 0
	for keep < len(segments) && segments[keep] < l.next {
		keep++
	}
	stale := segments[:keep]
	segments = segments[keep:]
	if len(checkpoints) > 0 && len(segments) == 0 || len(segments) > 0 && segments[0] != l.next {
		return &CorruptError{l.path(segmentName(l.next)), 0, "the segment is missing"}
	}
	for i, num := range segments {
		if err := l.readSegment(num, i == len(segments)-1, replay); err != nil {
			return err
		}
	}
	for _, num := range stale {
		if err := l.opt.FS.Remove(l.path(segmentName(num))); err != nil {
			return err
		}
	}
	for i := 0; i < len(checkpoints)-1; i++ {
		if err := l.opt.FS.Remove(l.path(checkpointName(checkpoints[i]))); err != nil {
			return err
		}
	}
	if l.cur == nil {
		return l.roll()
	}
	return nil
}

// scanDir lists segments and checkpoints in order and removes what a crash
// left half made.
func (l *Log) scanDir() (segments, checkpoints []uint64, err error) {
	names, err := l.list()
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		base, ext, _ := strings.Cut(name, ".")
		num, err := strconv.ParseUint(base, 16, 64)
		if err != nil {
			continue
		}
		switch ext {
		case "log":
			segments = append(segments, num)
		case "checkpoint":
			checkpoints = append(checkpoints, num)
		case "log.tmp", "checkpoint.tmp":
			if err := l.opt.FS.Remove(l.path(name)); err != nil {
				return nil, nil, err
			}
		}
	}
	slices.Sort(segments)
	slices.Sort(checkpoints)
	return segments, checkpoints, nil
}

// placeFile says in the folder of a log where its segments are. Without it a
// log that is opened with another folder would look like one that just begins.
const placeFile = "SEGMENTS"

// list returns the names of segments, checkpoints and what else the folders
// hold, once it is certain that the folders belong together.
func (l *Log) list() ([]string, error) {
	names, err := l.opt.FS.List(l.opt.Dir)
	if err != nil {
		return nil, err
	}
	place := ""
	if slices.Contains(names, placeFile) {
		if place, err = l.readPlace(); err != nil {
			return nil, err
		}
	}
	if place == "" && l.opt.SegmentDir == "" {
		return names, nil
	}
	segments, err := l.opt.FS.List(l.dirs()[0])
	if err != nil {
		return nil, err
	}
	isLog := func(name string) bool { return strings.Contains(name, ".log") }
	isStore := func(name string) bool { return isLog(name) || strings.Contains(name, ".checkpoint") }
	switch {
	case place == "" && slices.ContainsFunc(names, isStore):
		return nil, fmt.Errorf("%s was begun with its log in it, not in %s: leave that out, or restore a snapshot into new folders", l.opt.Dir, l.opt.SegmentDir)
	case place == "" && slices.ContainsFunc(segments, isStore):
		return nil, fmt.Errorf("%s holds a log, but not that of %s, which is empty: give the two folders that belong together, or an empty one", l.opt.SegmentDir, l.opt.Dir)
	case place != "" && place != l.opt.SegmentDir:
		return nil, fmt.Errorf("%s has its log in %s: name that folder, or, if the log was moved, write in %s where to", l.opt.Dir, place, l.path(placeFile))
	case place == "":
		if err := l.writePlace(); err != nil {
			return nil, err
		}
	}
	return append(slices.DeleteFunc(names, isLog), slices.DeleteFunc(segments, func(name string) bool { return !isLog(name) })...), nil
}

func (l *Log) readPlace() (string, error) {
	f, err := l.opt.FS.Open(l.path(placeFile))
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	text := make([]byte, min(size, 4096))
	if _, err := f.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(string(text)), nil
}

func (l *Log) writePlace() error {
	tmp := l.path(placeFile + ".tmp")
	f, err := l.opt.FS.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(l.opt.SegmentDir+"\n"), 0)
	if err == nil {
		err = l.sync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := l.opt.FS.Rename(tmp, l.path(placeFile)); err != nil {
		return err
	}
	return l.syncDir()
}

func (l *Log) readCheckpoint(num uint64, replay Replay) error {
	name := checkpointName(num)
	r, err := l.openReader(name, kindCheckpt, num)
	if err != nil {
		return err
	}
	defer r.f.Close()
	for n := uint64(1); ; n++ {
		payload, state := r.frame(n)
		if r.err != nil {
			return r.err
		}
		if state != frameGood {
			return r.corrupt("a frame of the checkpoint does not check")
		}
		if len(payload) == 0 {
			if r.off != r.size {
				return r.corrupt("there is more after the last frame")
			}
			l.checkpoint = fileInfo{name, num, r.size}
			return nil
		}
		if err := replay(payload); err != nil {
			return &CorruptError{r.name, r.last, err.Error()}
		}
	}
}

// readSegment replays a segment; the last one becomes the current one.
func (l *Log) readSegment(num uint64, last bool, replay Replay) error {
	name := segmentName(num)
	if num != l.next {
		return &CorruptError{l.path(segmentName(l.next)), 0, fmt.Sprintf("the segment is missing: frame %d is wanted, the next file begins with %d", l.next, num)}
	}
	r, err := l.openReader(name, kindSegment, num)
	if err != nil {
		return err
	}
	for {
		payload, state := r.frame(l.next)
		if r.err != nil {
			r.f.Close()
			return r.err
		}
		if state != frameGood {
			break
		}
		if err := replay(payload); err != nil {
			r.f.Close()
			return &CorruptError{r.name, r.last, err.Error()}
		}
		l.next++
		l.logBytes += r.off - r.last
	}
	if !last {
		defer r.f.Close()
		if err := r.expectZeros(); err != nil {
			return err
		}
		l.segments = append(l.segments, fileInfo{name, num, r.size})
		return nil
	}
	if err := l.endLog(r); err != nil {
		r.f.Close()
		return err
	}
	l.cur = &segment{f: r.f, name: name, num: num, salt: r.salt, off: r.off, size: r.size}
	l.curSize = r.size
	return nil
}

// endLog judges what follows the last good frame of the log: zeros, a frame
// torn by a crash, which it wipes, or damage.
func (l *Log) endLog(r *reader) error {
	torn, err := r.tail(l.next)
	if err != nil || !torn {
		return err
	}
	l.opt.Log.Warn("dropped an incomplete last record, as a crash leaves it; it was never acknowledged",
		"file", r.name, "offset", r.off)
	wipe := make([]byte, l.opt.ExtendBytes)
	for off := r.off; off < r.size; off += int64(len(wipe)) {
		if _, err := r.f.WriteAt(wipe[:min(int64(len(wipe)), r.size-off)], off); err != nil {
			return err
		}
	}
	return l.sync(r.f)
}

// reader reads the frames of one file through a window.
type reader struct {
	f      vfs.File
	name   string
	size   int64
	salt   uint32
	off    int64 // of the next frame
	last   int64 // of the last frame read
	window []byte
	start  int64 // offset of window[0]
	err    error
}

func (l *Log) openReader(name string, kind uint32, num uint64) (*reader, error) {
	r := &reader{name: l.path(name), off: headerSize}
	var err error
	if r.f, err = l.opt.FS.Open(r.name); err != nil {
		return nil, err
	}
	if r.size, err = r.f.Size(); err != nil {
		r.f.Close()
		return nil, err
	}
	head := r.bytes(0, headerSize)
	if r.err == nil {
		r.err = checkHeader(r, head, kind, num)
	}
	if r.err != nil {
		r.f.Close()
		return nil, r.err
	}
	r.salt = binary.LittleEndian.Uint32(head[24:])
	return r, nil
}

func checkHeader(r *reader, head []byte, kind uint32, num uint64) error {
	le := binary.LittleEndian
	switch {
	case len(head) < headerSize:
		return &CorruptError{r.name, 0, "the file is too short"}
	case string(head[:8]) != "skiffwal" || le.Uint32(head[28:]) != crc32.Checksum(head[:28], castagnoli):
		return &CorruptError{r.name, 0, "the header does not check"}
	case le.Uint32(head[8:]) != version:
		return fmt.Errorf("%s has format version %d, this program knows version %d; use the program that wrote it", r.name, le.Uint32(head[8:]), version)
	case le.Uint32(head[12:]) != kind || le.Uint64(head[16:]) != num:
		return &CorruptError{r.name, 0, "the header belongs to another file"}
	}
	return nil
}

func (r *reader) corrupt(reason string) error { return &CorruptError{r.name, r.off, reason} }

// bytes returns [off, off+n) of the file, less if it ends before.
func (r *reader) bytes(off int64, n int) []byte {
	end := min(off+int64(n), r.size)
	if off >= end {
		return nil
	}
	if off < r.start || end > r.start+int64(len(r.window)) {
		want := max(end-off, min(1<<20, r.size-off))
		if int64(cap(r.window)) < want {
			r.window = make([]byte, want)
		}
		r.window = r.window[:want]
		r.start = off
		got, err := r.f.ReadAt(r.window, off)
		if err != nil && !(errors.Is(err, io.EOF) && got == len(r.window)) {
			r.err = fmt.Errorf("read %s at offset %d: %w", r.name, off, err)
			r.window = r.window[:0]
			return nil
		}
	}
	return r.window[off-r.start : end-r.start]
}

type frameState int

const (
	frameGood frameState = iota
	frameNone            // nothing, or a header that does not check
	frameBody            // the header checks, the rest does not
)

// frame reads frame num at r.off and moves past it if it is good.
func (r *reader) frame(num uint64) ([]byte, frameState) {
	n, ok := r.head(r.off, num)
	if !ok {
		return nil, frameNone
	}
	b := r.bytes(r.off, int(frameSize(n)))
	if int64(len(b)) < frameSize(n) {
		return nil, frameBody
	}
	payload := b[frameHead : frameHead+n]
	le := binary.LittleEndian
	if le.Uint32(b[16:]) != crc32.Checksum(payload, castagnoli) || le.Uint64(b[len(b)-frameTail:]) != ^num ||
		!allZero(b[frameHead+n:len(b)-frameTail]) {
		return nil, frameBody
	}
	applyMask(payload, r.salt, num, b[15])
	r.last = r.off
	r.off += frameSize(n)
	return payload, frameGood
}

// head checks the frame header at off; it must have number num, or a later
// one if num is 0.
func (r *reader) head(off int64, num uint64) (n int, ok bool) {
	b := r.bytes(off, frameHead)
	le := binary.LittleEndian
	if len(b) < frameHead || le.Uint32(b) != frameMagic || le.Uint32(b[20:]) != headSum(r.salt, b) {
		return 0, false
	}
	n = int(le.Uint32(b[4:]))
	return n, n <= MaxPayload && (num == 0 || le.Uint64(b[8:])&maxFrame == num)
}

// expectZeros checks that a segment that is not the last ends in zeros.
func (r *reader) expectZeros() error {
	for off := r.off; off < r.size; {
		b := r.bytes(off, 1<<16)
		if r.err != nil {
			return r.err
		}
		if !allZero(b) {
			return r.corrupt("a frame does not check, and the log goes on in another file")
		}
		off += int64(len(b))
	}
	return nil
}

// tail judges the end of the last segment, from r.off on, where frame num
// would be: nothing (false), a torn frame (true), or damage (an error).
func (r *reader) tail(num uint64) (torn bool, err error) {
	rest, err := r.rest()
	if err != nil || allZero(rest) {
		// Only a header cut off by the end of the file is worth a word.
		return false, err
	}
	n, headOK := r.head(r.off, num)
	end := len(rest)
	if headOK {
		end = min(end, int(frameSize(n)))
	}
	for off := 8; off+frameHead <= len(rest); off += 8 {
		if headOK && off < end {
			off = end // the payload may be anything
			if off+frameHead > len(rest) {
				break
			}
		}
		if _, ok := r.head(r.off+int64(off), 0); ok {
			return false, r.corrupt(fmt.Sprintf("frame %d does not check, and a good frame follows at offset %d", num, r.off+int64(off)))
		}
	}
	if !headOK && r.tornHead(rest, num) {
		return true, nil
	}
	if headOK && tornBody(rest, r.off, int(frameSize(n))) {
		return true, nil
	}
	return false, r.corrupt(fmt.Sprintf("frame %d does not check, and no crash leaves it so", num))
}

// rest returns the file from r.off on; at most one segment.
func (r *reader) rest() ([]byte, error) {
	b := bytes.Clone(r.bytes(r.off, int(r.size-r.off)))
	return b, r.err
}

// tornHead reports whether the header of frame num, which does not check, was
// written in part: the file ends in it, or it is right up to some byte and
// zero from there on, or a sector border is inside it and one side is zero.
func (r *reader) tornHead(rest []byte, num uint64) bool {
	border := int(sectorSize - r.off%sectorSize)
	if len(rest) < frameHead || allZero(rest[:min(border, len(rest))]) {
		return true
	}
	if allZero(rest[frameHead:]) {
		known := binary.LittleEndian.AppendUint32(nil, frameMagic)
		known = append(known, rest[4:8]...) // the length may be any, and so may the mask below
		known = binary.LittleEndian.AppendUint64(known, num|uint64(rest[15])<<56)
		written := len(bytes.TrimRight(rest[:frameHead], "\x00"))
		n := min(written, len(known))
		return rest[frameHead-1] == 0 && bytes.Equal(rest[:n], known[:n])
	}
	return border < frameHead && allZero(rest[border:min(border+sectorSize, len(rest))])
}

// tornBody reports whether a frame at offset off, size bytes long, was
// written in part. rest begins with the frame.
func tornBody(rest []byte, off int64, size int) bool {
	// The last byte of a frame is 0xff.
	return len(rest) < size || rest[size-1] == 0 || zeroSector(rest[:size], off)
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
