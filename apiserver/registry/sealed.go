package registry

import (
	"fmt"
	"sync/atomic"
	"weak"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// Decorate is the store's hook. A version in the clear has *wire.Attrs; an
// encrypted one remembers what it is in the clear.
func Decorate(key string, value []byte) any {
	if encryption.Encrypted(value) {
		return new(sealed)
	}
	return wire.Decorate(key, value)
}

// sealed belongs to an encrypted version. The version in the clear lives as
// long as someone uses it, so that the same one is the same pointer to all of
// them, and until the next collection; what the store holds stays encrypted.
type sealed struct {
	clear atomic.Pointer[opened]
}

// opened is good for the configuration it was opened under: with the key its
// object goes.
type opened struct {
	kv weak.Pointer[store.KV]
	by encryption.Now
}

func (s *sealed) remember(kv *store.KV, by encryption.Now) {
	s.clear.Store(&opened{weak.Make(kv), by})
}

func inClear(kv *store.KV, plain []byte) *store.KV {
	out := *kv
	out.Value, out.Attrs = plain, new(wire.Attrs)
	return &out
}

// Open returns a stored version in the clear: kv itself, unless it is
// encrypted. Errors are upstream's.
func (r *Registry) Open(kv *store.KV) (*store.KV, error) {
	kv, err := open(r.encryption.Now(), kv)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return kv, nil
}

func open(enc encryption.Now, kv *store.KV) (*store.KV, error) {
	if !enc.On() && !encryption.Encrypted(kv.Value) { // the value is needed anyway; its Attrs are in another cache line
		return kv, nil
	}
	s, ok := kv.Attrs.(*sealed)
	if ok {
		if o := s.clear.Load(); o != nil && o.by == enc {
			if have := o.kv.Value(); have != nil {
				return have, nil
			}
		}
	}
	plain, _, err := enc.Open(kv.Key, kv.Value)
	if err != nil || !ok {
		return kv, err
	}
	out := inClear(kv, plain)
	s.remember(out, enc)
	return out, nil
}

// openItem is Open for one of a list, whose error names it.
func openItem(enc encryption.Now, kv *store.KV) (*store.KV, error) {
	out, err := open(enc, kv)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("unable to transform key %q: %w", kv.Key, err))
	}
	return out, nil
}

// stale tells whether a version would be stored otherwise now, though nothing
// of it changed: its key is an old one, or it is in the clear.
func (r *Registry) stale(kv *store.KV) bool {
	enc := r.encryption.Now()
	if !enc.On() {
		return false
	}
	_, stale, err := enc.Open(kv.Key, kv.Value)
	return err == nil && stale
}

// stored is the version a write made, in the clear.
func stored(kv *store.KV, plain []byte, enc encryption.Now) *store.KV {
	s, ok := kv.Attrs.(*sealed)
	if !ok {
		return kv
	}
	out := inClear(kv, plain)
	s.remember(out, enc)
	return out
}
