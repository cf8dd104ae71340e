package logs

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const sample = `2026-01-01T00:00:00.000000001Z stdout F one
2026-01-01T00:00:01Z stderr F two
2026-01-01T00:00:02Z stdout P thr
2026-01-01T00:00:02.5Z stdout F ee
2026-01-01T00:00:03Z stdout F 
garbage
2026-01-01T00:00:04Z stdout F five
`

func dead() bool { return false }

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	n := func(i int64) *int64 { return &i }
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"all":        {Options{}, "one\ntwo\nthree\n\nfive\n"},
		"tail 1":     {Options{Tail: n(1)}, "five\n"},
		"tail 2":     {Options{Tail: n(2)}, "\nfive\n"},
		"tail 3":     {Options{Tail: n(3)}, "three\n\nfive\n"},
		"tail 0":     {Options{Tail: n(0)}, ""},
		"tail 99":    {Options{Tail: n(99)}, "one\ntwo\nthree\n\nfive\n"},
		"limit":      {Options{LimitBytes: n(6)}, "one\ntw"},
		"stderr":     {Options{Stream: "stderr"}, "two\n"},
		"since":      {Options{Since: time.Date(2026, 1, 1, 0, 0, 3, 0, time.UTC)}, "\nfive\n"},
		"timestamps": {Options{Timestamps: true, Tail: n(1)}, "2026-01-01T00:00:04Z five\n"},
	} {
		var out bytes.Buffer
		if err := Read(context.Background(), path, c.o, dead, &out, &out); err != nil || out.String() != c.want {
			t.Errorf("%s: %q %v, want %q", name, out.String(), err, c.want)
		}
	}
	if s, err := LastLines(path, 2, 3); err != nil || s != "ve\n" {
		t.Errorf("LastLines: %q %v", s, err)
	}
}

type signal struct {
	bytes.Buffer
	seen chan string
}

func (s *signal) Write(b []byte) (int, error) { s.seen <- string(b); return len(b), nil }

func TestFollowAcrossRotationUntilTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	line := func(s string) string { return "2026-01-01T00:00:00Z stdout F " + s + "\n" }
	if err := os.WriteFile(path, []byte(line("a")), 0o600); err != nil {
		t.Fatal(err)
	}
	var alive atomic.Bool
	alive.Store(true)
	out := &signal{seen: make(chan string, 10)}
	done := make(chan error, 1)
	go func() { done <- Read(context.Background(), path, Options{Follow: true}, alive.Load, out, out) }()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-out.seen:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q never came", want)
		}
	}
	next("a\n")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(line("b")), 0o600); err != nil {
		t.Fatal(err)
	}
	next("b\n")
	alive.Store(false)
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("following did not end with the container")
	}
}

func TestRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := &Rotator{MaxSize: 10, MaxFiles: 3, Now: func() time.Time { now = now.Add(time.Second); return now },
		Reopen: func(context.Context, string) error { return os.WriteFile(path, []byte(strings.Repeat("x", 20)), 0o600) }}
	if err := os.WriteFile(path, []byte("small"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(context.Background(), "c", path); err != nil {
		t.Fatal(err)
	}
	if old, _ := filepath.Glob(path + ".*"); len(old) != 0 {
		t.Fatalf("a small log was rotated: %v", old)
	}
	_ = os.WriteFile(path, []byte(strings.Repeat("x", 20)), 0o600)
	for range 6 {
		if err := r.Check(context.Background(), "c", path); err != nil {
			t.Fatal(err)
		}
	}
	old, _ := filepath.Glob(path + ".*")
	if len(old) != 2 || !strings.HasSuffix(old[0], ".gz") || strings.HasSuffix(old[1], ".gz") {
		t.Errorf("kept %v, want one compressed and one plain", old)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-01-01T00:00:00Z stdout F x"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parse(b) })
}
