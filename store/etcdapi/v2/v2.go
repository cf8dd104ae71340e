// Package v2 is etcd's HTTP v2 key space: a tree of files and directories with
// time to live, compare-and-swap and long-polling waits. It lives in a store
// of its own, beside the v3 keys, as in etcd.
//
//	v2/k<path>   one node: a file or a directory (record, JSON)
//	v2/event     the last change (Event, JSON); its history is what waits replay
//
// Every change is one transaction, so an index is a revision of that store, and
// the store's watch on v2/event is the event history, which compaction bounds.
// Source: https://etcd.io/docs/v2.3/api/ and etcd 3.4's behaviour.
package v2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/store"
)

const (
	nodePrefix = "v2/k"
	eventKey   = "v2/event"
	// historyLength is how many events waits can look back on at least; there
	// are never more than twice as many. etcd keeps 1,000.
	historyLength = 1000
	// maxDepth bounds the directories one request makes.
	maxDepth = 100
)

// Config configures the key space.
type Config struct {
	Store store.Store // required; shared with others' keys, none under "v2/"
	// Write is held around changes, for others who write to Store. Default a new one.
	Write *sync.Mutex
	// Member is what /v2/members and /v2/stats tell.
	Member Member
	// MaxRequestBytes bounds a request's body. Default 1.5 MiB.
	MaxRequestBytes int64
	// Clock times nodes. Default the real clock.
	Clock clock.WithTicker
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

// Member describes the one server.
type Member struct {
	ID, ClusterID uint64
	Name          string
	PeerURLs      []string
	// ClientURLs is asked at each request: it may be known only then.
	ClientURLs func() []string
}

// Keys is a v2 key space. Safe for concurrent use.
type Keys struct {
	cfg     Config
	started time.Time
	stats   stats

	mu      *sync.Mutex // one change at a time
	expires map[string]time.Time
	change  chan struct{} // capacity 1: the next expiry may have moved
}

// New loads a key space. Errors: the store's.
func New(cfg Config) (*Keys, error) {
	if cfg.Store == nil {
		return nil, errors.New("v2 keys: no store is configured")
	}
	if cfg.MaxRequestBytes == 0 {
		cfg.MaxRequestBytes = 3 << 19
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Write == nil {
		cfg.Write = &sync.Mutex{}
	}
	k := &Keys{cfg: cfg, started: cfg.Clock.Now(), mu: cfg.Write, expires: map[string]time.Time{}, change: make(chan struct{}, 1)}
	snap, err := cfg.Store.Snapshot(context.Background(), 0)
	if err != nil {
		return nil, err
	}
	now := cfg.Clock.Now()
	for kv := range snap.Range(nodePrefix, prefixEnd(nodePrefix)) {
		rec, err := decode(kv)
		if err != nil {
			return nil, err
		}
		if rec.Expires != 0 {
			// From here on the clock is monotonic: setting the time ends nothing early.
			k.expires[nodePath(kv)] = now.Add(time.Until(time.Unix(0, rec.Expires)))
		}
	}
	return k, nil
}

func prefixEnd(p string) string { return p[:len(p)-1] + string(p[len(p)-1]+1) }

// record is a stored node.
type record struct {
	Value   string `json:"v,omitempty"`
	Dir     bool   `json:"d,omitempty"`
	Created int64  `json:"c,omitempty"` // index; 0: that of this version
	Expires int64  `json:"e,omitempty"` // nanoseconds since 1970; 0: never
}

// decode reads a stored node; its Created is filled in.
func decode(kv *store.KV) (record, error) {
	var rec record
	if err := json.Unmarshal(kv.Value, &rec); err != nil {
		return rec, fmt.Errorf("v2 key %s is damaged: %w", kv.Key, err)
	}
	if rec.Created == 0 {
		rec.Created = kv.ModRevision
	}
	return rec, nil
}

func nodeKey(p string) string      { return nodePrefix + p }
func nodePath(kv *store.KV) string { return strings.TrimPrefix(kv.Key, nodePrefix) }
func children(p string) (a, b string) {
	p = strings.TrimSuffix(nodeKey(p), "/")
	return p + "/", p + "0"
}

// Node is a file or a directory as clients see it.
type Node struct {
	Key           string     `json:"key,omitempty"`
	Value         *string    `json:"value,omitempty"`
	Dir           bool       `json:"dir,omitempty"`
	Expiration    *time.Time `json:"expiration,omitempty"`
	TTL           int64      `json:"ttl,omitempty"`
	Nodes         []*Node    `json:"nodes,omitempty"`
	ModifiedIndex int64      `json:"modifiedIndex,omitempty"`
	CreatedIndex  int64      `json:"createdIndex,omitempty"`
}

// Event is a change, or the answer to a read.
type Event struct {
	Action   string `json:"action"`
	Node     *Node  `json:"node,omitempty"`
	PrevNode *Node  `json:"prevNode,omitempty"`
	index    int64
}

// created says whether the answer is 201.
func (e *Event) created() bool {
	return e.Action == "create" || e.Action == "set" && e.PrevNode == nil
}

// index is the newest change's.
func (k *Keys) index() int64 { return k.cfg.Store.Status().Revision }

func (k *Keys) snapshot(ctx context.Context) (store.Snapshot, error) {
	return k.cfg.Store.Snapshot(ctx, 0)
}

func clean(p string) string { return path.Clean("/" + p) }

// hidden reports whether p has an element below base that starts with '_'.
func hidden(base, p string) bool {
	return strings.Contains(strings.TrimPrefix(p, strings.TrimSuffix(base, "/")), "/_")
}

// Error is an error as v2 clients know it.
type Error struct {
	Code    int    `json:"errorCode"`
	Message string `json:"message"`
	Cause   string `json:"cause,omitempty"`
	Index   int64  `json:"index"`
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Message, e.Cause) }

// Codes of errors.
const (
	codeNotFound     = 100
	codeTestFailed   = 101
	codeNotFile      = 102
	codeNotDir       = 104
	codeExists       = 105
	codeRootReadOnly = 107
	codeDirNotEmpty  = 108
	codePrevValue    = 201
	codeTTLNaN       = 202
	codeIndexNaN     = 203
	codeInvalidField = 209
	codeInvalidForm  = 210
	codeRefreshValue = 211
	codeRefreshTTL   = 212
	codeRaftInternal = 300
	codeIndexCleared = 401
)

var messages = map[int]string{
	codeNotFound:     "Key not found",
	codeTestFailed:   "Compare failed",
	codeNotFile:      "Not a file",
	codeNotDir:       "Not a directory",
	codeExists:       "Key already exists",
	codeRootReadOnly: "Root is read only",
	codeDirNotEmpty:  "Directory not empty",
	codePrevValue:    "PrevValue is Required in POST form",
	codeTTLNaN:       "The given TTL in POST form is not a number",
	codeIndexNaN:     "The given index in POST form is not a number",
	codeInvalidField: "Invalid field",
	codeInvalidForm:  "Invalid POST form",
	codeRefreshValue: "Value provided on refresh",
	codeRefreshTTL:   "A TTL must be provided on refresh",
	codeRaftInternal: "Raft Internal Error",
	codeIndexCleared: "The event in requested index is outdated and cleared",
}

var statuses = map[int]int{
	codeNotFound:     http.StatusNotFound,
	codeNotFile:      http.StatusForbidden,
	codeDirNotEmpty:  http.StatusForbidden,
	codeTestFailed:   http.StatusPreconditionFailed,
	codeExists:       http.StatusPreconditionFailed,
	codeRaftInternal: http.StatusInternalServerError,
}

func fail(code int, cause string, index int64) *Error {
	return &Error{Code: code, Message: messages[code], Cause: cause, Index: index}
}
