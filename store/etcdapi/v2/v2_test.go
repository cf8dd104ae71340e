package v2

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

func serve(t testing.TB, db store.Store, clk clock.WithTicker) (*Keys, string) {
	t.Helper()
	k, err := New(Config{Store: db, Clock: clk, Member: Member{ID: 0xab, ClusterID: 0xcd, Name: "m", ClientURLs: func() []string { return []string{"http://h:2379"} }}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	mux := http.NewServeMux()
	k.Register(mux)
	srv := httptest.NewServer(mux)
	t.Cleanup(func() { srv.Close(); cancel(); <-done })
	return k, srv.URL
}

func open(t testing.TB, dir string) *embedded.Store {
	t.Helper()
	db, err := embedded.Open(embedded.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// do sends "METHOD path[?query] [form]" and returns the status and the body.
func do(t testing.TB, base, line string) string {
	t.Helper()
	fields := append(strings.Fields(line), "")
	target := base + "/v2/keys" + fields[1]
	if strings.HasPrefix(fields[1], "//") {
		target = base + "/v2" + fields[1][1:]
	}
	req, err := http.NewRequest(fields[0], target, strings.NewReader(fields[2]))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(body)))
}

// The answers are those of etcd 3.4, but for the first index.
func TestKeys(t *testing.T) {
	_, base := serve(t, open(t, ""), nil)
	for _, tt := range []struct{ send, want string }{
		{"GET /", `200 {"action":"get","node":{"dir":true}}`},
		{"GET /a/b", `404 {"errorCode":100,"message":"Key not found","cause":"/a","index":1}`},
		{"PUT /a value=1", `201 {"action":"set","node":{"key":"/a","value":"1","modifiedIndex":2,"createdIndex":2}}`},
		{"PUT /a value=2", `200 {"action":"set","node":{"key":"/a","value":"2","modifiedIndex":3,"createdIndex":3},"prevNode":{"key":"/a","value":"1","modifiedIndex":2,"createdIndex":2}}`},
		{"PUT /a prevExist=true&value=3", `200 {"action":"update","node":{"key":"/a","value":"3","modifiedIndex":4,"createdIndex":3},"prevNode":{"key":"/a","value":"2","modifiedIndex":3,"createdIndex":3}}`},
		{"PUT /a prevExist=false&value=4", `412 {"errorCode":105,"message":"Key already exists","cause":"/a","index":4}`},
		{"PUT /a prevIndex=3&value=4", `412 {"errorCode":101,"message":"Compare failed","cause":"[3 != 4]","index":4}`},
		{"PUT /a prevValue=x&prevIndex=9&value=4", `412 {"errorCode":101,"message":"Compare failed","cause":"[x != 3] [9 != 4]","index":4}`},
		{"PUT /a?prevValue=3 value=4", `200 {"action":"compareAndSwap","node":{"key":"/a","value":"4","modifiedIndex":5,"createdIndex":3},"prevNode":{"key":"/a","value":"3","modifiedIndex":4,"createdIndex":3}}`},
		{"PUT /a/b value=1", `400 {"errorCode":104,"message":"Not a directory","cause":"/a","index":5}`},
		{"PUT / value=1", `400 {"errorCode":107,"message":"Root is read only","cause":"/","index":5}`},
		{"DELETE /a?prevValue=x", `412 {"errorCode":101,"message":"Compare failed","cause":"[x != 4]","index":5}`},
		{"DELETE /a?prevIndex=5", `200 {"action":"compareAndDelete","node":{"key":"/a","modifiedIndex":6,"createdIndex":3},"prevNode":{"key":"/a","value":"4","modifiedIndex":5,"createdIndex":3}}`},
		{"PUT /d/x/y value=1", `201 {"action":"set","node":{"key":"/d/x/y","value":"1","modifiedIndex":7,"createdIndex":7}}`},
		{"PUT /d/_h value=1&noValueOnSuccess=true", `201 {"action":"set","node":{"key":"/d/_h","modifiedIndex":8,"createdIndex":8}}`},
		{"GET /d", `200 {"action":"get","node":{"key":"/d","dir":true,"nodes":[{"key":"/d/x","dir":true,"modifiedIndex":7,"createdIndex":7}],"modifiedIndex":7,"createdIndex":7}}`},
		{"GET /d?recursive=true&sorted=true", `200 {"action":"get","node":{"key":"/d","dir":true,"nodes":[{"key":"/d/x","dir":true,"nodes":[{"key":"/d/x/y","value":"1","modifiedIndex":7,"createdIndex":7}],"modifiedIndex":7,"createdIndex":7}],"modifiedIndex":7,"createdIndex":7}}`},
		{"GET /d/_h", `200 {"action":"get","node":{"key":"/d/_h","value":"1","modifiedIndex":8,"createdIndex":8}}`},
		{"PUT /d value=1", `403 {"errorCode":102,"message":"Not a file","cause":"/d","index":8}`},
		{"DELETE /d", `403 {"errorCode":102,"message":"Not a file","cause":"/d","index":8}`},
		{"DELETE /d?dir=true", `403 {"errorCode":108,"message":"Directory not empty","cause":"/d","index":8}`},
		{"DELETE /d?recursive=true", `200 {"action":"delete","node":{"key":"/d","dir":true,"modifiedIndex":9,"createdIndex":7},"prevNode":{"key":"/d","dir":true,"modifiedIndex":7,"createdIndex":7}}`},
		{"GET /d/x/y", `404 {"errorCode":100,"message":"Key not found","cause":"/d","index":9}`},
		{"POST /q value=1", `201 {"action":"create","node":{"key":"/q/00000000000000000010","value":"1","modifiedIndex":10,"createdIndex":10}}`},
		{"PUT /q?dir=true", `403 {"errorCode":102,"message":"Not a file","cause":"/q","index":10}`},
		{"PUT /a ttl=x", `400 {"errorCode":202,"message":"The given TTL in POST form is not a number","cause":"invalid value for \"ttl\"","index":0}`},
		{"PUT /a prevIndex=x", `400 {"errorCode":203,"message":"The given index in POST form is not a number","cause":"invalid value for \"prevIndex\"","index":0}`},
		{"PUT /a prevExist=x", `400 {"errorCode":209,"message":"Invalid field","cause":"invalid value for prevExist","index":0}`},
		{"PUT /a prevValue=", `400 {"errorCode":201,"message":"PrevValue is Required in POST form","cause":"\"prevValue\" cannot be empty","index":0}`},
		{"PATCH /a", "405 Method Not Allowed"},
		{"GET //members", `200 {"members":[{"id":"ab","name":"m","peerURLs":null,"clientURLs":["http://h:2379"]}]}`},
		{"GET //stats/leader", `200 {"followers":{},"leader":"ab"}`},
	} {
		if got := do(t, base, tt.send); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.send, got, tt.want)
		}
	}
}

func TestWaitReplaysAndFollows(t *testing.T) {
	_, base := serve(t, open(t, ""), nil)
	do(t, base, "PUT /a value=1")   // 2
	do(t, base, "PUT /d/b value=1") // 3
	do(t, base, "DELETE /d?recursive=true")
	for _, tt := range []struct{ send, want string }{
		{"GET /a?wait=true&waitIndex=1", `"action":"set","node":{"key":"/a"`},
		{"GET /?wait=true&recursive=true&waitIndex=3", `"action":"set","node":{"key":"/d/b"`},
		{"GET /d/b?wait=true&waitIndex=4", `"action":"delete","node":{"key":"/d"`},
	} {
		if got := do(t, base, tt.send); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s", tt.send, got)
		}
	}
	// The headers come at once; the event when there is one.
	resp, err := http.Get(base + "/v2/keys/new?wait=true&recursive=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("X-Etcd-Index"); got != "4" {
		t.Errorf("X-Etcd-Index %q, want 4", got)
	}
	do(t, base, "PUT /new/_hidden value=1")
	do(t, base, "PUT /new/seen value=1")
	if body, _ := io.ReadAll(resp.Body); !strings.Contains(string(body), `"/new/seen"`) {
		t.Errorf("waited for /new/seen, got %s", body)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	db := open(t, "")
	_, base := serve(t, db, nil)
	for i := range 2*historyLength + 10 {
		do(t, base, fmt.Sprintf("PUT /a value=%d", i))
	}
	if st := db.Status(); st.Revision-st.CompactRevision > 2*historyLength {
		t.Errorf("history from %d to %d", st.CompactRevision, st.Revision)
	}
	if got := do(t, base, "GET /a?wait=true&waitIndex=2"); !strings.HasPrefix(got, `400 {"errorCode":401`) {
		t.Errorf("a wait before the history: %s", got)
	}
}

func TestTimeToLive(t *testing.T) {
	dir := t.TempDir()
	clk := testclock.NewFakeClock(time.Now())
	db := open(t, dir)
	k, base := serve(t, db, clk)
	if got := do(t, base, "PUT /a value=1&ttl=100"); !strings.Contains(got, `"ttl":100`) {
		t.Errorf("set: %s", got)
	}
	do(t, base, "PUT /keep value=1&ttl=100")
	do(t, base, "PUT /keep value=1&prevExist=true")
	do(t, base, "PUT /b value=1&ttl=100")
	clk.Step(99 * time.Second)
	if got := do(t, base, "PUT /b refresh=true&ttl=100&prevExist=true"); !strings.Contains(got, `"value":"1"`) {
		t.Errorf("refresh: %s", got)
	}
	if got := do(t, base, "PUT /b refresh=true&prevExist=true"); !strings.Contains(got, `"errorCode":212`) {
		t.Errorf("refresh without a time: %s", got)
	}
	index := k.index()
	clk.Step(2 * time.Second)
	want := `"action":"expire","node":{"key":"/a"`
	if got := do(t, base, fmt.Sprintf("GET /a?wait=true&waitIndex=%d", index+1)); !strings.Contains(got, want) {
		t.Errorf("after the time has ended: %s", got)
	}
	if got := do(t, base, "GET /?recursive=true"); strings.Contains(got, `"/a"`) || !strings.Contains(got, `"/b"`) || !strings.Contains(got, `"/keep"`) {
		t.Errorf("left over: %s", got)
	}
	// A restart keeps what is left of the time.
	k2, err := New(Config{Store: db, Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	if p, at := k2.earliest(); p != "/b" || at.Sub(clk.Now()) > 200*time.Second {
		t.Errorf("after a restart %q ends first, at %v", p, at)
	}
}
