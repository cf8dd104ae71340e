package vfs

import "io"

// Op names an operation for a Faulty file system.
type Op string

// The operations that can be made to fail.
const (
	OpCreate  Op = "create"
	OpOpen    Op = "open"
	OpRemove  Op = "remove"
	OpRename  Op = "rename"
	OpSyncDir Op = "syncdir"
	OpRead    Op = "read"
	OpWrite   Op = "write"
	OpSync    Op = "sync"
)

// Faulty returns a file system that asks check before every operation on a
// name; an error of check is the outcome, and the operation is not done.
func Faulty(fs FS, check func(op Op, name string) error) FS {
	return &faulty{fs, check}
}

type faulty struct {
	FS
	check func(Op, string) error
}

func (f *faulty) file(op Op, name string, open func(string) (File, error)) (File, error) {
	if err := f.check(op, name); err != nil {
		return nil, err
	}
	file, err := open(name)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file, name, f.check}, nil
}

func (f *faulty) Create(name string) (File, error) { return f.file(OpCreate, name, f.FS.Create) }
func (f *faulty) Open(name string) (File, error)   { return f.file(OpOpen, name, f.FS.Open) }

func (f *faulty) Remove(name string) error {
	if err := f.check(OpRemove, name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

func (f *faulty) Rename(oldname, newname string) error {
	if err := f.check(OpRename, newname); err != nil {
		return err
	}
	return f.FS.Rename(oldname, newname)
}

func (f *faulty) SyncDir(dir string) error {
	if err := f.check(OpSyncDir, dir); err != nil {
		return err
	}
	return f.FS.SyncDir(dir)
}

func (f *faulty) Lock(name string) (io.Closer, error) { return f.FS.Lock(name) }

type faultyFile struct {
	File
	name  string
	check func(Op, string) error
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.check(OpRead, f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.check(OpWrite, f.name); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultyFile) Sync() error {
	if err := f.check(OpSync, f.name); err != nil {
		return err
	}
	return f.File.Sync()
}
