// Package store defines what the API server needs of a database and nothing
// more: consistent snapshots, atomic transactions that are durable on return,
// an ordered gap-free watch, leases and compaction.
//
// Vocabulary is etcd's. A revision is a counter of committed transactions: a
// fresh store is at revision 1 with no keys; each transaction that changes
// anything takes the next one. A key range is the half-open interval
// [Key, End); End "" means the single key Key, and End "\x00" means every key
// from Key on. Compaction at revision C forgets versions superseded at or
// before C; reads and watches below C then fail with ErrCompacted.
//
// store/storetest is the executable specification. The embedded store
// (store/embedded) and a real etcd cluster (store/etcdstore) both pass it.
package store

import (
	"context"
	"errors"
	"iter"
)

// Errors every implementation returns, possibly wrapped.
var (
	// ErrCompacted: the revision asked for has been compacted away. Relist.
	ErrCompacted = errors.New("required revision has been compacted")
	// ErrFutureRevision: the revision asked for has not been committed yet.
	ErrFutureRevision = errors.New("required revision is a future revision")
	// ErrNoSpace: the quota or the disk is full; reads, deletes and compaction still work.
	ErrNoSpace = errors.New("database space exceeded")
	// ErrLeaseNotFound: no such lease, or it has expired.
	ErrLeaseNotFound = errors.New("requested lease not found")
	// ErrLeaseTTL: a TTL above MaxLeaseTTL, or in a log one below 1.
	ErrLeaseTTL = errors.New("too large lease TTL")
	// ErrLeaseExists: a lease with the asked-for ID exists already.
	ErrLeaseExists = errors.New("lease already exists")
	// ErrClosed: the store or the watcher was closed.
	ErrClosed = errors.New("store is closed")
	// ErrTooManyOps: a transaction has more operations than the store's limit.
	ErrTooManyOps = errors.New("too many operations in txn request")
	// ErrDuplicateKey: a transaction puts one key twice.
	ErrDuplicateKey = errors.New("duplicate key given in txn request")
	// ErrTooLarge: a request is larger than the store's limit.
	ErrTooLarge = errors.New("request is too large")
	// ErrEmptyKey: an operation names no key.
	ErrEmptyKey = errors.New("key is not provided")
	// ErrKeyNotFound: a put that keeps the value or lease of its key found no such key.
	ErrKeyNotFound = errors.New("key not found")
)

// ErrOutcomeUnknown: the connection failed while a write was under way. It may
// have happened, may happen yet, or never: read before writing again.
var ErrOutcomeUnknown = errors.New("the write's outcome is unknown")

// Local is the revision to ask Snapshot for when an answer from this process's
// memory will do, without asking a server how new it is.
const Local = -1

// MaxLeaseTTL is the longest that a lease can be granted, in seconds: etcd's
// bound, and what a time.Duration holds.
const MaxLeaseTTL = 9_000_000_000

// LeaseID names a lease; 0 means none.
type LeaseID int64

// KV is one version of one key. It is immutable and shared: neither the
// struct nor Value may be changed by anyone. The same version is the same
// pointer in every snapshot and event, so callers may key caches by it.
type KV struct {
	Key            string
	Value          []byte
	CreateRevision int64 // revision that created the key
	ModRevision    int64 // revision of this version
	Version        int64 // 1 for a fresh key, +1 for each put
	Lease          LeaseID
	// Order is the place among the changes of ModRevision, from 0 on.
	Order int32
	// Attrs is what the store's Decorate function made of this version, once,
	// when it was committed or loaded. The API server keeps the decoded labels
	// and selectable fields of an object here. Nil without a Decorate function.
	Attrs any
}

// Decorate derives the Attrs of a version from its key and value. It must be
// pure and must not keep a reference to anything but value itself.
type Decorate func(key string, value []byte) any

// Index derives the term that a version can be found by beside its key: the
// node of a pod. "" is none, AnyTerm one that cannot be told. It must be pure
// and cheap: the store keeps no term with the version.
type Index func(key string, value []byte) string

// AnyTerm is the term of a version that may have any.
const AnyTerm = "\x00"

// Store is the contract. All methods are safe for concurrent use.
type Store interface {
	// Snapshot returns a consistent read-only view at revision rev; 0 means
	// the newest durable revision, linearizable: it includes every
	// transaction acknowledged before the call. Local is the newest this
	// process has seen. Errors: ErrCompacted,
	// ErrFutureRevision, ErrClosed. A snapshot needs no release and stays
	// readable (by reference) after compaction.
	Snapshot(ctx context.Context, rev int64) (Snapshot, error)
	// Txn evaluates the compares at the newest revision and applies Then or
	// Else atomically. On return the effects are durable and in Snapshot(Local).
	// All puts and deletes of one Txn share one revision. Further errors:
	// ErrOutcomeUnknown.
	Txn(ctx context.Context, txn Txn) (TxnResult, error)
	// Watch follows a key range from a revision on. Errors: ErrCompacted, ErrClosed.
	Watch(ctx context.Context, req WatchRequest) (Watcher, error)
	// Leases returns the lease operations.
	Leases() Leases
	// Compact forgets superseded versions at or below rev. Errors:
	// ErrCompacted if rev is at or below the last compaction, ErrFutureRevision.
	Compact(ctx context.Context, rev int64) error
	// Status reports counters for operators; cheap.
	Status() Status
	// Close stops the store; blocked calls return ErrClosed.
	Close() error
}

// Snapshot is a consistent view at one revision.
type Snapshot interface {
	// Revision is the revision of the view.
	Revision() int64
	// Get returns the version of key, or nil.
	Get(key string) *KV
	// Range yields the versions of [key, end) in key order.
	Range(key, end string) iter.Seq[*KV]
	// RangeTerm yields those of Range that have the term of the store's Index,
	// and may yield others: without an Index, or in the past, all of them.
	RangeTerm(term, key, end string) iter.Seq[*KV]
	// Count returns how many keys [key, end) holds.
	Count(key, end string) int
}

// Target is the property of a key that a Compare looks at.
type Target uint8

// Compare targets, as in etcd.
const (
	TargetMod     Target = iota // ModRevision; 0 when the key does not exist
	TargetCreate                // CreateRevision; 0 when the key does not exist
	TargetVersion               // Version; 0 when the key does not exist
	TargetValue                 // Value; never holds when the key does not exist
	TargetLease                 // Lease; 0 when none
)

// Relation is how a Compare relates the key's property to the wanted one.
type Relation uint8

// Compare relations, as in etcd.
const (
	Equal Relation = iota
	NotEqual
	Greater
	Less
)

// Compare is one condition of a transaction. With End set it must hold for
// every key of the range; a range without keys compares as a missing key does.
type Compare struct {
	Key, End string
	Target   Target
	Relation Relation
	Int      int64  // for every target but TargetValue
	Value    []byte // for TargetValue
}

// OpKind is the kind of an Op.
type OpKind uint8

// Operation kinds.
const (
	OpRange OpKind = iota
	OpPut
	OpDelete
	OpTxn
)

// Op is one operation of a transaction.
type Op struct {
	Kind     OpKind
	Key, End string
	Value    []byte // OpPut; owned by the store from the call on
	Lease    LeaseID
	// IgnoreValue and IgnoreLease (OpPut) keep the current value or lease; the key must exist.
	IgnoreValue, IgnoreLease bool
	// PrevKV (OpPut, OpDelete) asks for the replaced versions in the result.
	PrevKV bool
	Txn    *Txn // OpTxn
}

// Txn is an atomic transaction: if every compare holds, Then; otherwise Else.
type Txn struct {
	If         []Compare
	Then, Else []Op
}

// TxnResult reports a transaction.
type TxnResult struct {
	// Revision is the store's revision after the transaction.
	Revision  int64
	Succeeded bool
	// Results holds one entry per operation of the branch taken.
	Results []OpResult
}

// OpResult is the outcome of one Op.
type OpResult struct {
	KVs     []*KV // OpRange: the keys found
	KV      *KV   // OpPut: the new version
	Prev    []*KV // replaced versions, when asked for
	Deleted int64 // OpDelete: how many keys
	Txn     *TxnResult
}

// EventType is put or delete.
type EventType uint8

// Event types.
const (
	EventPut EventType = iota
	EventDelete
)

// Event is one change of one key. For a delete KV has only Key, Order and
// ModRevision (the deleting revision) set.
type Event struct {
	Type EventType
	KV   *KV
	Prev *KV // the replaced version, nil for a creation; nil also if it has been compacted
}

// WatchRequest asks for the events of [Key, End).
type WatchRequest struct {
	Key, End string
	// Term, if set, leaves out events of which neither KV nor Prev has this
	// term of the store's Index. Others may come nevertheless, as with
	// Snapshot's RangeTerm.
	Term string
	// StartRevision is the first revision wanted, history included; 0 means
	// from the next transaction on.
	StartRevision int64
	// Wake is for a reader that polls. It is called when there may be
	// something new since a Poll that found all there was, and when the
	// watcher ends. It must neither block nor call the store.
	Wake func()
}

// Batch is a run of events. All events of one revision are in one batch, in
// order; every event of the range up to Revision has been delivered with it.
// Events may be empty: then the batch only reports progress. It must not be
// changed: watchers of one range that stand at one place share its array, so
// callers may key caches by it.
type Batch struct {
	Revision int64
	Events   []Event
}

// Watcher delivers events in revision order, without gaps or repeats. It
// holds a cursor, not a buffer: a slow reader costs no memory, and gets
// ErrCompacted once the history it still needs is gone.
type Watcher interface {
	// Next blocks for the next batch with events, or until ctx ends.
	Next(ctx context.Context) (Batch, error)
	// Poll is Next for one goroutine that reads many watchers: it returns what
	// there is up to revision upTo without waiting, and whether there may be
	// more. If not, the request's Wake tells when. A watcher whose request has
	// a Wake is read by Poll alone.
	Poll(upTo int64) (b Batch, more bool, err error)
	// Progress returns the revision up to which this watcher has nothing more
	// to deliver, syncing with the newest durable revision: if no event is
	// waiting, that revision; otherwise the revision of the last batch.
	Progress() int64
	// Close frees the watcher; a blocked Next returns ErrClosed.
	Close()
}

// Lease is a lease's state.
type Lease struct {
	ID        LeaseID
	TTL       int64 // granted, seconds
	Remaining int64 // seconds
	Keys      []string
}

// Leases are the lease operations. Time is monotonic: a clock step neither
// expires nor prolongs a lease. After a restart a lease gets its full TTL, or
// what it had left when that was written last.
type Leases interface {
	// Grant makes a lease of ttl seconds, at most MaxLeaseTTL; id 0 lets the
	// store choose.
	Grant(ctx context.Context, id LeaseID, ttl int64) (Lease, error)
	// Revoke ends a lease and deletes its keys in one revision.
	Revoke(ctx context.Context, id LeaseID) error
	// KeepAlive resets a lease to its TTL and returns it.
	KeepAlive(ctx context.Context, id LeaseID) (Lease, error)
	// TimeToLive returns a lease with its keys.
	TimeToLive(ctx context.Context, id LeaseID) (Lease, error)
	// List returns the IDs of all live leases, those that end first before.
	List(ctx context.Context) ([]LeaseID, error)
}

// Status reports counters.
type Status struct {
	Revision        int64 // newest durable revision
	CompactRevision int64
	Keys            int64 // live keys
	SizeBytes       int64 // on disk
	InUseBytes      int64 // live data
}
