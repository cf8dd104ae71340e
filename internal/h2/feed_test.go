package h2_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/skiff-project/skiff/internal/h2"
)

// A feed writes for its handler what the client takes at once, and only that;
// a client that takes nothing holds up no other stream.
func TestFeed(t *testing.T) {
	var mu sync.Mutex
	feeds, refused := map[string]*h2.Feed{}, map[string]int{}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h2.NewFeed(w, nil) != nil {
			t.Error("a feed of an answer that has not begun")
		}
		http.NewResponseController(w).Flush() //nolint:errcheck // the client sees
		n := 0
		mu.Lock()
		feeds[r.URL.Path] = h2.NewFeed(w, func() {
			mu.Lock()
			defer mu.Unlock()
			if n++; !feeds[r.URL.Path].TryWrite(fmt.Appendf(nil, "%s %d\n", r.URL.Path, n)) {
				refused[r.URL.Path]++
			}
		})
		mu.Unlock()
		<-r.Context().Done()
	})
	c := dialRaw(t, serve(t, h, h2.Config{}))
	c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}) //nolint:errcheck // the next read tells
	c.get(1, "/shut")
	c.get(3, "/open")
	begun := 0
	c.await(t, "header fields", func(f http2.Frame) bool {
		if f.Header().Type == http2.FrameHeaders {
			begun++
		}
		return begun == 2
	})
	c.WriteWindowUpdate(3, 1<<20) //nolint:errcheck // the next read tells
	// Each frame of a client is acted on in order: the answer to a PING says that it has been.
	c.WritePing(false, [8]byte{1}) //nolint:errcheck // see above
	c.await(t, "PING", func(f http2.Frame) bool { return f.Header().Type == http2.FramePing })
	rouse := func(path string) { // once NewFeed has returned
		for f := (*h2.Feed)(nil); f == nil; {
			mu.Lock()
			f = feeds[path]
			mu.Unlock()
			if f != nil {
				f.Rouse()
			}
		}
	}
	text := map[uint32]string{}
	for i := range 100 {
		rouse("/shut")
		rouse("/open")
		c.await(t, "data", func(f http2.Frame) bool {
			if d, ok := f.(*http2.DataFrame); ok {
				text[d.StreamID] += string(d.Data())
			}
			return strings.HasSuffix(text[3], fmt.Sprintf("/open %d\n", i+1))
		})
	}
	mu.Lock()
	defer mu.Unlock()
	if text[1] != "/shut 1\n" || refused["/shut"] == 0 || refused["/open"] > 0 || strings.Count(text[3], "\n") != 100 {
		t.Errorf("came: %v; refused: %v", text, refused)
	}
}

func TestNoFeed(t *testing.T) {
	if h2.NewFeed(httptest.NewRecorder(), nil) != nil {
		t.Error("a feed of what is not HTTP/2")
	}
}
