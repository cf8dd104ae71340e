package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// Selection says which objects of the resource are meant.
type Selection struct {
	Namespace string          // empty: all
	Labels    labels.Selector // nil: all
	Fields    fields.Selector // nil: all
}

// CheckFields refuses a field selector on a field this resource cannot be selected by.
func (r *Registry) CheckFields(sel fields.Selector) error {
	if sel == nil {
		return nil
	}
	for _, q := range sel.Requirements() {
		if r.selectable[q.Field] {
			continue
		}
		if r.Resource.Strategy.Selectable == nil {
			return apierrors.NewBadRequest(fmt.Sprintf("%q is not a known field selector: only %q, %q", q.Field, "metadata.name", "metadata.namespace"))
		}
		if f := r.Resource.Strategy.NoField; f != "" {
			return apierrors.NewBadRequest(fmt.Sprintf(f, q.Field))
		}
		return apierrors.NewBadRequest("field label not supported: " + q.Field)
	}
	return nil
}

// matcher is a compiled Selection, for one goroutine.
type matcher struct {
	labels labels.Selector
	fields fields.Selector
	all    bool
	have   objectLabels // of the object that is matched: here, so that no object needs memory
	object objectFields
}

func (r *Registry) matcher(s Selection) *matcher {
	m := &matcher{object: objectFields{r: r}}
	if s.Labels != nil && !s.Labels.Empty() {
		m.labels = s.Labels
	}
	if s.Fields != nil && !s.Fields.Empty() {
		m.fields = s.Fields
	}
	m.all = m.labels == nil && m.fields == nil
	return m
}

func (m *matcher) match(kv *store.KV) bool {
	if m.all {
		return true
	}
	attrs, ok := kv.Attrs.(*wire.Attrs)
	if !ok {
		attrs = new(wire.Attrs)
	}
	if m.labels != nil {
		m.have.Pairs = attrs.Labels(kv.Value)
		is := m.labels.Matches(&m.have)
		if m.have.Pairs = nil; !is {
			return false
		}
	}
	if m.fields == nil {
		return true
	}
	m.object.kv, m.object.attrs = kv, attrs
	is := m.fields.Matches(&m.object)
	m.object.kv, m.object.attrs = nil, nil // a watch does not hold on to the last object it saw
	return is
}

// objectLabels are labels.Labels.
type objectLabels struct{ wire.Pairs }

// objectFields looks fields up for a selector; the name and namespace come
// from the key, so that selecting by them decodes nothing.
type objectFields struct {
	r     *Registry
	kv    *store.KV
	attrs *wire.Attrs
}

// Has implements fields.Fields.
func (f *objectFields) Has(name string) bool { return f.r.selectable[name] }

// Get implements fields.Fields.
func (f *objectFields) Get(name string) string {
	switch name {
	case "metadata.name":
		_, n := f.r.Split(f.kv.Key)
		return n
	case "metadata.namespace":
		ns, _ := f.r.Split(f.kv.Key)
		return ns
	}
	value, ok := f.attrs.Fields(f.r, f.compute).Lookup(name)
	if !ok && len(f.r.paths) > 0 && !slices.Contains(f.r.pathNames, name) {
		return wire.Pairs(f.decoded()).Get(name) // no controller asks for these
	}
	return value
}

// compute finds what is kept beside the object.
func (f *objectFields) compute() (pairs []wire.Pair) {
	if len(f.r.paths) == 0 || !wire.IsProtobuf(f.kv.Value) {
		return f.decoded()
	}
	var values [64]string
	count := 0
	wire.Texts(wire.Raw(f.kv.Value), f.r.paths, func(i int, text string) {
		if values[i] == "" && text != "" {
			count++
		}
		values[i] = text
	})
	pairs = make([]wire.Pair, 0, count)
	for i, text := range values[:len(f.r.paths)] {
		if text != "" {
			pairs = append(pairs, wire.Pair{Key: f.r.pathNames[i], Value: text})
		}
	}
	return pairs
}

func (f *objectFields) decoded() []wire.Pair {
	obj, err := f.r.decode(f.kv)
	if err != nil || f.r.Resource.Strategy.Selectable == nil {
		return nil
	}
	var pairs []wire.Pair
	for k, v := range f.r.Resource.Strategy.Selectable(obj) {
		if v != "" {
			pairs = append(pairs, wire.Pair{Key: k, Value: v})
		}
	}
	return pairs
}

// ranges returns the key range of a selection; a selector for one name makes
// it one key.
func (r *Registry) ranges(s Selection) (key, end string, err error) {
	prefix := r.prefix
	if s.Namespace != "" && r.Resource.Namespaced {
		if strings.Contains(s.Namespace, "/") {
			return "", "", apierrors.NewBadRequest(fmt.Sprintf("invalid namespace %q", s.Namespace))
		}
		prefix += s.Namespace + "/"
	}
	if s.Fields != nil && (s.Namespace != "" || !r.Resource.Namespaced) {
		if name, ok := s.Fields.RequiresExactMatch("metadata.name"); ok && name != "" && !strings.Contains(name, "/") {
			return prefix + name, prefix + name + "\x00", nil
		}
	}
	return prefix, prefix[:len(prefix)-1] + "0", nil // '0' follows '/'
}

// ListOptions are the options of a list; zero values mean unset.
type ListOptions struct {
	Selection
	ResourceVersion string
	Match           metav1.ResourceVersionMatch
	Limit           int64
	Continue        string
}

// Page is one page of a list.
type Page struct {
	Items     []*store.KV
	Revision  int64
	Continue  string
	Remaining *int64
}

// List returns a consistent page of objects in key order.
func (r *Registry) List(ctx context.Context, o ListOptions) (Page, error) {
	key, end, err := r.ranges(o.Selection)
	if err != nil {
		return Page{}, err
	}
	snap, start, err := r.listSnapshot(ctx, o, key)
	if err != nil {
		return Page{}, err
	}
	m := r.matcher(o.Selection)
	page := Page{Revision: snap.Revision()}
	if o.Limit <= 0 && m.all {
		page.Items = make([]*store.KV, 0, snap.Count(start, end))
	}
	enc, seen := r.encryption.Now(), 0
	for kv := range r.among(snap, o.Selection, start, end) {
		seen++
		if kv, err = openItem(enc, kv); err != nil {
			return Page{}, err
		}
		if !m.match(kv) {
			continue
		}
		if o.Limit > 0 && int64(len(page.Items)) == o.Limit {
			last := page.Items[len(page.Items)-1].Key + "\x00"
			page.Continue = encodeContinue(page.Revision, "/"+strings.TrimPrefix(last, key))
			if m.all {
				n := int64(snap.Count(last, end))
				page.Remaining = &n
			}
			break
		}
		page.Items = append(page.Items, kv)
	}
	r.Counted.Listed(seen, len(page.Items))
	return page, nil
}

// Names are those of the objects in a snapshot; of namespaced ones with the namespace before.
func (r *Registry) Names(snap store.Snapshot) iter.Seq[string] {
	return func(yield func(string) bool) {
		for kv := range snap.Range(r.prefix, r.prefix[:len(r.prefix)-1]+"0") {
			if !yield(kv.Key[len(r.prefix):]) {
				return
			}
		}
	}
}

// Stats is how many objects there are, and how many bytes one has on average:
// an estimate from a few of them.
func (r *Registry) Stats() (n int, average int64) {
	snap, err := r.Store.Snapshot(context.Background(), store.Local)
	if err != nil {
		return 0, 0
	}
	end := r.prefix[:len(r.prefix)-1] + "0"
	const few = 8
	seen, bytes := int64(0), int64(0)
	for kv := range snap.Range(r.prefix, end) {
		bytes += int64(len(kv.Value))
		if seen++; seen == few {
			return snap.Count(r.prefix, end), bytes / few
		}
	}
	return int(seen), bytes / max(seen, 1)
}

// listSnapshot picks the snapshot and the first key of a list.
func (r *Registry) listSnapshot(ctx context.Context, o ListOptions, key string) (store.Snapshot, string, error) {
	if o.Continue != "" && strings.HasSuffix(key, "/") { // one object has no next page
		return r.continueSnapshot(ctx, o, key)
	}
	rv, err := ParseResourceVersion(o.ResourceVersion)
	if err != nil {
		return nil, "", apierrors.NewBadRequest("invalid resource version: " + err.Error())
	}
	exact := o.Match == metav1.ResourceVersionMatchExact || o.Match == "" && o.Limit > 0 && rv > 0
	if rv == 0 || !exact {
		snap, err := r.notOlder(ctx, rv, o.ResourceVersion)
		return snap, key, err
	}
	snap, err := r.Store.Snapshot(ctx, rv)
	if errors.Is(err, store.ErrFutureRevision) {
		newest, err := r.snapshot(ctx, rv)
		return newest, key, err
	}
	return snap, key, storeError(err)
}

func (r *Registry) continueSnapshot(ctx context.Context, o ListOptions, key string) (store.Snapshot, string, error) {
	if o.ResourceVersion != "" && o.ResourceVersion != "0" {
		return nil, "", apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	rv, start, err := decodeContinue(o.Continue)
	if err != nil {
		return nil, "", apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
	}
	if rv < 0 {
		snap, err := r.snapshot(ctx, 0)
		return snap, key + start, err
	}
	snap, err := r.Store.Snapshot(ctx, rv)
	switch {
	case errors.Is(err, store.ErrCompacted):
		return nil, "", expiredContinue(encodeContinue(-1, start))
	case errors.Is(err, store.ErrFutureRevision):
		return nil, "", apierrors.NewBadRequest("invalid continue token: resource version is in the future")
	}
	return snap, key + start, storeError(err)
}

func expiredContinue(fresh string) error {
	err := apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and " +
		"now may show up in the list.")
	err.ErrStatus.Continue = fresh
	return err
}

// continueToken is upstream's continue token, so that tokens survive a move between servers.
// StartKey is below the prefix listed (the resource, or a namespace of it): with a slash before it
// in the tokens of upstream's cache, without in those of its etcd client, which has the answer where
// a token has expired.
type continueToken struct {
	APIVersion      string `json:"v"`
	ResourceVersion int64  `json:"rv"`
	StartKey        string `json:"start"`
}

const continueVersion = "meta.k8s.io/v1"

func encodeContinue(rv int64, start string) string {
	data, _ := json.Marshal(continueToken{continueVersion, rv, start})
	return base64.RawURLEncoding.EncodeToString(data)
}

func decodeContinue(token string) (rv int64, start string, err error) {
	data, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(token, "="))
	if err != nil {
		return 0, "", errors.New("continue key is not valid: illegal base64 data")
	}
	var t continueToken
	if err := json.Unmarshal(data, &t); err != nil {
		return 0, "", fmt.Errorf("continue key is not valid: %w", err)
	}
	if t.APIVersion != continueVersion {
		return 0, "", fmt.Errorf("continue key is not valid: server does not recognize this encoded version %q", t.APIVersion)
	}
	if t.ResourceVersion == 0 {
		return 0, "", errors.New("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
	}
	if t.StartKey == "" {
		return 0, "", errors.New("continue key is not valid: encoded start key empty (version meta.k8s.io/v1)")
	}
	start = strings.TrimPrefix(t.StartKey, "/")
	if path.Clean("/"+start) != "/"+start { // a way out of the prefix
		return 0, "", fmt.Errorf("continue key is not valid: %s", t.StartKey)
	}
	return t.ResourceVersion, start, nil
}
