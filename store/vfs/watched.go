package vfs

import (
	"path"
	"strings"
	"time"
)

// Watch is told what happens to files that are opened, or made to be renamed, under a name that has Part in it.
type Watch struct {
	Part   string
	Wrote  func(bytes int)
	Synced func(took time.Duration)
}

// Watched is fs, with w told of every write and sync that succeeds.
func Watched(fs FS, w Watch) FS { return &watchedFS{fs, w} }

type watchedFS struct {
	FS
	watch Watch
}

func (w *watchedFS) Create(name string) (File, error) {
	f, err := w.FS.Create(name)
	return w.file(name, f, err)
}

func (w *watchedFS) Open(name string) (File, error) {
	f, err := w.FS.Open(name)
	return w.file(name, f, err)
}

func (w *watchedFS) file(name string, f File, err error) (File, error) {
	if err != nil || !strings.Contains(path.Base(name), w.watch.Part) {
		return f, err
	}
	return &watchedFile{f, &w.watch}, nil
}

type watchedFile struct {
	File
	watch *Watch
}

func (f *watchedFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if err == nil {
		f.watch.Wrote(n)
	}
	return n, err
}

func (f *watchedFile) Sync() error {
	began := time.Now()
	err := f.File.Sync()
	if err == nil {
		f.watch.Synced(time.Since(began))
	}
	return err
}
