package robustness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
	"github.com/skiff-project/skiff/store/vfs"
	"github.com/skiff-project/skiff/store/wal"
)

// committed is the server's log as the sequence of what was committed: all
// changes in revision order, those that were compacted later included.
func committed(fs vfs.FS, dir string) ([]store.Event, error) {
	core := mvcc.New(nil, nil)
	var events []store.Event
	l, err := wal.Open(wal.Options{FS: fs, Dir: dir}, func(frame []byte) error {
		for len(frame) > 0 { // a record at a time: one may compact those before it
			n, width := binary.Uvarint(frame)
			record := frame[:width+int(n)]
			before := core.View().Log().End()
			if err := core.Replay(record); err != nil {
				return err
			}
			log := core.View().Log()
			for pos := max(before, log.First()); pos < log.End(); pos++ {
				events = append(events, log.At(pos))
			}
			frame = frame[len(record):]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return events, l.Close()
}

// copyFolder copies the files of a folder on the real disk.
func copyFolder(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// seen is one watch and all it was told.
type seen struct {
	start     int64 // first revision wanted
	prefix    bool  // all keys, else only keyName(key)
	key       int
	mu        sync.Mutex
	responses []clientv3.WatchResponse
	last      int64 // newest revision told
	compacted int64 // why it ended, 0 if it did not
	err       error
}

func (s *seen) wants(key string) bool {
	return key == keyName(s.key) || s.prefix && strings.HasPrefix(key, "/r/")
}

// watch follows until ctx ends or the watch does.
func (s *seen) watch(ctx context.Context, c *clientv3.Client) {
	key, opts := keyName(s.key), []clientv3.OpOption{clientv3.WithPrevKV(), clientv3.WithRev(s.start)}
	if s.prefix {
		key, opts = "/r/", append(opts, clientv3.WithPrefix())
	}
	for r := range c.Watch(clientv3.WithRequireLeader(ctx), key, opts...) {
		s.mu.Lock()
		if r.CompactRevision != 0 {
			s.compacted = r.CompactRevision
		} else if r.Err() != nil && ctx.Err() == nil {
			s.err = r.Err()
		}
		s.responses = append(s.responses, r)
		if r.CompactRevision == 0 && r.Err() == nil {
			s.last = max(s.last, r.Header.Revision)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil && s.compacted == 0 && s.err == nil {
		s.err = errors.New("it ended without a word")
	}
}

func (s *seen) reached(rev int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last >= rev || s.start > rev || s.compacted != 0 || s.err != nil
}

// follow keeps watches from several revisions open until ctx ends. A watch
// that was compacted is begun anew where history begins.
func follow(ctx context.Context, c *clientv3.Client, s *seen, found func(*seen)) {
	for ctx.Err() == nil {
		found(s)
		s.watch(ctx, c)
		s.mu.Lock()
		next := &seen{start: max(s.compacted, s.last+1), prefix: s.prefix, key: s.key}
		s.mu.Unlock()
		s = next
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// check judges a watch against the log: ordered, unique, atomic, reliable (no
// gap up to the newest revision told), previous versions right, and never
// ahead in a progress report of what it has delivered.
func (s *seen) check(log []store.Event, compacted bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return fmt.Errorf("it failed: %w", s.err)
	}
	var want []store.Event
	for _, ev := range log {
		if ev.KV.ModRevision >= s.start && s.wants(ev.KV.Key) {
			want = append(want, ev)
		}
	}
	for _, r := range s.responses {
		if r.CompactRevision != 0 {
			if r.CompactRevision <= s.start && s.last == 0 {
				return fmt.Errorf("compacted at %d, but it asked for %d", r.CompactRevision, s.start)
			}
			return nil
		}
		if r.Err() != nil {
			break
		}
		for _, ev := range r.Events {
			if len(want) == 0 {
				return fmt.Errorf("event %s at %d was never committed, or came twice", ev.Kv.Key, ev.Kv.ModRevision)
			}
			if err := sameEvent(ev, want[0]); err != nil && !(compacted && errors.Is(err, errNoPrev)) {
				return err
			}
			want = want[1:]
		}
		if len(want) > 0 && want[0].KV.ModRevision <= r.Header.Revision {
			return fmt.Errorf("told of revision %d, but %s at %d is missing or in another response", r.Header.Revision, want[0].KV.Key, want[0].KV.ModRevision)
		}
	}
	return nil // that the last events came has been waited for
}

func sameEvent(got *clientv3.Event, want store.Event) error {
	if string(got.Kv.Key) != want.KV.Key || got.Kv.ModRevision != want.KV.ModRevision ||
		(got.Type == clientv3.EventTypeDelete) != (want.Type == store.EventDelete) || string(got.Kv.Value) != string(want.KV.Value) ||
		got.Kv.Version != want.KV.Version || got.Kv.CreateRevision != want.KV.CreateRevision || got.Kv.Lease != int64(want.KV.Lease) {
		return fmt.Errorf("event %s at %d, want %s at %d", got, got.Kv.ModRevision, want.KV.Key, want.KV.ModRevision)
	}
	switch {
	case got.PrevKv == nil && want.Prev == nil:
	case got.PrevKv == nil:
		// Right only if it has been compacted meanwhile.
		return errNoPrev
	case want.Prev == nil || got.PrevKv.ModRevision != want.Prev.ModRevision || string(got.PrevKv.Value) != string(want.Prev.Value):
		return fmt.Errorf("event %s at %d has a wrong previous version", got.Kv.Key, got.Kv.ModRevision)
	}
	return nil
}

var errNoPrev = errors.New("the previous version is missing")

// compactor compacts now and then, behind most watches.
func compactor(ctx context.Context, c *clientv3.Client) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(300 * time.Millisecond):
		}
		if resp, err := c.Get(ctx, "/other"); err == nil {
			c.Compact(ctx, max(1, resp.Header.Revision-20)) // whatever comes of it: the checks see
		}
	}
}

// asker asks for progress reports.
func asker(ctx context.Context, c *clientv3.Client) {
	for ctx.Err() == nil {
		c.RequestProgress(clientv3.WithRequireLeader(ctx))
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}
