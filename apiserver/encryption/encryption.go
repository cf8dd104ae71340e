// Package encryption keeps stored objects unreadable without a key, in
// upstream's formats: a value is "k8s:enc:<provider>:v1:<key>:" and
// ciphertext, bound to the key it is stored under, so that kube-apiserver and
// Skiff read each other's data on one etcd. Which resources are encrypted, by
// what, is upstream's EncryptionConfiguration; what it does not name is stored
// as it always was, without a step more.
package encryption

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

// Prefix starts every encrypted value; no object in the clear starts with it.
const Prefix = "k8s:enc:"

// Encrypted tells whether a stored value is one.
func Encrypted(value []byte) bool { return bytes.HasPrefix(value, []byte(Prefix)) }

// transformer is one way to keep a value. context is what the value is bound to.
type transformer interface {
	seal(plain, context []byte) ([]byte, error)
	// open returns the value in the clear; stale says that the same value would be sealed otherwise now.
	open(sealed, context []byte) (plain []byte, stale bool, err error)
}

// prefixed is a transformer for the values that start with a prefix.
type prefixed struct {
	prefix string
	transformer
}

// chain tries the transformers whose prefix fits and seals with the first.
type chain struct {
	list []prefixed
	none error // when no prefix fits
}

func (c *chain) seal(plain, context []byte) ([]byte, error) {
	t := c.list[0]
	sealed, err := t.transformer.seal(plain, context)
	if err != nil || t.prefix == "" {
		return sealed, err
	}
	return append([]byte(t.prefix), sealed...), nil
}

// open reports the error of the transformers that fit. Two may fit, of which
// one has the key: an error does not end the search.
func (c *chain) open(sealed, context []byte) ([]byte, bool, error) {
	var errs []error
	for i, t := range c.list {
		if !bytes.HasPrefix(sealed, []byte(t.prefix)) {
			continue
		}
		plain, stale, err := t.transformer.open(sealed[len(t.prefix):], context)
		switch {
		case err == nil:
			return plain, stale || i != 0, nil
		case t.prefix != "": // that identity cannot read it says nothing of those after it
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return nil, false, c.none
	}
	return nil, false, utilerrors.Reduce(utilerrors.NewAggregate(errs))
}

// identity stores values as they are.
type identity struct{}

var errEncrypted = errors.New("identity transformer tried to read encrypted data")

func (identity) seal(plain, _ []byte) ([]byte, error) { return plain, nil }

func (identity) open(sealed, _ []byte) ([]byte, bool, error) {
	if Encrypted(sealed) {
		return nil, false, errEncrypted
	}
	return sealed, false, nil
}

// Set is the encryption of all resources. Its configuration can be replaced
// while it is used. The nil Set encrypts nothing.
type Set struct {
	opts    Options
	mu      sync.Mutex // one replacement at a time
	current atomic.Pointer[configured]
}

// Options say how a Set meets its surroundings.
type Options struct {
	// Root is how the server's keys begin, and Stored how they begin in the
	// database, where they differ: values are bound to the latter. Default: no difference.
	Root, Stored string
	Log          *slog.Logger // default: discard
}

// configured is what one configuration makes.
type configured struct {
	byResource map[schema.GroupResource]*chain
	kms        []*kms
	hash       string
	cancel     context.CancelFunc // ends what follows the KMS plug-ins
}

// New makes a Set of the configuration file data. KMS plug-ins are asked
// once, for at most their timeout, and followed until Close; one that does not
// answer is no error, as it may be started later.
func New(data []byte, o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Set{opts: o}
	return s, s.Replace(data)
}

// Replace puts a new configuration in the place of the old one. On an error
// the old one stays.
func (s *Set) Replace(data []byte) error {
	config, err := Parse(data)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	next, err := build(config, s.opts.Log)
	if err != nil {
		cancel()
		return err
	}
	next.hash, next.cancel = HashOf(data), cancel
	for _, k := range next.kms {
		k.prime(ctx)
		go k.follow(ctx)
	}
	if old := s.current.Swap(next); old != nil {
		time.AfterFunc(replaceGrace, old.close)
	}
	return nil
}

// replaceGrace is how long calls under way may still use what was replaced.
const replaceGrace = 10 * time.Second

func (c *configured) close() {
	c.cancel()
	for _, k := range c.kms {
		k.close()
	}
}

// Close ends what follows KMS plug-ins.
func (s *Set) Close() {
	if s != nil {
		s.current.Load().close()
	}
}

// Hash identifies the configuration in use: "sha256:…" of its file.
func (s *Set) Hash() string { return s.current.Load().hash }

// UsesKMS tells whether there is a plug-in whose health matters.
func (s *Set) UsesKMS() bool { return s != nil && len(s.current.Load().kms) > 0 }

// Health is an error while a KMS plug-in does not do its work.
func (s *Set) Health() error {
	var errs []error
	for _, k := range s.current.Load().kms {
		errs = append(errs, k.health())
	}
	return errors.Join(errs...)
}

// Resource is the encryption of one resource. The nil Resource encrypts nothing.
type Resource struct {
	set *Set
	gr  schema.GroupResource
}

// For returns the encryption of a resource, named by the group it is stored
// under; nil for a nil Set.
func (s *Set) For(gr schema.GroupResource) *Resource {
	if s == nil {
		return nil
	}
	return &Resource{s, gr}
}

// Now returns the encryption as it is configured now: callers ask once for
// each operation, so that one page of a list is read under one configuration.
func (r *Resource) Now() Now {
	if r == nil {
		return Now{}
	}
	by := r.set.current.Load().byResource
	for _, p := range patterns(r.gr) {
		if c := by[p]; c != nil {
			return Now{r.set, c}
		}
	}
	return Now{}
}

// Now is the encryption of one resource at one time. The zero value encrypts nothing.
type Now struct {
	set   *Set
	chain *chain // nil: none
}

// On tells whether the resource has a configuration. Without one values in the
// clear are read without asking.
func (n Now) On() bool { return n.chain != nil }

// Seal returns what to store for plain under key; plain itself where it is not
// encrypted.
func (n Now) Seal(key string, plain []byte) ([]byte, error) {
	if n.chain == nil {
		return plain, nil
	}
	return n.chain.seal(plain, n.set.context(key))
}

// Open returns the value in the clear. stale says that it ought to be written
// again, though nothing of it changed: the configuration stores it otherwise now.
// Errors are upstream's.
func (n Now) Open(key string, value []byte) (plain []byte, stale bool, err error) {
	if n.chain == nil {
		return identity{}.open(value, nil)
	}
	return n.chain.open(value, n.set.context(key))
}

// context is the key as the database has it.
func (s *Set) context(key string) []byte {
	if rest, ok := strings.CutPrefix(key, s.opts.Root); ok && s.opts.Stored != "" {
		return []byte(s.opts.Stored + rest)
	}
	return []byte(key)
}
