package bootstrap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/skiff-project/skiff/internal/atomicfile"
)

// fileSet is files to be written together. A disk syncs many files at once
// almost as fast as one, so all are written beside their names and synced side
// by side, then renamed in the order they were added (a key before its
// certificate), then their folders synced.
type fileSet struct {
	files []file
}

type file struct {
	path string
	data []byte
	perm os.FileMode
}

func (s *fileSet) add(path string, data []byte, perm os.FileMode) {
	s.files = append(s.files, file{path, data, perm})
}

func (s *fileSet) write() error {
	temps := make([]string, len(s.files))
	errs := make([]error, len(s.files))
	var wg sync.WaitGroup
	for i, f := range s.files {
		wg.Go(func() { temps[i], errs[i] = f.writeBeside() })
	}
	wg.Wait()
	err := errors.Join(errs...)
	var dirs []string
	for i, f := range s.files {
		if err == nil {
			err = os.Rename(temps[i], f.path)
		}
		if err != nil && temps[i] != "" {
			os.Remove(temps[i])
		}
		if dir := filepath.Dir(f.path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if err == nil {
			err = atomicfile.SyncDir(dir)
		}
	}
	return err
}

// writeBeside returns the name of a synced file with f's content.
func (f file) writeBeside() (name string, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)+".tmp*")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", f.path, err)
	}
	_, err = tmp.Write(f.data)
	err = errors.Join(err, tmp.Chmod(f.perm), tmp.Sync(), tmp.Close())
	if err != nil {
		err = fmt.Errorf("write %s: %w", f.path, err)
	}
	return tmp.Name(), err
}
