package vfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
)

// sectorSize is what a disk writes as a whole or not at all. Bytes.
const sectorSize = 512

// Mem is a file system in memory that knows what a power cut would leave. It
// is safe for concurrent use.
type Mem struct {
	mu   sync.Mutex
	dirs map[string]*memDir
	lock map[string]bool
	off  error // why nothing works any more
}

var _ FS = (*Mem)(nil)

// memDir is a folder: its names now, those on disk, and how one became the other.
type memDir struct {
	names  map[string]*memFile
	synced map[string]*memFile
	steps  []func(map[string]*memFile) // since the last sync, in order
}

// memFile is a file: its bytes now, those on disk, and the sectors that differ.
type memFile struct {
	fs     *Mem
	data   []byte
	synced []byte
	dirty  map[int]bool
}

// NewMem returns an empty file system with a root folder "/".
func NewMem() *Mem {
	return &Mem{dirs: map[string]*memDir{"/": newMemDir()}, lock: map[string]bool{}}
}

func newMemDir() *memDir {
	return &memDir{names: map[string]*memFile{}, synced: map[string]*memFile{}}
}

// CrashClone returns what a power cut now would leave on the disk: everything
// synced, and of the rest an arbitrary part. Unsynced names survive as a
// random prefix of the order they were made in, as on a journaling file
// system; each unsynced sector survives with probability keep (0 to 1).
func (m *Mem) CrashClone(rng *rand.Rand, keep float64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.crashClone(rng, keep)
}

// PowerOff is CrashClone, and from then on every operation on m fails: nothing
// can be acknowledged that the clone does not have.
func (m *Mem) PowerOff(rng *rand.Rand, keep float64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = errors.New("the power is off")
	return m.crashClone(rng, keep)
}

func (m *Mem) crashClone(rng *rand.Rand, keep float64) *Mem {
	clone := &Mem{dirs: map[string]*memDir{}, lock: map[string]bool{}}
	for _, name := range slices.Sorted(maps.Keys(m.dirs)) {
		d := m.dirs[name]
		names := maps.Clone(d.synced)
		if keep > 0 {
			for _, step := range d.steps[:rng.IntN(len(d.steps)+1)] {
				step(names)
			}
		}
		dir := newMemDir()
		for _, file := range slices.Sorted(maps.Keys(names)) {
			left := names[file].afterCrash(rng, keep)
			dir.names[file] = &memFile{fs: clone, data: left, synced: slices.Clone(left)}
		}
		dir.synced = maps.Clone(dir.names)
		clone.dirs[name] = dir
	}
	return clone
}

func (f *memFile) afterCrash(rng *rand.Rand, keep float64) []byte {
	left := slices.Clone(f.synced)
	for _, sector := range slices.Sorted(maps.Keys(f.dirty)) {
		if rng.Float64() >= keep {
			continue
		}
		from := sector * sectorSize
		to := min(from+sectorSize, len(f.data))
		if from >= to {
			continue
		}
		if to > len(left) {
			left = append(left, make([]byte, to-len(left))...)
		}
		copy(left[from:to], f.data[from:to])
	}
	return left
}

func (m *Mem) dir(name string) (*memDir, error) {
	if m.off != nil {
		return nil, m.off
	}
	d := m.dirs[path.Clean(name)]
	if d == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return d, nil
}

// change does step to a folder now, and on disk at some time up to its sync.
func (d *memDir) change(step func(map[string]*memFile)) {
	step(d.names)
	d.steps = append(d.steps, step)
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	base := path.Base(name)
	f := &memFile{fs: m}
	d.change(func(names map[string]*memFile) { names[base] = f })
	return f, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	f := d.names[path.Base(name)]
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f, nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if d.names[base] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	d.change(func(names map[string]*memFile) { delete(names, base) })
	return nil
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(path.Dir(oldname))
	if err != nil {
		return err
	}
	from, to := path.Base(oldname), path.Base(newname)
	f := d.names[from]
	if f == nil {
		return &fs.PathError{Op: "rename", Path: oldname, Err: fs.ErrNotExist}
	}
	d.change(func(names map[string]*memFile) {
		delete(names, from)
		names[to] = f
	})
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(dir)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(d.names)), nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for dir = path.Clean(dir); m.dirs[dir] == nil; dir = path.Dir(dir) {
		m.dirs[dir] = newMemDir()
	}
	return nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(dir)
	if err != nil {
		return err
	}
	d.synced, d.steps = maps.Clone(d.names), nil
	return nil
}

// Space implements FS: there is always room.
func (m *Mem) Space(string) (free, total int64, err error) { return 1 << 40, 1 << 40, nil }

// Lock implements FS. The lock is not in CrashClone's copy.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lock[name] {
		return nil, &LockedError{Name: name}
	}
	m.lock[name] = true
	return closeFunc(func() { delete(m.lock, name) }).locked(&m.mu), nil
}

type closeFunc func()

func (f closeFunc) locked(mu *sync.Mutex) closeFunc {
	return func() {
		mu.Lock()
		defer mu.Unlock()
		f()
	}
}

func (f closeFunc) Close() error {
	f()
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.off != nil {
		return 0, f.fs.off
	}
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.off != nil {
		return 0, f.fs.off
	}
	end := int(off) + len(p)
	if end > len(f.data) {
		f.data = append(f.data, make([]byte, end-len(f.data))...)
	}
	copy(f.data[off:], p)
	if f.dirty == nil {
		f.dirty = map[int]bool{}
	}
	for s := int(off) / sectorSize; s*sectorSize < end; s++ {
		f.dirty[s] = true
	}
	return len(p), nil
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.off != nil {
		return f.fs.off
	}
	if n := len(f.data) - len(f.synced); n > 0 {
		f.synced = append(f.synced, make([]byte, n)...)
	}
	for s := range f.dirty {
		copy(f.synced[s*sectorSize:], f.data[s*sectorSize:min((s+1)*sectorSize, len(f.data))])
	}
	f.dirty = nil
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *memFile) Close() error { return nil }
