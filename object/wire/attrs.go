package wire

import (
	"encoding/json"
	"sync"
	"sync/atomic"
	"weak"
)

// Attrs is what the server keeps beside each stored version: what selectors
// look at and encodings shared by all who ask for the version. All of it is
// made on first need, so an object nobody selects on costs a few words.
// Encodings are held weakly: they live as long as someone is sending them,
// and until the next collection.
type Attrs struct {
	labels atomic.Pointer[[]Pair]
	fields atomic.Pointer[fieldSet]
	shared atomic.Pointer[weak.Pointer[Shared]]
	answer atomic.Pointer[byte] // of the Question asked last
}

// Question is something that is true or false of each version.
type Question struct{ yes, no byte }

// Answer returns the answer to q, calling find the first time. One answer is
// kept: of the question asked last.
func (a *Attrs) Answer(q *Question, find func() bool) bool {
	switch a.answer.Load() {
	case &q.yes:
		return true
	case &q.no:
		return false
	}
	is := find()
	if is {
		a.answer.Store(&q.yes)
	} else {
		a.answer.Store(&q.no)
	}
	return is
}

// Decorate is the store's hook: it makes empty Attrs.
func Decorate(string, []byte) any { return new(Attrs) }

// Labels returns the decoded labels of the enveloped object value, the value these attrs belong to.
func (a *Attrs) Labels(value []byte) Pairs {
	if p := a.labels.Load(); p != nil {
		return *p
	}
	var pairs []Pair
	var err error
	if IsProtobuf(value) {
		pairs, err = Labels(Raw(value))
	} else {
		pairs, err = jsonLabels(value)
	}
	if err != nil {
		pairs = nil // unreadable objects match no label selector
	}
	a.labels.Store(&pairs)
	return pairs
}

// jsonLabels returns the labels of an object stored as JSON.
func jsonLabels(value []byte) (pairs []Pair, err error) {
	var obj struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	err = json.Unmarshal(value, &obj)
	for k, v := range obj.Metadata.Labels {
		pairs = append(pairs, Pair{k, v})
	}
	return pairs, err
}

// fieldSet is the selectable fields as one resource names them; two resources
// may share one storage.
type fieldSet struct {
	owner any
	pairs []Pair
}

// Fields returns the selectable fields as owner (a pointer) names them,
// calling compute the first time.
func (a *Attrs) Fields(owner any, compute func() []Pair) Pairs {
	p := a.fields.Load()
	if p != nil && p.owner == owner {
		return p.pairs
	}
	pairs := compute()
	a.fields.CompareAndSwap(p, &fieldSet{owner, pairs})
	return pairs
}

// Shared returns the encodings shared by all users of this version.
func (a *Attrs) Shared() *Shared {
	for {
		old := a.shared.Load()
		if old != nil {
			if s := old.Value(); s != nil {
				return s
			}
		}
		s := new(Shared)
		w := weak.Make(s)
		if a.shared.CompareAndSwap(old, &w) {
			return s
		}
	}
}

// EncodingKey names one encoding of one version.
type EncodingKey struct {
	Form            string // media type and shape, chosen by the caller
	ResourceVersion int64
	Event           string // watch event type; empty for a bare object
}

// Shared holds encodings of one version.
type Shared struct {
	mu      sync.Mutex
	entries []sharedEntry
}

type sharedEntry struct {
	key  EncodingKey
	data []byte
}

// maxShared bounds the encodings kept of one version.
const maxShared = 8

// Encoding returns the encoding named key, calling make the first time; later
// callers wait for it. The result is shared and must not be changed.
func (s *Shared) Encoding(key EncodingKey, build func() ([]byte, error)) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.entries {
		if s.entries[i].key == key {
			return s.entries[i].data, nil
		}
	}
	data, err := build()
	if err == nil && len(s.entries) < maxShared {
		s.entries = append(s.entries, sharedEntry{key, data})
	}
	return data, err
}

// Pairs is a small set of strings by key; it satisfies labels.Labels and fields.Fields.
type Pairs []Pair

// Has reports whether key is present.
func (p Pairs) Has(key string) bool { _, ok := p.Lookup(key); return ok }

// Get returns the value of key, or "".
func (p Pairs) Get(key string) string { v, _ := p.Lookup(key); return v }

// Lookup returns the value of key and whether it is present.
func (p Pairs) Lookup(key string) (string, bool) {
	for i := range p {
		if p[i].Key == key {
			return p[i].Value, true
		}
	}
	return "", false
}
