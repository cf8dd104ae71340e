package apiserver_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/object/codec"
)

// told are the events of some watches of one connection, as "TYPE turn", and which have ended.
type told struct {
	t     *testing.T
	c     *rawConn
	text  map[uint32]*bytes.Buffer
	lines map[uint32][]string
	ended map[uint32]bool
}

func watches(t *testing.T, c *rawConn) *told {
	return &told{t, c, map[uint32]*bytes.Buffer{}, map[uint32][]string{}, map[uint32]bool{}}
}

// until reads frames until what is wanted has come.
func (w *told) until(what string, have func() bool) {
	w.t.Helper()
	w.c.must(w.c.SetReadDeadline(time.Now().Add(time.Minute)))
	for !have() {
		f, err := w.c.ReadFrame()
		if err != nil {
			w.t.Fatalf("no %s: %v, after %v", what, err, w.lines)
		}
		id := f.Header().StreamID
		if h := f.Header(); h.Type <= http2.FrameHeaders && h.Flags&http2.FlagDataEndStream != 0 {
			w.ended[id] = true
		}
		data, ok := f.(*http2.DataFrame)
		if !ok {
			continue
		}
		if w.text[id] == nil {
			w.text[id] = new(bytes.Buffer)
		}
		w.text[id].Write(data.Data())
		for bytes.ContainsRune(w.text[id].Bytes(), '\n') {
			line, _ := w.text[id].ReadBytes('\n')
			var ev struct {
				Type   string
				Object metav1.PartialObjectMetadata
			}
			if err := json.Unmarshal(line, &ev); err != nil {
				w.t.Fatalf("stream %d: %v in %s", id, err, line)
			}
			w.lines[id] = append(w.lines[id], strings.TrimSpace(ev.Type+" "+ev.Object.Labels["turn"]))
		}
	}
}

// A watcher that does not read is no concern of another on its connection, and misses nothing.
func TestSlowWatcher(t *testing.T) {
	s, cfg := newTLSServer(t, func(c *apiserver.Config) { c.BookmarkInterval = time.Hour })
	c := newRaw(s)
	c.do(t, "POST", "/api/v1/namespaces/default/configmaps", codec.JSON, []byte(`{"metadata":{"name":"a","labels":{"turn":"0"}}}`))
	turn := func(n int) {
		for i := range 20 {
			body := fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}},"data":{"x":%q}}`, n+i, strings.Repeat("y", 3000))
			if code, text := c.do(t, "PATCH", "/api/v1/namespaces/default/configmaps/a", "application/merge-patch+json", body); code != 200 {
				t.Fatal(text)
			}
		}
	}
	nc := dialRaw(t, cfg.Host)
	got := watches(t, nc)
	nc.must(nc.WriteWindowUpdate(0, 1<<30))
	const path = "/api/v1/namespaces/default/configmaps?watch=1"
	for i, window := range []uint32{0, 1 << 20, 4000, 1 << 20} {
		id := uint32(2*i + 1)
		nc.watch(id, codec.JSON, path)
		if window > 0 {
			nc.must(nc.WriteWindowUpdate(id, window))
		}
	}
	arrived := func(id uint32, n int) func() bool { return func() bool { return len(got.lines[id]) == n } }
	got.until("present object", arrived(3, 1))
	got.until("present object", arrived(7, 1))
	turn(1)
	got.until("changes for who reads", arrived(3, 21))
	got.until("changes for who reads, too", arrived(7, 21))
	if len(got.lines[1]) > 0 || len(got.lines[5]) > 2 {
		t.Errorf("beyond the window: %v", got.lines)
	}
	open := []uint32{1, 3, 5, 7}
	for _, id := range open {
		nc.must(nc.WriteWindowUpdate(id, 1<<20))
	}
	turn(21)
	var want []string
	for i := range 41 {
		want = append(want, fmt.Sprintf("MODIFIED %d", i))
	}
	want[0] = "ADDED 0"
	for _, id := range open {
		got.until("rest", arrived(id, 41))
		if fmt.Sprint(got.lines[id]) != fmt.Sprint(want) {
			t.Errorf("stream %d: %v", id, got.lines[id])
		}
	}
}

// Bookmarks come between events, and last at the end of a watch's time, but not for one that did not ask.
func TestBookmarksAmongEvents(t *testing.T) {
	s, cfg := newTLSServer(t, func(c *apiserver.Config) { c.BookmarkInterval = 10 * time.Millisecond })
	c := newRaw(s)
	c.do(t, "POST", "/api/v1/namespaces/default/configmaps", codec.JSON, []byte(`{"metadata":{"name":"a","labels":{"turn":"0"}}}`))
	nc := dialRaw(t, cfg.Host)
	nc.takeAll()
	got := watches(t, nc)
	const path = "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=2"
	nc.watch(1, codec.JSON, path+"&allowWatchBookmarks=1")
	nc.watch(3, codec.JSON, path)
	got.until("present object", func() bool { return len(got.lines[1]) > 0 && len(got.lines[3]) > 0 })
	for i := range 50 {
		c.do(t, "PATCH", "/api/v1/namespaces/default/configmaps/a", "application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i+1))
	}
	got.until("end", func() bool { return got.ended[1] && got.ended[3] })
	marks, seen := 0, []string{}
	for _, l := range got.lines[1] {
		if l == "BOOKMARK" {
			marks++
		} else {
			seen = append(seen, l)
		}
	}
	if last := got.lines[1][len(got.lines[1])-1]; marks < 2 || last != "BOOKMARK" {
		t.Errorf("%d bookmarks, last is %s", marks, last)
	}
	if len(seen) > 51 || len(got.lines[3]) > 51 {
		t.Errorf("%v and %v", seen, got.lines[3])
	}
	for i, l := range got.lines[3] {
		if want := fmt.Sprintf("MODIFIED %d", i); i > 0 && l != want {
			t.Errorf("event %d is %s", i, l)
		}
	}
}
