package v2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"time"

	"github.com/skiff-project/skiff/store"
)

// change is a request to change one node.
type change struct {
	path           string
	value          string
	hasValue       bool
	dir, recursive bool
	refresh        bool
	ttl            *int64 // seconds; nil: for ever
	prevValue      string // "": any
	prevIndex      int64  // 0: any
}

// edit is a change under way.
type edit struct {
	k     *Keys
	ctx   context.Context
	snap  store.Snapshot
	next  int64 // the index the change gets
	ops   []store.Op
	event Event
	quiet bool   // no event
	times func() // what becomes of the times of nodes once the change is durable
}

// view is a node found in a snapshot.
type view struct {
	record
	path     string
	modified int64
}

func (k *Keys) find(snap store.Snapshot, p string) (*view, error) {
	if p == "/" {
		return &view{record: record{Dir: true}, path: "/"}, nil
	}
	kv := snap.Get(nodeKey(p))
	if kv == nil {
		return nil, nil
	}
	rec, err := decode(kv)
	return &view{record: rec, path: p, modified: kv.ModRevision}, err
}

// show makes a node as clients see it, without children.
func (k *Keys) show(v *view) *Node {
	n := &Node{Key: v.path, Dir: v.Dir, ModifiedIndex: v.modified, CreatedIndex: v.Created}
	if v.path == "/" {
		n.Key = ""
	}
	if !v.Dir {
		value := v.Value
		n.Value = &value
	}
	if v.Expires != 0 {
		at := time.Unix(0, v.Expires).UTC()
		n.Expiration = &at
		// Rounded up, so that a node just set has its whole time.
		n.TTL = int64((at.Sub(k.cfg.Clock.Now()) + time.Second - 1) / time.Second)
	}
	return n
}

// get reads a node; a directory comes with its children, or with all below it.
func (k *Keys) get(ctx context.Context, p string, recursive bool) (*Event, error) {
	snap, err := k.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	v, err := k.find(snap, p)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, fail(codeNotFound, deepest(snap, p), snap.Revision())
	}
	node := k.show(v)
	ev := &Event{Action: "get", Node: node, index: snap.Revision()}
	if !v.Dir {
		return ev, nil
	}
	dirs := map[string]*Node{p: node}
	from, to := children(p)
	for kv := range snap.Range(from, to) {
		child := nodePath(kv)
		parent := dirs[path.Dir(child)]
		if parent == nil || hidden(p, child) {
			continue
		}
		rec, err := decode(kv)
		if err != nil {
			return nil, err
		}
		n := k.show(&view{record: rec, path: child, modified: kv.ModRevision})
		parent.Nodes = append(parent.Nodes, n)
		if recursive && rec.Dir {
			dirs[child] = n
		}
	}
	return ev, nil
}

// deepest is the first element of a path that is not there, which is what
// etcd names as the cause.
func deepest(snap store.Snapshot, p string) string {
	parts := strings.Split(strings.Trim(p, "/"), "/")
	at := ""
	for _, part := range parts {
		at += "/" + part
		if snap.Get(nodeKey(at)) == nil {
			return at
		}
	}
	return p
}

// apply runs a change in turn and returns its event.
func (k *Keys) apply(ctx context.Context, do func(e *edit) error) (*Event, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	snap, err := k.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	e := &edit{k: k, ctx: ctx, snap: snap, next: snap.Revision() + 1}
	if err := do(e); err != nil {
		return nil, err
	}
	if !e.quiet {
		body, err := json.Marshal(e.event)
		if err != nil {
			return nil, err
		}
		e.ops = append(e.ops, store.Op{Kind: store.OpPut, Key: eventKey, Value: body})
	}
	if _, err := k.cfg.Store.Txn(ctx, store.Txn{Then: e.ops}); err != nil {
		return nil, err
	}
	e.event.index = e.next
	e.times()
	k.notify()
	k.trim(ctx)
	return &e.event, nil
}

// trim bounds the history.
func (k *Keys) trim(ctx context.Context) {
	st := k.cfg.Store.Status()
	if st.Revision-st.CompactRevision < 2*historyLength {
		return
	}
	if err := k.cfg.Store.Compact(ctx, st.Revision-historyLength); err != nil && !errors.Is(err, store.ErrCompacted) {
		k.cfg.Log.Warn("v2 keys: the event history was not compacted", "err", err)
	}
}

func (e *edit) fail(code int, cause string) error { return fail(code, cause, e.next-1) }

// parents makes the directories above p that are missing.
func (e *edit) parents(p string) error {
	if strings.Count(p, "/") > maxDepth {
		return e.fail(codeInvalidField, fmt.Sprintf("%s is deeper than %d directories", p, maxDepth))
	}
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		v, err := e.k.find(e.snap, dir)
		switch {
		case err != nil:
			return err
		case v != nil && !v.Dir:
			return e.fail(codeNotDir, dir)
		case v != nil:
			return nil
		}
		if err := e.store(dir, record{Dir: true}); err != nil {
			return err
		}
	}
	return nil
}

func (e *edit) store(p string, rec record) error {
	body, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	e.ops = append(e.ops, store.Op{Kind: store.OpPut, Key: nodeKey(p), Value: body})
	return nil
}

// install stores the new version of the node and writes the event.
func (e *edit) install(action string, c *change, rec record, old *view) error {
	if c.ttl != nil {
		at := e.k.cfg.Clock.Now().Add(time.Duration(*c.ttl) * time.Second)
		rec.Expires = at.UnixNano()
		e.times = func() { e.k.expires[c.path] = at }
	} else {
		e.times = func() { delete(e.k.expires, c.path) }
	}
	if err := e.store(c.path, rec); err != nil {
		return err
	}
	created := rec.Created
	if created == 0 {
		created = e.next
	}
	now := rec
	now.Created = created
	e.event = Event{Action: action, Node: e.k.show(&view{record: now, path: c.path, modified: e.next})}
	if old != nil {
		e.event.PrevNode = e.k.show(old)
	}
	return nil
}

// create makes a node: "set" replaces a file, "create" nothing.
func (e *edit) create(action string, c *change) error {
	if c.path == "/" {
		return e.fail(codeRootReadOnly, "/")
	}
	old, err := e.k.find(e.snap, c.path)
	if err != nil {
		return err
	}
	if old != nil {
		if action == "create" {
			return e.fail(codeExists, c.path)
		}
		if old.Dir {
			return e.fail(codeNotFile, c.path)
		}
	} else if err := e.parents(c.path); err != nil {
		return err
	}
	rec := record{Dir: c.dir}
	if !c.dir {
		rec.Value = c.value
	}
	if c.refresh && old != nil {
		rec.Value, e.quiet = old.Value, true
	}
	return e.install(action, c, rec, old)
}

// createUnique makes a node with the next name of a directory.
func (e *edit) createUnique(c *change) error {
	own := *c
	own.path = path.Join(c.path, fmt.Sprintf("%020d", e.next))
	if dir, err := e.k.find(e.snap, c.path); err != nil {
		return err
	} else if dir != nil && !dir.Dir {
		return e.fail(codeNotDir, c.path)
	}
	return e.create("create", &own)
}

// existing finds the node a change needs.
func (e *edit) existing(c *change) (*view, error) {
	if c.path == "/" {
		return nil, e.fail(codeRootReadOnly, "/")
	}
	v, err := e.k.find(e.snap, c.path)
	if err == nil && v == nil {
		err = e.fail(codeNotFound, deepest(e.snap, c.path))
	}
	return v, err
}

// update changes the value or the time of a node.
func (e *edit) update(c *change) error {
	old, err := e.existing(c)
	if err != nil {
		return err
	}
	if old.Dir && c.value != "" {
		return e.fail(codeNotFile, c.path)
	}
	rec := record{Value: c.value, Dir: old.Dir, Created: old.Created}
	if c.refresh {
		rec.Value, e.quiet = old.Value, true
	}
	return e.install("update", c, rec, old)
}

// compare checks the conditions of a change on a file.
func (e *edit) compare(c *change, old *view) error {
	if old.Dir {
		return e.fail(codeNotFile, c.path)
	}
	value := fmt.Sprintf("[%v != %v]", c.prevValue, old.Value)
	index := fmt.Sprintf("[%v != %v]", c.prevIndex, old.modified)
	badValue := c.prevValue != "" && c.prevValue != old.Value
	badIndex := c.prevIndex != 0 && c.prevIndex != old.modified
	switch {
	case badValue && badIndex:
		return e.fail(codeTestFailed, value+" "+index)
	case badValue:
		return e.fail(codeTestFailed, value)
	case badIndex:
		return e.fail(codeTestFailed, index)
	}
	return nil
}

func (e *edit) compareAndSwap(c *change) error {
	old, err := e.existing(c)
	if err != nil {
		return err
	}
	if err := e.compare(c, old); err != nil {
		return err
	}
	rec := record{Value: c.value, Created: old.Created}
	if c.refresh {
		rec.Value, e.quiet = old.Value, true
	}
	return e.install("compareAndSwap", c, rec, old)
}

func (e *edit) compareAndDelete(c *change) error {
	old, err := e.existing(c)
	if err != nil {
		return err
	}
	if err := e.compare(c, old); err != nil {
		return err
	}
	return e.remove("compareAndDelete", old)
}

func (e *edit) delete(c *change) error {
	old, err := e.existing(c)
	if err != nil {
		return err
	}
	if old.Dir && !c.recursive {
		if !c.dir {
			return e.fail(codeNotFile, c.path)
		}
		if from, to := children(c.path); e.snap.Count(from, to) > 0 {
			return e.fail(codeDirNotEmpty, c.path)
		}
	}
	return e.remove("delete", old)
}

// remove deletes a node and all below it.
func (e *edit) remove(action string, old *view) error {
	e.ops = append(e.ops, store.Op{Kind: store.OpDelete, Key: nodeKey(old.path)})
	e.times = func() { delete(e.k.expires, old.path) }
	if old.Dir {
		from, to := children(old.path)
		e.ops = append(e.ops, store.Op{Kind: store.OpDelete, Key: from, End: to})
		e.times = func() {
			maps.DeleteFunc(e.k.expires, func(p string, _ time.Time) bool {
				return p == old.path || strings.HasPrefix(p, old.path+"/")
			})
		}
	}
	e.event = Event{Action: action,
		Node:     &Node{Key: old.path, Dir: old.Dir, ModifiedIndex: e.next, CreatedIndex: old.Created},
		PrevNode: e.k.show(old),
	}
	return nil
}

func (k *Keys) notify() {
	select {
	case k.change <- struct{}{}:
	default:
	}
}

// Run deletes nodes as their time ends, until ctx does. It sleeps while none has one.
func (k *Keys) Run(ctx context.Context) {
	for ctx.Err() == nil {
		p, at := k.earliest()
		wait := at.Sub(k.cfg.Clock.Now())
		if p != "" && wait <= 0 {
			if err := k.expire(ctx, p, at); err != nil {
				k.cfg.Log.Warn("v2 keys: a node whose time has ended was not deleted", "key", p, "err", err)
				wait = time.Second
			} else {
				continue
			}
		}
		k.sleep(ctx, p != "", wait)
	}
}

// sleep waits for d if timed, for a change, or for the end.
func (k *Keys) sleep(ctx context.Context, timed bool, d time.Duration) {
	var ring <-chan time.Time
	if timed {
		timer := k.cfg.Clock.NewTimer(d)
		defer timer.Stop()
		ring = timer.C()
	}
	select {
	case <-ring:
	case <-k.change:
	case <-ctx.Done():
	}
}

// earliest is the node whose time ends first, "" for none.
func (k *Keys) earliest() (first string, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p, t := range k.expires {
		if first == "" || t.Before(at) {
			first, at = p, t
		}
	}
	return first, at
}

func (k *Keys) expire(ctx context.Context, p string, at time.Time) error {
	_, err := k.apply(ctx, func(e *edit) error {
		v, err := k.find(e.snap, p)
		if err != nil {
			return err
		}
		if v == nil || !k.expires[p].Equal(at) {
			return errRenewed
		}
		return e.remove("expire", v)
	})
	if errors.Is(err, errRenewed) {
		return nil
	}
	return err
}

// errRenewed ends an expiry that came too late.
var errRenewed = errors.New("the node was changed meanwhile")
