package v2

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/skiff-project/skiff/store"
)

// serveWait answers with the first event of a path from waitIndex on, or with
// all of them if the client asked for a stream.
func (k *Keys) serveWait(w http.ResponseWriter, r *http.Request, f *form) error {
	ctx := r.Context()
	index := k.index()
	start := f.waitIndex
	if start == 0 {
		start = index + 1
	}
	cleared := func() error {
		first := k.cfg.Store.Status().CompactRevision
		return fail(codeIndexCleared, fmt.Sprintf("the requested history has been cleared [%d/%d]", first, start), k.index())
	}
	watcher, err := k.cfg.Store.Watch(ctx, store.WatchRequest{Key: eventKey, StartRevision: start})
	if errors.Is(err, store.ErrCompacted) {
		return cleared()
	}
	if err != nil {
		return err
	}
	defer watcher.Close()
	k.stats.watchers.Add(1)
	defer k.stats.watchers.Add(-1)
	// The headers go out at once: they tell that the wait has begun, and where.
	k.setIndex(w, index)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	flush.Flush()
	for {
		batch, err := watcher.Next(ctx)
		if err != nil {
			if errors.Is(err, store.ErrCompacted) {
				json.NewEncoder(w).Encode(cleared())
			}
			return nil // the client is gone, or the server
		}
		for _, change := range batch.Events {
			var ev Event
			if change.Type != store.EventPut || json.Unmarshal(change.KV.Value, &ev) != nil || !concerns(&ev, f) {
				continue
			}
			if json.NewEncoder(w).Encode(&ev) != nil || !f.stream {
				return nil
			}
			flush.Flush()
		}
	}
}

// concerns reports whether a wait is to see an event: one of its node; one
// below it, if recursive and not hidden; the end of a directory above it.
func concerns(ev *Event, f *form) bool {
	key := ev.Node.Key
	if key == f.path {
		return true
	}
	if strings.HasPrefix(key, strings.TrimSuffix(f.path, "/")+"/") {
		return f.recursive && !hidden(f.path, key)
	}
	ended := ev.Action == "delete" || ev.Action == "expire"
	return ended && strings.HasPrefix(f.path, key+"/")
}
