// Package vfs is the store's only way to the disk: the real one, one in
// memory that can lose power (Mem.CrashClone), and one that fails on demand
// (Faulty).
package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// FS is a file system. Names are slash-separated paths. Nothing is durable
// before the file was synced (its content) and its folder was (its name).
type FS interface {
	// Create makes or truncates a file and opens it for reading and writing.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	Remove(name string) error
	// Rename replaces newname, atomically, in the same folder.
	Rename(oldname, newname string) error
	// List returns the names in a folder, in any order.
	List(dir string) ([]string, error)
	// MkdirAll makes a folder, durably, if it is not there; mode 0700.
	MkdirAll(dir string) error
	SyncDir(dir string) error
	// Space returns the free and all bytes of the disk that a folder is on.
	Space(dir string) (free, total int64, err error)
	// Lock takes a file that no one else has locked, writes the process id into
	// it, and holds it until closed. A *LockedError names the holder.
	Lock(name string) (io.Closer, error)
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes what was written durable (fdatasync).
	Sync() error
	Size() (int64, error)
}

// LockedError says that another process holds a lock file.
type LockedError struct {
	Name string
	PID  int // 0 if unknown
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is locked by another process", e.Name)
	}
	return fmt.Sprintf("%s is locked by process %d", e.Name, e.PID)
}

// IsNoSpace reports whether err says that the disk or a disk quota is full.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Disk returns the real file system.
func Disk() FS { return disk{} }

type disk struct{}

type diskFile struct{ *os.File }

func (disk) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	return diskFile{f}, err
}

func (disk) Open(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	return diskFile{f}, err
}

func (disk) Remove(name string) error             { return os.Remove(name) }
func (disk) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

func (disk) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (d disk) MkdirAll(dir string) error {
	dir = path.Clean(dir)
	if _, err := os.Stat(dir); err == nil || dir == "/" || dir == "." {
		return err
	}
	// Folder by folder: each one's name is durable only once its parent is synced.
	if err := d.MkdirAll(path.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return d.SyncDir(path.Dir(dir))
}

func (disk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (disk) Space(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

func (disk) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			held, _ := io.ReadAll(io.LimitReader(f, 32))
			pid, _ := strconv.Atoi(strings.TrimSpace(string(held)))
			return nil, &LockedError{Name: name, PID: pid}
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil && !IsNoSpace(err) {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f diskFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

func (f diskFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}
