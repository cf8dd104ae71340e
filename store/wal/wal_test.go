package wal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/skiff-project/skiff/store/vfs"
)

func openAll(opt Options) (*Log, []string, error) {
	var got []string
	l, err := Open(opt, func(p []byte) error {
		got = append(got, string(p))
		return nil
	})
	return l, got, err
}

func appendAll(t *testing.T, l *Log, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		if err := l.Reserve(len(p), 0); err != nil {
			t.Fatal(err)
		}
		if err := l.Append([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
}

func small(fs vfs.FS) Options {
	return Options{FS: fs, Dir: "/d", SegmentBytes: 4096, ExtendBytes: 1024, Salt: func() uint32 { return 7 }}
}

// text makes a payload without zero bytes.
func text(n, seed int) string {
	return strings.Repeat(fmt.Sprintf("<%d>", seed), n/3+1)[:n]
}

func TestFramesComeBackInOrder(t *testing.T) {
	fs := vfs.NewMem()
	l, _, err := openAll(small(fs))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 60 {
		want = append(want, text(1+i*17%900, i))
	}
	appendAll(t, l, want[:30]...)
	l.Close()
	l, got, err := openAll(small(fs))
	if err != nil || !slices.Equal(got, want[:30]) {
		t.Fatalf("first reopen: %v, %d frames", err, len(got))
	}
	appendAll(t, l, want[30:]...)
	l.Close()
	_, got, err = openAll(small(fs))
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("second reopen: %v, %d frames", err, len(got))
	}
}

func beginCheckpoint(t *testing.T, l *Log) *Checkpoint {
	t.Helper()
	num, err := l.Cut()
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.NewCheckpoint(num)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheckpointReplacesTheLogBeforeIt(t *testing.T) {
	fs := vfs.NewMem()
	l, _, err := openAll(small(fs))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		appendAll(t, l, text(700, i))
	}
	c := beginCheckpoint(t, l)
	appendAll(t, l, "after the cut")
	if err := c.Write([]byte("state")); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(); err != nil {
		t.Fatal(err)
	}
	appendAll(t, l, "after the checkpoint")
	l.Close()
	names, _ := fs.List("/d")
	if want := []string{checkpointName(21), segmentName(21)}; !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	_, got, err := openAll(small(fs))
	if want := []string{"state", "after the cut", "after the checkpoint"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("replayed %q, %v; want %q", got, err, want)
	}
}

// Two checkpoints with nothing logged between them are one file.
func TestCheckpointOfTheSameStateReplacesTheFirst(t *testing.T) {
	fs := vfs.NewMem()
	l, _, err := openAll(small(fs))
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, l, text(700, 1))
	for range 2 {
		c := beginCheckpoint(t, l)
		if err := c.Write([]byte("state")); err != nil {
			t.Fatal(err)
		}
		if err := c.Commit(); err != nil {
			t.Fatal(err)
		}
		names, _ := fs.List("/d")
		if want := []string{checkpointName(2), segmentName(2)}; !slices.Equal(names, want) {
			t.Fatalf("files %v, want %v", names, want)
		}
	}
	l.Close()
	if _, got, err := openAll(small(fs)); err != nil || !slices.Equal(got, []string{"state"}) {
		t.Errorf("replayed %q, %v", got, err)
	}
}

// image is the file of a log with the given frames.
func image(t *testing.T, payloads ...string) []byte {
	t.Helper()
	fs := vfs.NewMem()
	l, _, err := openAll(small(fs))
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, l, payloads...)
	l.Close()
	f, err := fs.Open("/d/" + segmentName(1))
	if err != nil {
		t.Fatal(err)
	}
	size, _ := f.Size()
	b := make([]byte, size)
	f.ReadAt(b, 0)
	return b
}

func zeros(n int) string { return string(make([]byte, n)) }

func load(t *testing.T, file []byte, log *slog.Logger) ([]string, error) {
	t.Helper()
	fs := vfs.NewMem()
	if err := fs.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	f, _ := fs.Create("/d/" + segmentName(1))
	if len(file) > 0 {
		f.WriteAt(file, 0)
	}
	opt := small(fs)
	opt.Log = log
	l, got, err := openAll(opt)
	if err != nil {
		return nil, err
	}
	// What is recovered must also be good to append to and to open again.
	appendAll(t, l, "next")
	l.Close()
	_, again, err := openAll(small(fs))
	if err != nil || !slices.Equal(again, append(slices.Clone(got), "next")) {
		t.Fatalf("second recovery: %q, %v; the first had %q", again, err, got)
	}
	return got, nil
}

// Torn tail: whatever byte the last write ended at, be it that the file ends
// there or that zeros follow, the record is dropped and that is logged.
func TestTornTailIsDroppedAtEveryByte(t *testing.T) {
	for name, last := range map[string]string{"text": text(900, 2), "zeros, which are masked": zeros(900)} {
		t.Run(name, func(t *testing.T) { dropsTornTail(t, text(300, 1), last) })
	}
}

func dropsTornTail(t *testing.T, first, last string) {
	file := image(t, first, last)
	from := headerSize + int(frameSize(len(first)))
	to := from + int(frameSize(len(last)))
	for cut := from; cut < to; cut++ {
		zeroed := slices.Clone(file)
		clear(zeroed[cut:])
		for name, damaged := range map[string][]byte{"truncated": file[:cut], "zeroed": zeroed} {
			if cut < headerSize {
				continue
			}
			var log bytes.Buffer
			got, err := load(t, damaged, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil || !slices.Equal(got, []string{first}) {
				t.Fatalf("%s at %d: %d frames, %v", name, cut, len(got), err)
			}
			if torn := cut > from; torn && !strings.Contains(log.String(), fmt.Sprintf("offset=%d", from)) {
				t.Fatalf("%s at %d: not logged with the offset: %s", name, cut, log.String())
			}
		}
	}
}

// Any sector of the last write may be missing, the first too, wherever in a
// sector it begins.
func TestTornSectorsAreDropped(t *testing.T) {
	for at := 0; at < sectorSize; at += 8 {
		dropsTornSectors(t, text(300+at, 1), text(1800, 2))
		dropsTornSectors(t, text(300+at, 1), zeros(1200))
	}
}

func dropsTornSectors(t *testing.T, first, last string) {
	file := image(t, first, last)
	from := headerSize + int(frameSize(len(first)))
	to := from + int(frameSize(len(last)))
	end := (to - 1) / sectorSize
	for mask := 1; mask < 1<<(end-from/sectorSize+1); mask++ {
		damaged := slices.Clone(file)
		for s := from / sectorSize; s <= end; s++ {
			if mask>>(s-from/sectorSize)&1 == 1 {
				clear(damaged[max(from, s*sectorSize):min(to, (s+1)*sectorSize)])
			}
		}
		got, err := load(t, damaged, nil)
		if err != nil || !slices.Equal(got, []string{first}) {
			t.Fatalf("a frame at %d, sectors %b missing: %d frames, %v", from, mask, len(got), err)
		}
	}
}

// Damage before the last frame, and damage no crash leaves, refuse the log by
// file and offset.
func TestDamageIsRefused(t *testing.T) {
	first, last := text(300, 1), text(900, 2)
	file := image(t, first, last)
	second := headerSize + int(frameSize(len(first)))
	cases := []struct {
		name   string
		damage func([]byte)
		offset int
	}{
		{"first frame zeroed", func(b []byte) { clear(b[headerSize:second]) }, headerSize},
		{"end of first frame zeroed", func(b []byte) { clear(b[second-40 : second]) }, headerSize},
		{"bit of first payload", func(b []byte) { b[headerSize+frameHead+5] ^= 1 }, headerSize},
		{"length of first frame", func(b []byte) { b[headerSize+4] ^= 1 }, headerSize},
		{"bit of last payload", func(b []byte) { b[second+frameHead+500] ^= 4 }, second},
		{"bit of last header", func(b []byte) { b[second+9] ^= 4 }, second},
		{"bit of last end mark", func(b []byte) { b[second+int(frameSize(len(last)))-1] ^= 4 }, second},
		{"stray bit in the zeros", func(b []byte) { b[second+int(frameSize(len(last)))+3] = 8 }, second + int(frameSize(len(last)))},
		{"stray bit further in the zeros", func(b []byte) { b[second+int(frameSize(len(last)))+40] = 8 }, second + int(frameSize(len(last)))},
		{"header of the file", func(b []byte) { b[20] ^= 1 }, 0},
	}
	for _, c := range cases {
		damaged := slices.Clone(file)
		c.damage(damaged)
		_, err := load(t, damaged, nil)
		corrupt := (*CorruptError)(nil)
		if !errors.As(err, &corrupt) || corrupt.File != "/d/"+segmentName(1) || corrupt.Offset != int64(c.offset) {
			t.Errorf("%s: %v, want damage at offset %d", c.name, err, c.offset)
		}
	}
}

// A record with sectors of zeros is no torn one: damage in it is refused, and
// a sector that is missing is still seen.
func TestZerosInTheLastRecord(t *testing.T) {
	first, last := text(300, 1), zeros(2000)
	file := image(t, first, last)
	second := headerSize + int(frameSize(len(first)))
	if got, err := load(t, file, nil); err != nil || !slices.Equal(got, []string{first, last}) {
		t.Fatalf("undamaged: %d frames, %v", len(got), err)
	}
	for bit := range int(frameSize(len(last))) * 8 {
		damaged := slices.Clone(file)
		damaged[second+bit/8] ^= 1 << (bit % 8)
		_, err := load(t, damaged, nil)
		corrupt := (*CorruptError)(nil)
		if !errors.As(err, &corrupt) || corrupt.Offset != int64(second) {
			t.Fatalf("bit %d of byte %d of the record: %v", bit%8, bit/8, err)
		}
	}
	for sector := (second/sectorSize + 1) * sectorSize; sector < second+int(frameSize(len(last))); sector += sectorSize {
		damaged := slices.Clone(file)
		clear(damaged[sector : sector+sectorSize])
		if got, err := load(t, damaged, nil); err != nil || !slices.Equal(got, []string{first}) {
			t.Fatalf("sector at %d missing: %d frames, %v", sector, len(got), err)
		}
	}
}

func TestMissingFilesAreRefused(t *testing.T) {
	fs := vfs.NewMem()
	l, _, err := openAll(small(fs))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		appendAll(t, l, text(900, i))
	}
	l.Close()
	names, _ := fs.List("/d")
	for i, name := range names[:len(names)-1] {
		clone := fs.CrashClone(nil, 0)
		if err := clone.Remove("/d/" + name); err != nil {
			t.Fatal(err)
		}
		_, _, err := openAll(small(clone))
		corrupt := (*CorruptError)(nil)
		if !errors.As(err, &corrupt) || corrupt.File != "/d/"+name {
			t.Errorf("without file %d: %v", i, err)
		}
	}
}

func FuzzRecovery(f *testing.F) {
	f.Add([]byte("skiffwal"), 10)
	f.Add(bytes.Repeat([]byte{0xff}, 300), 40)
	f.Fuzz(func(t *testing.T, junk []byte, at int) {
		file := image(t, "first", text(600, 1))
		if at < 0 || at > len(file) || at+len(junk) > 1<<16 {
			return
		}
		damaged := append(slices.Clone(file[:at]), junk...)
		if at+len(junk) < len(file) {
			damaged = append(damaged, file[at+len(junk):]...)
		}
		got, err := load(t, damaged, nil)
		for i, p := range got {
			if want := []string{"first", text(600, 1)}; err == nil && p != want[i] {
				t.Errorf("frame %d came back as %q", i, p)
			}
		}
	})
}

// Folders that do not belong together are never taken for a log that begins.
func TestSegmentsInAnotherFolder(t *testing.T) {
	fs := vfs.NewMem()
	at := func(dir, segments string) Options {
		opt := small(fs)
		opt.Dir, opt.SegmentDir = dir, segments
		return opt
	}
	l, _, err := openAll(at("/d", "/log"))
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, l, "one", "two")
	l.Close()
	refused := func(opt Options, want string) {
		t.Helper()
		_, got, err := openAll(opt)
		if err == nil || !strings.Contains(err.Error(), want) || len(got) > 0 {
			t.Errorf("%s with %s: %v, want %q", opt.Dir, opt.SegmentDir, err, want)
		}
	}
	refused(at("/d", ""), "/d has its log in /log")
	refused(at("/d", "/other"), "write in /d/SEGMENTS where to")
	refused(at("/new", "/log"), "/log holds a log, but not that of /new")
	if l, _, err = openAll(at("/own", "")); err != nil {
		t.Fatal(err)
	}
	l.Close()
	refused(at("/own", "/other"), "/own was begun with its log in it")

	l, got, err := openAll(at("/d", "/log"))
	if err != nil || !slices.Equal(got, []string{"one", "two"}) {
		t.Fatalf("%v %v", got, err)
	}
	refused(at("/new", "/log"), "/log/LOCK is locked") // also while it is in use
	if err := beginCheckpoint(t, l).Commit(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	names, _ := fs.List("/log")
	if slices.Sort(names); !slices.Equal(names, []string{"0000000000000003.log"}) {
		t.Errorf("/log holds %v", names)
	}
	names, _ = fs.List("/d")
	if slices.Sort(names); !slices.Equal(names, []string{"0000000000000003.checkpoint", "SEGMENTS"}) {
		t.Errorf("/d holds %v", names)
	}
	if l, _, err = openAll(at("/d", "/log")); err != nil {
		t.Fatal(err)
	}
	l.Close()
}
