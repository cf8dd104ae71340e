package watchstream_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/reply"
	"github.com/skiff-project/skiff/apiserver/watchstream"
	"github.com/skiff-project/skiff/internal/h2"
	"github.com/skiff-project/skiff/store/embedded"
)

// lines says each event in a line, and cannot say some.
type lines struct{}

func (lines) Frame(ch registry.Change) ([]byte, error) {
	name := ch.KV.Key[strings.LastIndexByte(ch.KV.Key, '/')+1:]
	switch name {
	case "bad":
		return nil, errors.New("no words for it")
	case "worse":
		panic("no words at all")
	case "large":
		name += strings.Repeat("!", 100_000)
	}
	return fmt.Appendf(nil, "%s %s\n", ch.Type, name), nil
}

func (l lines) Compressed(ch registry.Change) ([]byte, error) {
	frame, err := l.Frame(ch)
	return reply.Member(frame), err
}

func (lines) Bookmark(int64, bool) ([]byte, error) { return []byte("BOOKMARK\n"), nil }
func (lines) Error(err error) ([]byte, error)      { return fmt.Appendf(nil, "ERROR %v\n", err), nil }

// A watch tells the same whether a feed writes it or its handler does, and compressed or not.
func TestStream(t *testing.T) {
	for _, how := range []string{"h2", "http/1.1", "h2 gzip", "http/1.1 gzip"} {
		proto, gzip := strings.CutSuffix(how, " gzip")
		for _, k := range []struct {
			name, last, want string
			alone            bool
		}{
			{name: "feed", last: "last", want: "ADDED last, EOF"},
			{name: "alone", last: "last", want: "ADDED last, EOF", alone: true},
			{name: "an event that cannot be made", last: "bad", want: "ERROR no words for it, EOF"},
			{name: "a panic", last: "worse", want: "cut"},
			{name: "an event that does not fit at once", last: "large", want: "ADDED large, EOF"},
		} {
			t.Run(how+", "+k.name, func(t *testing.T) {
				stop, sent := make(chan struct{}), metrics.NewStorage().Events(schema.GroupVersionResource{})
				reg := configMaps(t)
				put(t, reg, "first")
				resp := get(t, proto, func(w http.ResponseWriter, r *http.Request) {
					st := watchstream.New(watchstream.Config{W: w, Form: lines{}, Alone: k.alone, Gzip: gzip, Sent: sent, Bookmarks: true, Interval: time.Hour, Stopping: stop})
					open, err := reg.Watch(r.Context(), registry.WatchOptions{Wake: st.Wake})
					if err != nil {
						t.Error(err)
						return
					}
					defer open.Close()
					st.Run(r.Context(), open, true, time.Hour)
				})
				defer resp.Body.Close()
				if resp.Uncompressed != gzip {
					t.Fatalf("compressed: %t", resp.Uncompressed)
				}
				in := bufio.NewReader(resp.Body)
				next := func() string {
					line, err := in.ReadString('\n')
					switch {
					case err == nil:
						return strings.TrimRight(line, "!\n")
					case err.Error() == "EOF":
						return "EOF"
					}
					return "cut"
				}
				expect(t, next, "ADDED first", "BOOKMARK")
				for i := range 20 {
					put(t, reg, fmt.Sprint(i))
					expect(t, next, fmt.Sprintf("ADDED %d", i))
				}
				put(t, reg, k.last)
				for _, want := range strings.Split(k.want, ", ") {
					if want == "EOF" && strings.HasPrefix(k.want, "ADDED") {
						close(stop)
						expect(t, next, "BOOKMARK")
					}
					expect(t, next, want)
				}
			})
		}
	}
}

func expect(t *testing.T, next func() string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := next(); got != w {
			t.Fatalf("got %q, want %q", got, w)
		}
	}
}

func configMaps(t *testing.T) *registry.Registry {
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	reg, err := registry.New(registry.Config{Store: st, Resource: &api.Resource{
		Name: "things", Singular: "thing", Kind: "ConfigMap", Namespaced: true, StoragePrefix: "things",
		Versions: []api.Version{api.Versioned[corev1.ConfigMap, corev1.ConfigMapList]("v1", nil)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

func put(t *testing.T, reg *registry.Registry, name string) {
	t.Helper()
	if _, err := reg.Create(t.Context(), registry.Write{Namespace: "n"}, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		t.Fatal(err)
	}
}

// get asks a server of its own over a protocol.
func get(t *testing.T, proto string, h http.HandlerFunc) *http.Response {
	cert := httptest.NewTLSServer(nil)
	cert.Close()
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates, NextProtos: []string{proto}}}
	h2.Attach(srv, h2.Config{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.ServeTLS(h2.Listen(ln), "", "") //nolint:errcheck // it ends with the test
	t.Cleanup(func() { srv.Close() })
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(client.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+ln.Addr().String(), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
