// Package definitions makes stored CustomResourceDefinitions serve: it keeps
// what was made of each, calls their conversion webhooks, decides their names
// and conditions, and cleans up after them.
package definitions

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/api/customresource"
	"github.com/skiff-project/skiff/apiserver/callout"
	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/store"
)

// Key names the resource of the definitions.
const Key = apiextensions.Group + "/" + apiextensions.Name

// prefix is where definitions are stored.
const prefix = registry.Root + Key + "/"

// Config makes a Table. All fields but Encryption are required.
type Config struct {
	Store store.Store
	Clock clock.WithTicker
	Log   *slog.Logger
	// Encryption of the store; nil: none.
	Encryption *encryption.Set
	// Registry stores the definitions.
	Registry *registry.Registry
	// Build makes what serves a definition's resources; Serving holds it.
	Build func(e *Entry) (any, error)
	// Dial connects to conversion webhooks; Host finds an endpoint ("address:port") of a Service's port.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Host func(namespace, service, port string) (string, error)
	// Body bounds a webhook's answer, in bytes.
	Body int64
}

// Table is the resources the stored definitions make. There is no second
// truth to keep in step: each request looks at the stored definition, and what
// was made of it is used as long as it is that very version. Safe for
// concurrent use.
type Table struct {
	Config
	mu     sync.Mutex
	byName map[string]*Entry // by definition; at most one per stored definition

	clients *callout.Clients // of conversion webhooks
}

// Entry is what was made of one stored version of a definition.
type Entry struct {
	CRD     *apiextensions.CRD // the outline
	Def     *customresource.Definition
	Serving any // what Build made; nil: nothing is served
	// Gone is closed when the definition changes or goes.
	Gone   chan struct{}
	kv     *store.KV
	stored *registry.Registry // objects in the storage version
}

// New returns a table that has read nothing yet.
func New(c Config) *Table {
	clients := callout.New(callout.Config{Dial: c.Dial, Host: c.Host, Answers: reviews(), Body: c.Body})
	return &Table{Config: c, byName: map[string]*Entry{}, clients: clients}
}

// Stored are the stored definitions' newest versions, and the revision they are from.
func (t *Table) Stored(ctx context.Context) (kvs []*store.KV, revision int64, err error) {
	snap, err := t.Store.Snapshot(ctx, 0)
	if err != nil {
		return nil, 0, err
	}
	for kv := range snap.Range(prefix, prefix[:len(prefix)-1]+"0") {
		kvs = append(kvs, kv)
	}
	return kvs, snap.Revision(), nil
}

// Entries are what was made of kvs, all the definitions stored at revision;
// others are forgotten.
func (t *Table) Entries(kvs []*store.KV, revision int64) (out []*Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	there := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		name := strings.TrimPrefix(kv.Key, prefix)
		there[name] = true
		out = append(out, t.make(name, kv))
	}
	for name := range t.byName {
		if !there[name] {
			t.forget(name, revision)
		}
	}
	return out
}

// Entry returns what the definition called name makes, or nil.
func (t *Table) Entry(ctx context.Context, name string) *Entry {
	snap, err := t.Store.Snapshot(ctx, 0)
	if err != nil {
		return nil
	}
	kv := snap.Get(prefix + name)
	t.mu.Lock()
	defer t.mu.Unlock()
	if kv == nil {
		t.forget(name, snap.Revision())
		return nil
	}
	return t.make(name, kv)
}

// forget drops the entry of a definition that is gone, or another, at
// revision. One that somebody has seen later than that stays.
func (t *Table) forget(name string, revision int64) {
	if e := t.byName[name]; e != nil && e.kv.ModRevision <= revision {
		close(e.Gone)
		delete(t.byName, name)
	}
}

// make makes the entry of one stored version, taking over what the change
// leaves valid: all of it when only conditions differ.
func (t *Table) make(name string, kv *store.KV) *Entry {
	have := t.byName[name]
	if have != nil && have.kv.ModRevision >= kv.ModRevision {
		return have
	}
	e := &Entry{kv: kv, Gone: make(chan struct{})}
	var err error
	if opened, oerr := t.Registry.Open(kv); oerr != nil {
		err = oerr
	} else {
		e.kv = opened
		e.CRD, err = apiextensions.Outline(opened.Value)
	}
	if err != nil {
		t.Log.Error("a CustomResourceDefinition cannot be read; its objects are not served", "name", name, "error", err)
		e.CRD = &apiextensions.CRD{}
	}
	if have != nil && have.CRD.UID == e.CRD.UID && have.CRD.Generation == e.CRD.Generation && equality.Semantic.DeepEqual(have.CRD.Status.AcceptedNames, e.CRD.Status.AcceptedNames) {
		e.Gone = have.Gone
		if apiextensions.Terminating(have.CRD) == apiextensions.Terminating(e.CRD) {
			e.Def, e.Serving, e.stored = have.Def, have.Serving, have.stored
		}
	} else {
		t.forget(name, kv.ModRevision)
	}
	if e.Def == nil && apiextensions.Served(e.CRD) {
		if err := t.build(e); err != nil {
			t.Log.Error("custom resources cannot be served", "definition", name, "error", err)
		}
	}
	t.byName[name] = e
	return e
}

func (t *Table) build(e *Entry) error {
	def, err := customresource.New(customresource.Config{Outline: e.CRD, Load: func() (*apiextensions.CRD, error) { return t.load(e.kv) }, Convert: t.hook(e.CRD)})
	if err != nil {
		return err
	}
	e.Def = def
	if e.stored, err = registry.New(registry.Config{Resource: def.Stored, Store: t.Store, Clock: t.Clock, Encryption: t.Encryption}); err == nil {
		e.Serving, err = t.Build(e)
	}
	return err
}

// load decodes a whole definition.
func (t *Table) load(kv *store.KV) (*apiextensions.CRD, error) {
	obj, err := t.Registry.Object(registry.Item{KV: kv, ResourceVersion: kv.ModRevision})
	if err != nil {
		return nil, err
	}
	return definition(obj)
}

func definition(obj api.Object) (*apiextensions.CRD, error) {
	crd, ok := obj.(*apiextensions.CRD)
	if !ok {
		return nil, fmt.Errorf("definitions are stored as %T", obj)
	}
	return crd, nil
}
