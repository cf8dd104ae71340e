package etcdapi

import (
	"context"
	"errors"
	"strings"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/etcdapi/snapshot"
)

// BucketPrefix begins the keys of the side store that hold what stock etcd has
// in buckets of the same names, byte for byte: bucket/<bucket>/<key>.
const BucketPrefix = "bucket/"

var errNoSide = errors.New("etcdserver: this server keeps neither users nor alarms: start it as skiff etcd")

// bucket returns the content of a bucket of the side store.
func (s *Server) bucket(ctx context.Context, name string) (map[string][]byte, error) {
	out := map[string][]byte{}
	if s.cfg.Side == nil {
		return out, nil
	}
	snap, err := s.cfg.Side.Snapshot(ctx, 0)
	if err != nil {
		return nil, err
	}
	prefix := BucketPrefix + name + "/"
	for kv := range snap.Range(prefix, prefixEnd(prefix)) {
		out[strings.TrimPrefix(kv.Key, prefix)] = kv.Value
	}
	return out, nil
}

// entry is a change of a bucket; a nil value deletes.
type entry struct {
	bucket, key string
	value       []byte
}

// writeBuckets changes buckets in one transaction.
func (s *Server) writeBuckets(ctx context.Context, entries ...entry) error {
	if s.cfg.Side == nil {
		return toGRPC(errNoSide)
	}
	var ops []store.Op
	for _, e := range entries {
		op := store.Op{Kind: store.OpPut, Key: BucketPrefix + e.bucket + "/" + e.key, Value: e.value}
		if e.value == nil {
			op.Kind = store.OpDelete
		}
		ops = append(ops, op)
	}
	s.side.Lock()
	defer s.side.Unlock()
	_, err := s.cfg.Side.Txn(ctx, store.Txn{Then: ops})
	return toGRPC(err)
}

// contents is what a snapshot of this server is made of.
func (s *Server) contents(ctx context.Context) (snapshot.Contents, error) {
	c := snapshot.Contents{Store: s.cfg.Store, Buckets: map[string]map[string][]byte{},
		Member: snapshot.Member{ID: s.cfg.MemberID, Name: s.cfg.Name, PeerURLs: s.cfg.PeerURLs, ClientURLs: s.clientURLs()}}
	for _, name := range snapshot.Copied {
		content, err := s.bucket(ctx, name)
		if err != nil {
			return c, err
		}
		c.Buckets[name] = content
	}
	return c, nil
}
