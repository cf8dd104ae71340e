// Package wal is the durable form of a state machine: a log of what changed,
// in segments, and checkpoints that stand for the log before them. It knows
// nothing of what the bytes mean.
//
//	<dir>/LOCK                           held by the process that has the log open
//	<dir>/<first frame, hex>.log         segment: header, frames, zeros
//	<dir>/<next frame, hex>.checkpoint   header, frames, one empty frame
//	<dir>/*.tmp                          left by a crash; removed at the next start
//	<dir>/SEGMENTS                       where the segments are, if in another folder
//
//	header (32 bytes)            frame (a multiple of 8 bytes)
//	 0  8  "skiffwal"             0  4  0x7F4C4157
//	 8  4  version, 1             4  4  n, bytes of payload
//	12  4  1 segment, 2 checkpt.  8  7  frame number, from 1 on, no gaps
//	16  8  number in the name    15  1  mask, 0 for none
//	24  4  salt                  16  4  CRC32C of the payload as stored
//	28  4  CRC32C of 0 to 28     20  4  CRC32C of salt and bytes 0 to 20
//	                             24  n  payload, masked
//	                                 0-7 zeros
//	                                 8  the frame number, inverted
//
// All integers are little-endian. One frame is one batch: one write and one
// fdatasync, and the next begins only when that has succeeded. So at most the
// last frame of the last segment can be incomplete, and then it was never
// acknowledged.
//
// # Recovery
//
// The newest checkpoint and every frame from its number on are handed to the
// caller in order. A last frame that the disk wrote in part (the file ends in
// it, its end is still zero, or one of its 512-byte sectors is) and that no
// other frame follows is dropped, and that is logged. Anything else that does
// not check is damage: Open fails with a *CorruptError that names the file and
// the offset, and touches nothing. The salt, different in every file, keeps
// stored bytes from passing for frames.
//
// So that a sector of zeros always is one that was never written, a payload
// that would fill a sector with zeros is masked: combined by exclusive or with
// eight bytes made of the salt, the frame number and the mask (maskWord).
//
// Segments grow by zeros written ahead (1 MiB at a time): a write into space
// that exists already spares fdatasync the file system's journal.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"path"
	"strings"
	"sync"

	"github.com/skiff-project/skiff/store/vfs"
)

const (
	headerSize  = 32
	frameHead   = 24
	frameTail   = 8
	sectorSize  = 512
	frameMagic  = 0x7F4C4157
	version     = 1
	kindSegment = 1
	kindCheckpt = 2
	maxFrame    = 1<<56 - 1 // the highest frame number
	// MaxPayload bounds a frame, and with it what a damaged length can claim. Bytes.
	MaxPayload = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrFull means that the disk has no room for what was to be reserved. The
// log is intact and may be tried again.
var ErrFull = errors.New("no space left for the log")

// CorruptError is damage that no crash explains.
type CorruptError struct {
	File   string
	Offset int64
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged at offset %d: %s; restore it from a backup", e.File, e.Offset, e.Reason)
}

// Options configure a Log.
type Options struct {
	FS  vfs.FS // default the real disk
	Dir string // made if missing
	// SegmentDir, an absolute path, is where the segments are, on a faster disk
	// perhaps. Default Dir. A log stays with what it was begun with.
	SegmentDir string
	// SegmentBytes is when a segment ends and the next begins. Default 16 MiB.
	SegmentBytes int64
	// ExtendBytes is how much a segment grows ahead. Default 1 MiB.
	ExtendBytes int64
	// NoSync leaves out every sync. Only for tests that must then fail.
	NoSync bool
	// Salt makes file salts. Default random.
	Salt func() uint32
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

func (o *Options) setDefaults() {
	if o.FS == nil {
		o.FS = vfs.Disk()
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 16 << 20
	}
	if o.ExtendBytes == 0 {
		o.ExtendBytes = 1 << 20
	}
	if o.Salt == nil {
		o.Salt = rand.Uint32
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Log is an open log. Append, Reserve and Cut are for one caller at a time;
// a Checkpoint may be written meanwhile.
type Log struct {
	opt   Options
	locks []io.Closer

	cur  *segment
	next uint64 // number of the next frame
	buf  []byte // the frame being written

	mu         sync.Mutex // guards the rest
	segments   []fileInfo // closed ones, oldest first
	checkpoint fileInfo   // the newest, zero for none
	curSize    int64
	logBytes   int64 // appended since the last checkpoint began
}

// fileInfo is a file of the log that is not being written.
type fileInfo struct {
	name string
	num  uint64 // number in the name
	size int64
}

// segment is the file being appended to.
type segment struct {
	f    vfs.File
	name string
	num  uint64
	salt uint32
	off  int64 // where the next frame goes
	size int64 // of the file: zeros from off on
}

func segmentName(num uint64) string    { return fmt.Sprintf("%016x.log", num) }
func checkpointName(num uint64) string { return fmt.Sprintf("%016x.checkpoint", num) }

func (l *Log) path(name string) string {
	if strings.HasSuffix(strings.TrimSuffix(name, ".tmp"), ".log") {
		return path.Join(l.dirs()[0], name)
	}
	return path.Join(l.opt.Dir, name)
}

// dirs are the folder of the segments and, if it is another, that of the rest.
func (l *Log) dirs() []string {
	if l.opt.SegmentDir != "" {
		return []string{l.opt.SegmentDir, l.opt.Dir}
	}
	return []string{l.opt.Dir}
}

// frameSize is the length on disk of a frame with n bytes of payload.
func frameSize(n int) int64 { return int64(frameHead+n+7)/8*8 + frameTail }

// appendFrame appends the frame for offset off of a file to b, masked if need be.
func appendFrame(b []byte, salt uint32, off int64, num uint64, payload []byte) []byte {
	le, start := binary.LittleEndian, len(b)
	b = le.AppendUint32(b, frameMagic)
	b = le.AppendUint32(b, uint32(len(payload)))
	b = le.AppendUint64(b, num)
	b = append(b, make([]byte, 8)...) // checksums
	b = append(b, payload...)
	for (len(b)-start)%8 != 0 {
		b = append(b, 0)
	}
	b = le.AppendUint64(b, ^num)
	frame := b[start:]
	body := frame[frameHead : frameHead+len(payload)]
	// The checksums, zero here yet, can only fill a sector together with the payload.
	for mask := byte(1); zeroSector(frame, off) && mask > 0; mask++ {
		applyMask(body, salt, num, frame[15]) // off
		applyMask(body, salt, num, mask)
		frame[15] = mask
	}
	le.PutUint32(frame[16:], crc32.Checksum(body, castagnoli))
	le.PutUint32(frame[20:], headSum(salt, frame))
	return b
}

// zeroSector reports whether a sector, or the part of one that the bytes at
// offset off of a file reach into, is all zeros.
func zeroSector(b []byte, off int64) bool {
	for len(b) > 0 {
		n := min(len(b), int(sectorSize-off%sectorSize))
		if allZero(b[:n]) {
			return true
		}
		b, off = b[n:], off+int64(n)
	}
	return false
}

// maskWord is what a mask combines a payload with: nothing a client can guess.
func maskWord(salt uint32, num uint64, mask byte) uint64 {
	x := uint64(salt)<<32 ^ num<<8 ^ uint64(mask)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// applyMask masks a payload, or uncovers it. Mask 0 changes nothing.
func applyMask(payload []byte, salt uint32, num uint64, mask byte) {
	if mask == 0 {
		return
	}
	word := maskWord(salt, num, mask)
	for i := range payload {
		payload[i] ^= byte(word >> (i % 8 * 8))
	}
}

// headSum is the checksum of the first 20 bytes of a frame.
func headSum(salt uint32, head []byte) uint32 {
	var s [4]byte
	binary.LittleEndian.PutUint32(s[:], salt)
	return crc32.Update(crc32.Checksum(s[:], castagnoli), castagnoli, head[:20])
}

func appendHeader(b []byte, kind uint32, num uint64, salt uint32) []byte {
	start := len(b)
	b = append(b, "skiffwal"...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = binary.LittleEndian.AppendUint64(b, num)
	b = binary.LittleEndian.AppendUint32(b, salt)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func (l *Log) sync(f vfs.File) error {
	if l.opt.NoSync {
		return nil
	}
	return f.Sync()
}

func (l *Log) syncDir() error {
	if l.opt.NoSync {
		return nil
	}
	for _, dir := range l.dirs() {
		if err := l.opt.FS.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// keepFree is how much of a disk the log leaves free, or a quarter of a small
// one: room for the checkpoint that shrinks the log again. Bytes.
const keepFree = 16 << 20

// Reserve makes room for a frame of n bytes of payload, so that Append cannot
// run out of space. What is not urgent leaves some of the disk free, and spare
// bytes behind it in the log. Errors: ErrFull; any other means the disk is failing.
func (l *Log) Reserve(n int, spare int64) error {
	need := frameSize(n)
	roll := l.cur.off > headerSize && l.cur.off+need > l.opt.SegmentBytes
	if spare > 0 && (roll || l.cur.off+need+spare > l.cur.size) {
		for _, dir := range l.dirs() {
			free, total, err := l.opt.FS.Space(dir)
			if err != nil {
				return err
			}
			if free < min(keepFree, total/4) {
				return fmt.Errorf("%w: %d MiB of the disk are free, the last %d are for making room", ErrFull, free>>20, min(keepFree, total/4)>>20)
			}
		}
	}
	if roll {
		// Without space for another segment this one goes on while it has room.
		if err := l.roll(); err != nil && !vfs.IsNoSpace(err) {
			return err
		}
	}
	if short := l.cur.off + need + spare - l.cur.size; short > 0 {
		grow := (short + l.opt.ExtendBytes - 1) / l.opt.ExtendBytes * l.opt.ExtendBytes
		if err := writePages(l.cur.f, make([]byte, grow), l.cur.size); err != nil {
			return full(err)
		}
		l.cur.size += grow
		l.mu.Lock()
		l.curSize = l.cur.size
		l.mu.Unlock()
	}
	return nil
}

// writePages writes space ahead a page at a time. Written at once, the kernel
// keeps it as one piece of up to a megabyte, and accounts (on some file
// systems writes) all of it for each small frame that is put there later.
func writePages(f vfs.File, p []byte, off int64) error {
	const page = 4096
	for len(p) > 0 {
		n, err := f.WriteAt(p[:min(page, len(p))], off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func full(err error) error {
	if vfs.IsNoSpace(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// Append writes one frame and returns when it is durable. Room for it must
// have been reserved. After an error nothing more may be appended: what the
// disk holds is unknown.
func (l *Log) Append(payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("a frame of %d bytes is over the limit of %d", len(payload), MaxPayload)
	}
	l.buf = appendFrame(l.buf[:0], l.cur.salt, l.cur.off, l.next, payload)
	if _, err := l.cur.f.WriteAt(l.buf, l.cur.off); err != nil {
		return err
	}
	if err := l.sync(l.cur.f); err != nil {
		return err
	}
	l.cur.off += int64(len(l.buf))
	l.next++
	l.mu.Lock()
	l.logBytes += int64(len(l.buf))
	l.mu.Unlock()
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
	return nil
}

// roll begins a new segment with the next frame.
func (l *Log) roll() error {
	seg, err := l.create(l.next)
	if err != nil {
		return err
	}
	old := l.cur
	l.cur = seg
	l.mu.Lock()
	l.curSize = seg.size
	if old != nil {
		l.segments = append(l.segments, fileInfo{old.name, old.num, old.size})
	}
	l.mu.Unlock()
	if old != nil {
		return old.f.Close()
	}
	return nil
}

// create makes a segment: complete under another name, then renamed.
func (l *Log) create(num uint64) (*segment, error) {
	seg := &segment{name: segmentName(num), num: num, salt: l.opt.Salt(), off: headerSize, size: l.opt.ExtendBytes}
	tmp := l.path(seg.name + ".tmp")
	f, err := l.opt.FS.Create(tmp)
	if err != nil {
		return nil, err
	}
	head := make([]byte, l.opt.ExtendBytes)
	appendHeader(head[:0], kindSegment, num, seg.salt)
	err = writePages(f, head, 0)
	if err == nil {
		err = l.sync(f)
	}
	if err == nil {
		err = l.opt.FS.Rename(tmp, l.path(seg.name))
	}
	if err != nil {
		f.Close()
		l.opt.FS.Remove(tmp)
		return nil, err
	}
	if err := l.syncDir(); err != nil {
		f.Close()
		// Never to be taken for ErrFull: the file is there, and the log must not go on in another.
		return nil, fmt.Errorf("sync the log's folder: %v", err)
	}
	seg.f = f
	return seg, nil
}

// Cut ends the current segment and returns the number of the next frame: a
// checkpoint of the state as it is now has that number.
func (l *Log) Cut() (uint64, error) {
	if l.cur.num != l.next {
		if err := l.roll(); err != nil {
			return 0, full(err)
		}
	}
	l.mu.Lock()
	l.logBytes = 0
	l.mu.Unlock()
	return l.next, nil
}

// Sizes returns the bytes of all files, of the newest checkpoint, and of the
// frames appended since the last Cut.
func (l *Log) Sizes() (total, checkpoint, sinceCut int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	total = l.curSize + l.checkpoint.size
	for _, s := range l.segments {
		total += s.size
	}
	return total, l.checkpoint.size, l.logBytes
}

// Close closes the files. It writes nothing.
func (l *Log) Close() error {
	return errors.Join(l.cur.f.Close(), l.unlock())
}

func (l *Log) unlock() (err error) {
	for _, lock := range l.locks {
		err = errors.Join(err, lock.Close())
	}
	return err
}
