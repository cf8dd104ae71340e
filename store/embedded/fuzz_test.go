package embedded

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/skiff-project/skiff/store/storetest"
	"github.com/skiff-project/skiff/store/vfs"
	"github.com/skiff-project/skiff/store/wal"
)

// seedFrames adds the frames of a real log, or of a real checkpoint.
func seedFrames(f *testing.F, checkpoint bool) {
	for seed := range uint64(20) {
		mem := vfs.NewMem()
		opt := diskOptions(mem)
		opt.CheckpointBytes = 1 << 30
		s := open(f, opt)
		churn(f, s, storetest.NewGen(seed), 2+int(seed)%6)
		if checkpoint {
			if err := s.Checkpoint(f.Context()); err != nil {
				f.Fatal(err)
			}
		}
		s.Close()
		var all []byte
		l, err := wal.Open(wal.Options{FS: mem, Dir: "/data"}, func(frame []byte) error {
			all = append(all, frame...)
			return nil
		})
		if err != nil {
			f.Fatal(err)
		}
		l.Close()
		f.Add(all)
	}
}

// opened opens a store and, if it does, proves that it works and comes back
// the same from its log and from a checkpoint.
func opened(t *testing.T, mem *vfs.Mem) {
	opt := diskOptions(mem)
	opt.CheckpointBytes = 1 << 30
	s, err := Open(opt)
	if err != nil {
		if corrupt := (*wal.CorruptError)(nil); !errors.As(err, &corrupt) {
			t.Fatalf("refused, but not as damage: %v", err)
		}
		return
	}
	defer s.Close()
	churn(t, s, storetest.NewGen(1), 5)
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	for range 2 {
		again, err := Open(diskOptions(mem.CrashClone(rand.New(rand.NewPCG(1, 1)), 0)))
		if err != nil {
			t.Fatalf("what opened once does not again: %v", err)
		}
		if digest(again) != digest(s) {
			t.Error("it comes back as another store")
		}
		again.Close()
		if err := s.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzLogRecords opens stores whose log has a frame of arbitrary records.
func FuzzLogRecords(f *testing.F) {
	seedFrames(f, false)
	f.Fuzz(func(t *testing.T, records []byte) {
		mem := vfs.NewMem()
		l, err := wal.Open(wal.Options{FS: mem, Dir: "/data", ExtendBytes: 4096}, func([]byte) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Reserve(len(records), 0), l.Append(records), l.Close()); err != nil {
			t.Fatal(err)
		}
		opened(t, mem)
	})
}

// FuzzCheckpoint opens stores with a checkpoint of arbitrary records.
func FuzzCheckpoint(f *testing.F) {
	seedFrames(f, true)
	f.Fuzz(func(t *testing.T, records []byte) {
		mem := vfs.NewMem()
		l, err := wal.Open(wal.Options{FS: mem, Dir: "/data", ExtendBytes: 4096}, func([]byte) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Append(nil); err != nil {
			t.Fatal(err)
		}
		num, err := l.Cut()
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.NewCheckpoint(num)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) > 0 {
			err = c.Write(records)
		}
		if err := errors.Join(err, c.Commit(), l.Close()); err != nil {
			t.Fatal(err)
		}
		opened(t, mem)
	})
}

// FuzzLogFile opens stores whose log file has arbitrary bytes somewhere.
func FuzzLogFile(f *testing.F) {
	f.Add([]byte("skiffwal"), uint16(0), false)
	f.Add(bytes.Repeat([]byte{0xff}, 300), uint16(40), true)
	f.Add(make([]byte, 512), uint16(512), true)
	mem := vfs.NewMem()
	opt := diskOptions(mem)
	opt.SegmentBytes, opt.CheckpointBytes = 1<<20, 1<<30
	s := open(f, opt)
	churn(f, s, storetest.NewGen(9), 60)
	s.Close()
	file, err := mem.Open(bigLogName)
	if err != nil {
		f.Fatal(err)
	}
	size, _ := file.Size()
	image := make([]byte, size)
	if _, err := file.ReadAt(image, 0); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, junk []byte, at uint16, cut bool) {
		from := min(int(at), len(image))
		damaged := append(bytes.Clone(image[:from]), junk...)
		if end := from + len(junk); !cut && end < len(image) {
			damaged = append(damaged, image[end:]...)
		}
		disk := vfs.NewMem()
		if err := disk.MkdirAll("/data"); err != nil {
			t.Fatal(err)
		}
		f, err := disk.Create(bigLogName)
		if err != nil {
			t.Fatal(err)
		}
		if len(damaged) > 0 {
			if _, err := f.WriteAt(damaged, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Sync(), disk.SyncDir("/data")); err != nil {
			t.Fatal(err)
		}
		opened(t, disk)
	})
}
