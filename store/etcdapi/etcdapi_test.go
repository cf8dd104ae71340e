package etcdapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

type server struct {
	url string
	s   store.Store
}

func serve(t testing.TB, cfg Config) server {
	t.Helper()
	if cfg.Store == nil {
		s, err := embedded.Open(embedded.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		cfg.Store = s
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- srv.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	scheme := "http://"
	if cfg.TLS != nil {
		scheme = "https://"
	}
	return server{scheme + lis.Addr().String(), cfg.Store}
}

func dial(t testing.TB, url string, conf *tls.Config) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, TLS: conf, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func connect(t testing.TB) (*clientv3.Client, server, context.Context) {
	srv := serve(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return dial(t, srv.url, nil), srv, ctx
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestRangeOptions(t *testing.T) {
	c, _, ctx := connect(t)
	for i, k := range []string{"a", "b", "c", "d"} {
		must(c.Put(ctx, k, fmt.Sprint(9-i))) // revisions 2 to 5
	}
	must(c.Put(ctx, "a", "0")) // revision 6
	show := func(r *clientv3.GetResponse) string {
		var out []string
		for _, kv := range r.Kvs {
			out = append(out, fmt.Sprintf("%s=%s", kv.Key, kv.Value))
		}
		return fmt.Sprintf("%v count %d more %v", out, r.Count, r.More)
	}
	with := func(opts ...clientv3.OpOption) []clientv3.OpOption { return opts }
	cases := []struct {
		key  string
		opts []clientv3.OpOption
		want string
	}{
		{"b", nil, "[b=8] count 1 more false"},
		{"zz", nil, "[] count 0 more false"},
		{"a", with(clientv3.WithRange("c")), "[a=0 b=8] count 2 more false"},
		{"", with(clientv3.WithPrefix(), clientv3.WithLimit(2)), "[a=0 b=8] count 4 more true"},
		{"", with(clientv3.WithPrefix(), clientv3.WithLimit(4)), "[a=0 b=8 c=7 d=6] count 4 more false"},
		{"c", with(clientv3.WithFromKey()), "[c=7 d=6] count 2 more false"},
		{"", with(clientv3.WithPrefix(), clientv3.WithCountOnly()), "[] count 4 more false"},
		{"a", with(clientv3.WithPrefix(), clientv3.WithKeysOnly()), "[a=] count 1 more false"},
		{"", with(clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1)), "[d=6] count 4 more true"},
		{"", with(clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)), "[a=0 d=6 c=7 b=8] count 4 more false"},
		{"", with(clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend)), "[a=0 d=6 c=7 b=8] count 4 more false"},
		{"", with(clientv3.WithPrefix(), clientv3.WithMinModRev(4), clientv3.WithMaxModRev(5)), "[c=7 d=6] count 4 more false"},
		{"a", with(clientv3.WithRev(2)), "[a=9] count 1 more false"},
	}
	for _, tt := range cases {
		if got := show(must(c.Get(ctx, tt.key, tt.opts...))); got != tt.want {
			t.Errorf("get %q: %s, want %s", tt.key, got, tt.want)
		}
	}
	stream := must(c.GetStream(ctx, "", clientv3.WithPrefix()))
	if got := show(must(clientv3.GetStreamToGetResponse(stream))); got != "[a=0 b=8 c=7 d=6] count 4 more false" {
		t.Errorf("streamed range: %s", got)
	}
}

// The texts and codes are etcd's: clientv3 maps them back to its own errors.
func TestErrorsAreEtcds(t *testing.T) {
	c, _, ctx := connect(t)
	must(c.Put(ctx, "k", "v"))
	must(c.Put(ctx, "k", "w"))
	must(c.Compact(ctx, 3))
	put := func(k string, opts ...clientv3.OpOption) error {
		_, err := c.Put(ctx, k, "", opts...)
		return err
	}
	get := func(k string, opts ...clientv3.OpOption) error {
		_, err := c.Get(ctx, k, opts...)
		return err
	}
	txn := func(ops ...clientv3.Op) error {
		_, err := c.Txn(ctx).Then(ops...).Commit()
		return err
	}
	compact := func(rev int64) error {
		_, err := c.Compact(ctx, rev)
		return err
	}
	grant := func(ttl int64) error {
		_, err := c.Grant(ctx, ttl)
		return err
	}
	_, revoke := c.Revoke(ctx, 77)
	_, once := c.KeepAliveOnce(ctx, 77)
	var many []clientv3.Op
	for i := range 129 {
		many = append(many, clientv3.OpPut(fmt.Sprint(i), ""))
	}
	cases := []struct {
		what      string
		err, want error
	}{
		{"empty key", put(""), rpctypes.ErrEmptyKey},
		{"unknown lease", put("x", clientv3.WithLease(99)), rpctypes.ErrLeaseNotFound},
		{"value of a missing key", put("x", clientv3.WithIgnoreValue()), rpctypes.ErrKeyNotFound},
		{"compacted", get("k", clientv3.WithRev(2)), rpctypes.ErrCompacted},
		{"future", get("k", clientv3.WithRev(99)), rpctypes.ErrFutureRev},
		{"future in a txn", txn(clientv3.OpGet("k", clientv3.WithRev(99))), rpctypes.ErrFutureRev},
		{"duplicate", txn(clientv3.OpPut("a", "1"), clientv3.OpPut("a", "2")), rpctypes.ErrDuplicateKey},
		{"too many", txn(many...), rpctypes.ErrTooManyOps},
		{"compact compacted", compact(2), rpctypes.ErrCompacted},
		{"compact future", compact(99), rpctypes.ErrFutureRev},
		{"ttl", grant(1 << 60), rpctypes.ErrLeaseTTLTooLarge},
		{"revoke", revoke, rpctypes.ErrLeaseNotFound},
		{"keep alive", once, rpctypes.ErrLeaseNotFound},
	}
	for _, tt := range cases {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, tt.err, tt.want)
		}
	}
	_, err := c.Put(ctx, "big", strings.Repeat("x", 1600<<10))
	if !errors.Is(err, rpctypes.ErrRequestTooLarge) {
		t.Errorf("large put: %v", err)
	}
}

// The shapes kube-apiserver uses, through etcd's own client for it.
func TestKubernetesShapes(t *testing.T) {
	srv := serve(t, Config{})
	ctx := t.Context()
	k, err := kubernetes.New(clientv3.Config{Endpoints: []string{srv.url}})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	key := "/registry/configmaps/default/a"
	created := must(k.Kubernetes.OptimisticPut(ctx, key, []byte("1"), 0, kubernetes.PutOptions{}))
	again := must(k.Kubernetes.OptimisticPut(ctx, key, []byte("x"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	if !created.Succeeded || again.Succeeded || string(again.KV.Value) != "1" {
		t.Errorf("create: %+v, again: %+v", created, again)
	}
	updated := must(k.Kubernetes.OptimisticPut(ctx, key, []byte("2"), created.Revision, kubernetes.PutOptions{GetOnFailure: true}))
	if !updated.Succeeded || updated.Revision != created.Revision+1 {
		t.Errorf("update: %+v", updated)
	}
	for i := range 5 {
		must(k.Put(ctx, fmt.Sprintf("/registry/pods/default/%d", i), "p"))
	}
	page := must(k.Kubernetes.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 3}))
	next := string(page.Kvs[2].Key) + "\x00"
	rest := must(k.Kubernetes.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 3, Revision: page.Revision, Continue: next}))
	if page.Count != 5 || len(rest.Kvs) != 2 || rest.Count != 2 {
		t.Errorf("pages: count %d, then %d of %d", page.Count, len(rest.Kvs), rest.Count)
	}
	if n := must(k.Kubernetes.Count(ctx, "/registry/pods/", kubernetes.CountOptions{})); n != 5 {
		t.Errorf("count %d", n)
	}
	conflict := must(k.Kubernetes.OptimisticDelete(ctx, key, created.Revision, kubernetes.DeleteOptions{GetOnFailure: true}))
	gone := must(k.Kubernetes.OptimisticDelete(ctx, key, updated.Revision, kubernetes.DeleteOptions{}))
	if conflict.Succeeded || string(conflict.KV.Value) != "2" || !gone.Succeeded {
		t.Errorf("delete: %+v, %+v", conflict, gone)
	}
}

func TestTxnNestedAndOldRevision(t *testing.T) {
	c, _, ctx := connect(t)
	must(c.Put(ctx, "k", "1"))
	must(c.Put(ctx, "k", "2"))
	must(c.Put(ctx, "gone", "x"))
	inner := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision("k"), "=", 3)},
		[]clientv3.Op{clientv3.OpPut("inner", "yes")}, nil)
	res := must(c.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("k"), "=", "2"), clientv3.Compare(clientv3.Version("none"), "=", 0),
			clientv3.Compare(clientv3.CreateRevision("a"), "<", 3).WithRange("l")).
		Then(clientv3.OpGet("k", clientv3.WithRev(2)), clientv3.OpPut("k", "3", clientv3.WithPrevKV()), inner,
			clientv3.OpDelete("gone", clientv3.WithPrevKV()),
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1))).
		Commit())
	if res.Succeeded {
		t.Fatal("a compare over a range ignored one of its keys")
	}
	res = must(c.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "2")).
		Then(clientv3.OpGet("k", clientv3.WithRev(2)), clientv3.OpPut("k", "3", clientv3.WithPrevKV()), inner,
			clientv3.OpDelete("gone", clientv3.WithPrevKV()),
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1))).
		Commit())
	r := res.Responses
	last := r[4].GetResponseRange()
	got := fmt.Sprintf("%s %s %v %s %s of %d more %v", r[0].GetResponseRange().Kvs[0].Value, r[1].GetResponsePut().PrevKv.Value,
		r[2].GetResponseTxn().Succeeded, r[3].GetResponseDeleteRange().PrevKvs[0].Value, last.Kvs[0].Key, last.Count, last.More)
	if want := "1 2 true x k of 2 more true"; got != want {
		t.Errorf("results %s, want %s", got, want)
	}
}

func TestWatchOptions(t *testing.T) {
	c, _, ctx := connect(t)
	must(c.Put(ctx, "a/1", "old"))
	all := c.Watch(ctx, "a/", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	deletes := c.Watch(ctx, "a/", clientv3.WithPrefix(), clientv3.WithFilterPut())
	first := <-all
	if !first.Created {
		t.Fatalf("first response %+v", first)
	}
	var got []string
	read := func(ch clientv3.WatchChan, n int) []string {
		got = nil
		for len(got) < n {
			r := <-ch
			if r.Err() != nil {
				t.Fatal(r.Err())
			}
			for _, ev := range r.Events {
				s := fmt.Sprintf("%v %s=%s", ev.Type, ev.Kv.Key, ev.Kv.Value)
				if ev.PrevKv != nil {
					s += " was " + string(ev.PrevKv.Value)
				}
				got = append(got, s)
			}
		}
		return got
	}
	if got := read(all, 1); !slices.Equal(got, []string{"PUT a/1=old"}) {
		t.Errorf("history: %q", got)
	}
	must(c.Get(ctx, "a")) // the second watch is created by now or its events wait
	time.Sleep(20 * time.Millisecond)
	must(c.Put(ctx, "a/1", "new"))
	must(c.Put(ctx, "b", "other"))
	must(c.Delete(ctx, "a/1"))
	if got := read(all, 2); !slices.Equal(got, []string{"PUT a/1=new was old", "DELETE a/1= was new"}) {
		t.Errorf("live: %q", got)
	}
	if got := read(deletes, 1); !slices.Equal(got, []string{"DELETE a/1="}) {
		t.Errorf("filtered: %q", got)
	}
	must(c.Compact(ctx, 5))
	r := <-c.Watch(ctx, "a/", clientv3.WithPrefix(), clientv3.WithRev(3))
	if !errors.Is(r.Err(), rpctypes.ErrCompacted) || r.CompactRevision != 5 {
		t.Errorf("watch below compaction: %+v", r)
	}
}

func TestWatchFragments(t *testing.T) {
	c, _, ctx := connect(t)
	big := strings.Repeat("x", 1<<20)
	for i := range 6 {
		must(c.Put(ctx, fmt.Sprint("big", i), big))
	}
	n := 0
	for r := range c.Watch(ctx, "big", clientv3.WithPrefix(), clientv3.WithRev(1), clientv3.WithFragment()) {
		if n += len(r.Events); n == 6 {
			return
		}
	}
	t.Errorf("only %d events: %v", n, ctx.Err())
}

// A progress response never runs ahead of events, whoever is writing.
func TestRequestedProgress(t *testing.T) {
	c, _, ctx := connect(t)
	ctx, cancel := context.WithCancel(ctx)
	ch := c.Watch(ctx, "k", clientv3.WithPrefix())
	other := c.Watch(ctx, "other", clientv3.WithPrefix())
	go func() {
		for range other {
		}
	}()
	const puts = 300
	go func() {
		for i := range puts {
			c.Put(ctx, fmt.Sprint("k", i), "")
			if i%3 == 0 {
				c.RequestProgress(ctx)
			}
		}
		for ctx.Err() == nil {
			c.RequestProgress(ctx)
			time.Sleep(10 * time.Millisecond)
		}
	}()
	seen, notifies := int64(1), 0
	for r := range ch {
		if r.IsProgressNotify() {
			notifies++
			// Every put is an event of this watch, so it must be exactly there.
			if r.Header.Revision != seen {
				t.Fatalf("progress says %d, last event was %d", r.Header.Revision, seen)
			}
			if seen == puts+1 {
				break
			}
		}
		for _, ev := range r.Events {
			seen = ev.Kv.ModRevision
		}
	}
	cancel()
	if notifies == 0 {
		t.Error("no progress was reported")
	}
}

// Progress that a client hears of after a watch's beginning is that watch's
// too: it must have had its history by then.
func TestProgressIncludesWatchesThatBegin(t *testing.T) {
	c, _, ctx := connect(t)
	const history, watches = 3000, 50
	for i := range history / 100 {
		ops := make([]clientv3.Op, 100)
		for k := range ops {
			ops[k] = clientv3.OpPut(fmt.Sprintf("k%d", k), "")
		}
		if _, err := c.Txn(ctx).Then(ops...).Commit(); err != nil {
			t.Fatal(i, err)
		}
	}
	stream := must(pb.NewWatchClient(c.ActiveConnection()).Watch(ctx))
	wg := sync.WaitGroup{}
	defer wg.Wait()
	stop := make(chan struct{})
	defer close(stop)
	wg.Go(func() {
		for id := range int64(watches) {
			create := &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 1, WatchId: id + 1}
			stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
			stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
		}
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond): // none may have been due yet
				stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
			}
		}
	})
	seen := map[int64]int{}
	for {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.Created {
			seen[r.WatchId] = 0
		} else if _, ok := seen[r.WatchId]; !ok && r.WatchId != noWatch {
			t.Fatalf("events of watch %d before it is created", r.WatchId)
		}
		if r.WatchId != noWatch {
			seen[r.WatchId] += len(r.Events)
			continue
		}
		for id, n := range seen {
			if n != history {
				t.Fatalf("progress at %d, but watch %d has had %d of %d events", r.Header.Revision, id, n, history)
			}
		}
		if len(seen) == watches {
			return
		}
	}
}

// Watches of one range and stream that stand at one place share what is sent,
// but each gets its own form of it.
func TestWatchesShareOnlyWhatIsTheSame(t *testing.T) {
	c, _, ctx := connect(t)
	stream := must(pb.NewWatchClient(c.ActiveConnection()).Watch(ctx))
	forms := []*pb.WatchCreateRequest{
		{WatchId: 300}, {WatchId: 1, PrevKv: true}, {WatchId: 1 << 40, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}},
		{WatchId: 2}, {WatchId: 3, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}}, {WatchId: 4, Fragment: true},
		{WatchId: 5, PrevKv: true, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}},
	}
	for _, create := range forms {
		create.Key, create.RangeEnd = []byte("k"), []byte("l")
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
			t.Fatal(err)
		}
		must(stream.Recv())
	}
	must(c.Txn(ctx).Then(clientv3.OpPut("k1", "a"), clientv3.OpPut("k2", "b"), clientv3.OpPut("other", "")).Commit())
	must(c.Txn(ctx).Then(clientv3.OpPut("k1", "c"), clientv3.OpDelete("k2")).Commit())
	must(c.Put(ctx, "k3", strings.Repeat("x", 1<<20)))
	must(c.Put(ctx, "k3", strings.Repeat("y", 1<<20)))
	must(c.Put(ctx, "kz", "end"))
	must(c.Delete(ctx, "kz"))
	short := func(kv *mvccpb.KeyValue) string {
		return string(kv.Key) + "=" + string(kv.Value[:min(3, len(kv.Value))])
	}
	got := map[int64][]string{}
	for ends := 0; ends < len(forms); {
		r := must(stream.Recv())
		for _, ev := range r.Events {
			s := fmt.Sprint(ev.Type, " ", short(ev.Kv))
			if ev.PrevKv != nil {
				s += " was " + short(ev.PrevKv)
			}
			got[r.WatchId] = append(got[r.WatchId], s)
			last := mvccpb.Event_DELETE
			if r.WatchId == 3 || r.WatchId == 5 {
				last = mvccpb.Event_PUT
			}
			if string(ev.Kv.Key) == "kz" && ev.Type == last {
				ends++
			}
		}
	}
	const plain = "[PUT k1=a PUT k2=b PUT k1=c DELETE k2= PUT k3=xxx PUT k3=yyy PUT kz=end DELETE kz=]"
	for id, want := range map[int64]string{
		300: plain, 2: plain, 4: plain,
		1:       "[PUT k1=a PUT k2=b PUT k1=c was k1=a DELETE k2= was k2=b PUT k3=xxx PUT k3=yyy was k3=xxx PUT kz=end DELETE kz= was kz=end]",
		1 << 40: "[DELETE k2= DELETE kz=]",
		3:       "[PUT k1=a PUT k2=b PUT k1=c PUT k3=xxx PUT k3=yyy PUT kz=end]",
		5:       "[PUT k1=a PUT k2=b PUT k1=c was k1=a PUT k3=xxx PUT k3=yyy was k3=xxx PUT kz=end]",
	} {
		if s := fmt.Sprint(got[id]); s != want {
			t.Errorf("watch %d:\n got %s\nwant %s", id, s, want)
		}
	}
}

func TestPeriodicProgress(t *testing.T) {
	srv := serve(t, Config{ProgressInterval: 10 * time.Millisecond})
	c := dial(t, srv.url, nil)
	ch := c.Watch(t.Context(), "k", clientv3.WithProgressNotify())
	must(c.Put(t.Context(), "other", ""))
	for r := range ch {
		if r.IsProgressNotify() && r.Header.Revision == 2 {
			return
		}
	}
	t.Error("the watch ended")
}

func TestLeases(t *testing.T) {
	c, _, ctx := connect(t)
	l := must(c.Grant(ctx, 1)) // as short as they come: 2 s
	must(c.Put(ctx, "k", "v", clientv3.WithLease(l.ID)))
	ttl := must(c.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys()))
	if ttl.GrantedTTL != 2 || len(ttl.Keys) != 1 || string(ttl.Keys[0]) != "k" {
		t.Errorf("time to live: %+v", ttl)
	}
	if ls := must(c.Leases(ctx)); len(ls.Leases) != 1 || ls.Leases[0].ID != l.ID {
		t.Errorf("leases: %+v", ls)
	}
	kept, stop := context.WithCancel(ctx)
	ch := must(c.KeepAlive(kept, l.ID))
	for range 2 {
		if r := <-ch; r == nil || r.TTL != 2 {
			t.Fatalf("kept alive: %+v", r)
		}
	}
	stop()
	for r := range c.Watch(ctx, "k") {
		if len(r.Events) == 1 && r.Events[0].Type == clientv3.EventTypeDelete {
			break
		}
	}
	if ttl := must(c.TimeToLive(ctx, l.ID)); ttl.TTL != -1 {
		t.Errorf("ended lease: %+v", ttl)
	}
}

func TestAdmin(t *testing.T) {
	srv := serve(t, Config{Name: "n1", ClientURLs: []string{"http://127.0.0.1:2379"}})
	c, ctx := dial(t, srv.url, nil), t.Context()
	must(c.Put(ctx, "k", "v"))
	st := must(c.Status(ctx, srv.url))
	if st.Version != Version || st.Leader != st.Header.MemberId || st.DbSizeInUse == 0 {
		t.Errorf("status: %+v", st)
	}
	m := must(c.MemberList(ctx))
	if len(m.Members) != 1 || m.Members[0].Name != "n1" || m.Members[0].ID != m.Header.MemberId {
		t.Errorf("members: %+v", m)
	}
	before := must(c.HashKV(ctx, srv.url, 0))
	must(c.Put(ctx, "k", "w"))
	if after := must(c.HashKV(ctx, srv.url, 0)); after.Hash == before.Hash {
		t.Error("the hash does not change with the content")
	}
	if old := must(c.HashKV(ctx, srv.url, 2)); old.Hash != before.Hash {
		t.Error("the hash of a revision changes")
	}
	if a := must(c.AlarmList(ctx)); len(a.Alarms) != 0 {
		t.Errorf("alarms: %+v", a)
	}
	if s := must(c.AuthStatus(ctx)); s.Enabled {
		t.Error("auth is reported on")
	}
	if _, err := c.MemberAdd(ctx, []string{"http://127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "cluster of one") {
		t.Errorf("member add: %v", err)
	}
}

// authority makes certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority() *authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))))
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) issue(name string) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTLSDemandsAClientCertificate(t *testing.T) {
	ca := newAuthority()
	srv := serve(t, Config{TLS: &tls.Config{Certificates: []tls.Certificate{ca.issue("server")},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool}})
	good := &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{ca.issue("client")}}
	c := dial(t, srv.url, good)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must(c.Put(ctx, "k", "v"))
	for name, conf := range map[string]*tls.Config{
		"none":          {RootCAs: ca.pool},
		"of another CA": {RootCAs: ca.pool, Certificates: []tls.Certificate{newAuthority().issue("client")}},
	} {
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		if _, err := dial(t, srv.url, conf).Get(short, "k"); err == nil {
			t.Errorf("client certificate %s: let in", name)
		}
		cancel()
	}
	// HTTP, in both versions, on the same port.
	for _, h2 := range []bool{false, true} {
		hc := &http.Client{Transport: &http.Transport{TLSClientConfig: good.Clone(), ForceAttemptHTTP2: h2}}
		for path, want := range map[string]string{"/health": `{"health":"true","reason":""}`, "/version": Version} {
			resp, err := hc.Get(srv.url + path)
			if err != nil {
				t.Fatalf("HTTP/2 %v: %v", h2, err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if wantMajor := map[bool]int{false: 1, true: 2}[h2]; resp.ProtoMajor != wantMajor || !strings.Contains(string(body), want) {
				t.Errorf("%s by HTTP/%d: %s", path, resp.ProtoMajor, body)
			}
		}
		hc.CloseIdleConnections()
	}
}

func TestHealthOfAStoppedStore(t *testing.T) {
	srv := serve(t, Config{})
	srv.s.Close()
	resp, err := http.Get(srv.url + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s: %s", resp.Status, body)
	}
}

func TestConnectionsThatSayNothingSensible(t *testing.T) {
	srv := serve(t, Config{})
	addr := strings.TrimPrefix(srv.url, "http://")
	for _, junk := range []string{"", "PRI", "\x16\x03\x01garbage", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(junk))
		conn.Close()
	}
	c := dial(t, srv.url, nil)
	must(c.Put(t.Context(), "k", "v"))
}
