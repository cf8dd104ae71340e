package apiserver_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/store"
)

const largeList = 600 // ConfigMaps of 2 KB: more than one piece

func fillMaps(t *testing.T, s *apiserver.Server) {
	maps := typed(t, s).CoreV1().ConfigMaps("default")
	for i := range largeList {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("map-%03d", i)}, Data: map[string]string{"text": strings.Repeat("<x>", 700)}}
		if _, err := maps.Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLargeListsComeWhole: lists beyond a piece hold each object once, in
// order, in every form, compressed or not, over the network and in process.
func TestLargeListsComeWhole(t *testing.T) {
	s, cfg := newTLSServer(t, nil)
	fillMaps(t, s)
	for _, content := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		for _, plain := range []bool{true, false} {
			cfg := rest.CopyConfig(cfg)
			cfg.ContentType, cfg.DisableCompression = content, plain
			clients := []*kubernetes.Clientset{kubernetes.NewForConfigOrDie(cfg)}
			if plain {
				local := rest.CopyConfig(s.InProcess(admin))
				local.ContentType = content
				clients = append(clients, kubernetes.NewForConfigOrDie(local))
			}
			for _, client := range clients {
				list, err := client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
				if err != nil || len(list.Items) != largeList {
					t.Fatalf("%s, plain %t: %d maps, %v", content, plain, len(list.Items), err)
				}
				for i, m := range list.Items {
					if want := fmt.Sprintf("map-%03d", i); m.Name != want || len(m.Data["text"]) != 2100 || m.ResourceVersion == "" {
						t.Fatalf("%s, plain %t: item %d is %s with %d bytes at %q", content, plain, i, m.Name, len(m.Data["text"]), m.ResourceVersion)
					}
				}
			}
		}
	}
}

// TestStreamingListsAreCompressed: where the client takes it and asks for the bookmark that ends the list, from the
// present objects to each later event, which arrives before there is another; other watches are not.
func TestStreamingListsAreCompressed(t *testing.T) {
	s, cfg := newTLSServer(t, nil)
	fillMaps(t, s)
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	const list = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
	for _, k := range []struct {
		query, encoding string
		compressed      bool
	}{
		{list + "&allowWatchBookmarks=true", "deflate, gzip", true},
		{list + "&allowWatchBookmarks=true", "gzip;q=0", false},
		{list + "&allowWatchBookmarks=true", "identity", false},
		{list, "gzip", false},
		{"&allowWatchBookmarks=true", "gzip", false},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", cfg.Host+"/api/v1/namespaces/default/configmaps?watch=1"+k.query, http.NoBody)
		req.Header.Set("Accept-Encoding", k.encoding)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		told := resp.Header.Get("Content-Encoding") == "gzip" && resp.Header.Get("Vary") == "Accept-Encoding"
		if told != k.compressed {
			t.Errorf("%s, %s: %v", k.query, k.encoding, resp.Header)
		}
		if !k.compressed {
			continue
		}
		sent := &counted{Reader: resp.Body}
		in, err := gzip.NewReader(sent)
		if err != nil {
			t.Fatal(err)
		}
		events, plain := json.NewDecoder(in), 0
		next := func() string {
			var ev struct {
				Type   string
				Object json.RawMessage
			}
			if err := events.Decode(&ev); err != nil {
				t.Fatal(err)
			}
			var obj metav1.PartialObjectMetadata
			if err := json.Unmarshal(ev.Object, &obj); err != nil {
				t.Fatal(err)
			}
			plain += len(ev.Object)
			return ev.Type + " " + obj.Name
		}
		for i := range largeList {
			if got, want := next(), fmt.Sprintf("ADDED map-%03d", i); got != want {
				t.Fatalf("%s, not %s", got, want)
			}
		}
		if got := next(); got != "BOOKMARK " {
			t.Fatalf("%s ends the list", got)
		}
		if sent.n > plain/10 {
			t.Errorf("%d bytes were sent for %d", sent.n, plain)
		}
		for i := range 5 {
			name := fmt.Sprintf("later-%d", i)
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
			if _, err := typed(t, s).CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			if got := next(); got != "ADDED "+name {
				t.Fatalf("%s, not %s", got, name)
			}
		}
		_, counted := newRaw(s).do(t, "GET", "/metrics", "", nil)
		if want := fmt.Sprintf(`apiserver_watch_events_total{group="",resource="configmaps",version="v1"} %d`, largeList+1+5); !strings.Contains(counted, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

type counted struct {
	io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

// TestAnObjectThatCannotBeReadEndsAList: with an error as long as nothing was
// sent, else with a broken connection, never as if it were whole.
func TestAnObjectThatCannotBeReadEndsAList(t *testing.T) {
	var st store.Store
	s, cfg := newTLSServer(t, func(c *apiserver.Config) { st = c.Store })
	fillMaps(t, s)
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []struct{ name, answer string }{{"map-599", "cut"}, {"map-000", "500"}} {
		put := store.Op{Kind: store.OpPut, Key: "/registry/configmaps/default/" + broken.name, Value: []byte("k8s\x00\xff\xff")}
		if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{put}}); err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", cfg.Host+"/api/v1/namespaces/default/configmaps", http.NoBody)
		req.Header.Set("Accept", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		got := fmt.Sprint(resp.StatusCode)
		if err != nil {
			got = "cut"
		}
		if got != broken.answer {
			t.Errorf("%s is broken: %s, %d bytes, %v", broken.name, got, len(data), err)
		}
	}
}
