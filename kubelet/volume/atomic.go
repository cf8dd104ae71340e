package volume

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const dataLink = "..data"

// writeAtomic makes a folder show exactly these files, all changing at one instant: they are
// written to a fresh hidden folder, the link "..data" is switched to it by one rename, and every
// visible name is a link through "..data". adjust sets ownership on the fresh folder before it shows.
func writeAtomic(dir string, files map[string]File, adjust func(string) error) error {
	for name := range files {
		if err := validName(name); err != nil {
			return err
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, dataLink))
	if old != "" && unchanged(filepath.Join(dir, old), files) {
		return links(dir, files)
	}
	fresh, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return fmt.Errorf("write volume content: %w", err)
	}
	if err := fill(fresh, files, adjust); err != nil {
		_ = os.RemoveAll(fresh)
		return fmt.Errorf("write volume content: %w", err)
	}
	tmp := filepath.Join(dir, dataLink+"_tmp")
	_ = os.Remove(tmp)
	if err := os.Symlink(filepath.Base(fresh), tmp); err != nil {
		_ = os.RemoveAll(fresh)
		return fmt.Errorf("write volume content: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		_ = os.RemoveAll(fresh)
		return fmt.Errorf("write volume content: %w", err)
	}
	if err := links(dir, files); err != nil {
		return err
	}
	return sweep(dir, filepath.Base(fresh), files)
}

func fill(dir string, files map[string]File, adjust func(string) error) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, f.Data, 0o600); err != nil {
			return err
		}
		if f.UID != nil {
			if err := os.Chown(p, int(*f.UID), -1); err != nil {
				return err
			}
		}
		if err := os.Chmod(p, os.FileMode(f.Mode)&0o777); err != nil {
			return err
		}
	}
	return adjust(dir)
}

// unchanged compares names, content and (loosely: the group may have been widened) modes.
func unchanged(dir string, files map[string]File) bool {
	seen := 0
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		f, ok := files[filepath.ToSlash(rel)]
		if !ok {
			return os.ErrNotExist
		}
		seen++
		have, err := os.ReadFile(p)
		if err != nil || !bytes.Equal(have, f.Data) {
			return os.ErrNotExist
		}
		if fi, err := d.Info(); err != nil || fi.Mode().Perm()&0o700 != os.FileMode(f.Mode)&0o700 {
			return os.ErrNotExist
		}
		return nil
	})
	return err == nil && seen == len(files)
}

// links makes the visible names: one per first path element.
func links(dir string, files map[string]File) error {
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		link := filepath.Join(dir, first)
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		if err := os.Symlink(filepath.Join(dataLink, first), link); err != nil && !os.IsExist(err) {
			return fmt.Errorf("write volume content: %w", err)
		}
	}
	return nil
}

// sweep removes names that are no longer in the content and folders no longer linked to.
func sweep(dir, current string, files map[string]File) error {
	keep := map[string]bool{dataLink: true, current: true}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		keep[first] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !keep[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove old volume content: %w", err)
			}
		}
	}
	return nil
}
