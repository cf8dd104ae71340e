package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// database reads a bbolt file and believes nothing in it: bbolt itself panics
// or faults on a damaged one. Each page is read at most once, so a file costs
// no more time and memory than its size.
type database struct {
	f        *os.File
	pageSize int64
	pages    uint64 // of the file, as the newest meta page has it
	root     uint64
	read     map[uint64]bool
	buckets  []bucket // in key order
}

// bucket is a bucket of the root: a tree of pages, or one page kept inline.
type bucket struct {
	name   string
	root   uint64
	inline []byte
}

const (
	pageHead   = 16 // id 8, flags 2, count 2, pages that follow 4
	elementLen = 16
	metaLen    = 64
	maxDepth   = 64
	pageBranch = 1
	pageLeaf   = 2
	isBucket   = 1
)

var le = binary.LittleEndian

// openDatabase opens a file and reads its list of buckets.
func openDatabase(name string) (*database, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	d := &database{f: f, read: map[uint64]bool{}}
	if err := d.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("snapshot file integrity check failed: %s: %w", name, err)
	}
	return d, nil
}

func (d *database) load() error {
	info, err := d.f.Stat()
	if err != nil {
		return err
	}
	newest := uint64(0)
	found := d.meta(0, info.Size(), &newest)
	for size := int64(1 << 9); size <= 1<<16; size <<= 1 { // the second one tells its page size
		if d.pageSize == 0 || d.pageSize == size {
			found = d.meta(size, info.Size(), &newest) || found
		}
	}
	if !found {
		return errors.New("it is no database, or both its meta pages are damaged")
	}
	return d.walk(d.root, nil, 0, func(k, v []byte, flags uint32) error {
		if flags&isBucket == 0 || len(v) < pageHead {
			return errors.New("the root has something other than buckets")
		}
		b := bucket{name: string(k), root: le.Uint64(v)}
		if b.root == 0 {
			b.inline = bytes.Clone(v[pageHead:])
		}
		d.buckets = append(d.buckets, b)
		return nil
	})
}

// meta takes over the meta page at off if it checks and is newer.
func (d *database) meta(off, fileSize int64, newest *uint64) bool {
	b := make([]byte, pageHead+metaLen)
	if _, err := d.f.ReadAt(b, off); err != nil {
		return false
	}
	m := b[pageHead:]
	sum := fnv.New64a()
	sum.Write(m[:metaLen-8])
	size, pages, txn := int64(le.Uint32(m[8:])), le.Uint64(m[40:]), le.Uint64(m[48:])
	if le.Uint32(m) != 0xED0CDAED || le.Uint32(m[4:]) != 2 || le.Uint64(m[56:]) != sum.Sum64() ||
		off != 0 && off != size || size < 1<<9 || size > 1<<16 || pages > uint64(fileSize/size) {
		return false
	}
	if d.pageSize == 0 || txn > *newest {
		*newest, d.pageSize, d.pages, d.root = txn, size, pages, le.Uint64(m[16:])
	}
	return true
}

// page reads a page with those that follow it as its part.
func (d *database) page(id uint64) ([]byte, error) {
	if id < 2 || id >= d.pages || d.read[id] {
		return nil, fmt.Errorf("page %d is out of range or in two places", id)
	}
	d.read[id] = true
	head := make([]byte, pageHead)
	if _, err := d.f.ReadAt(head, int64(id)*d.pageSize); err != nil {
		return nil, err
	}
	more := uint64(le.Uint32(head[12:]))
	if le.Uint64(head) != id || more >= d.pages-id {
		return nil, fmt.Errorf("the header of page %d does not check", id)
	}
	for i := range more {
		if d.read[id+1+i] {
			return nil, fmt.Errorf("page %d is in two places", id+1+i)
		}
		d.read[id+1+i] = true
	}
	p := make([]byte, int64(more+1)*d.pageSize)
	_, err := d.f.ReadAt(p, int64(id)*d.pageSize)
	return p, err
}

// each calls fn with every entry of a bucket, in key order. What it is given
// stays valid.
func (d *database) each(b *bucket, fn func(k, v []byte) error) error {
	var last []byte
	err := d.walk(b.root, b.inline, 0, func(k, v []byte, flags uint32) error {
		if flags&isBucket != 0 || last != nil && bytes.Compare(last, k) >= 0 {
			return fmt.Errorf("key %x is a bucket or out of order", k)
		}
		last = k
		return fn(k, v)
	})
	if err != nil {
		return fmt.Errorf("bucket %s: %w", b.name, err)
	}
	return nil
}

// walk visits the leaves below a page, given by its number or as it is.
func (d *database) walk(id uint64, p []byte, depth int, fn func(k, v []byte, flags uint32) error) (err error) {
	if depth > maxDepth {
		return errors.New("the tree is too deep")
	}
	if p == nil {
		if p, err = d.page(id); err != nil {
			return err
		}
	}
	if len(p) < pageHead {
		return errors.New("a page is too short")
	}
	kind, count := le.Uint16(p[8:]), int(le.Uint16(p[10:]))
	if kind != pageBranch && kind != pageLeaf || len(p) < pageHead+count*elementLen {
		return fmt.Errorf("page %d is neither branch nor leaf, or too short", id)
	}
	for i := range count {
		e := p[pageHead+i*elementLen:]
		if kind == pageBranch {
			if err := d.walk(le.Uint64(e[8:]), nil, depth+1, fn); err != nil {
				return err
			}
			continue
		}
		from, key, value := uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		if from < elementLen || from+key+value > uint64(len(e)) {
			return fmt.Errorf("entry %d of page %d reaches out of it", i, id)
		}
		if err := fn(e[from:from+key], e[from+key:from+key+value], le.Uint32(e)); err != nil {
			return err
		}
	}
	return nil
}

// bucket returns the bucket of a name, or nil.
func (d *database) bucket(name string) *bucket {
	for i := range d.buckets {
		if d.buckets[i].name == name {
			return &d.buckets[i]
		}
	}
	return nil
}
