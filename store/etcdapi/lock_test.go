package etcdapi

import (
	"context"
	"errors"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"

	"github.com/skiff-project/skiff/store/embedded"
)

func TestLockService(t *testing.T) {
	c, _, ctx := connect(t)
	conn := c.ActiveConnection()
	lock := func(ctx context.Context, lease int64) (string, error) {
		out := &lockResponse{}
		err := conn.Invoke(ctx, "/v3lockpb.Lock/Lock", &lockRequest{Name: []byte("n"), Lease: lease}, out)
		return string(out.Key), err
	}
	one, two := int64(must(c.Grant(ctx, 100)).ID), int64(must(c.Grant(ctx, 100)).ID)
	key, err := lock(ctx, one)
	if err != nil || !strings.HasPrefix(key, "n/") {
		t.Fatalf("lock: %q, %v", key, err)
	}
	if again, err := lock(ctx, one); err != nil || again != key {
		t.Errorf("the holder asks again: %q, %v", again, err)
	}
	got := make(chan string)
	go func() {
		key, err := lock(ctx, two)
		if err != nil {
			t.Error(err)
		}
		got <- key
	}()
	// The second waits: its key stands behind the first.
	w := c.Watch(ctx, "n/", clientv3.WithPrefix(), clientv3.WithRev(1))
	for n := 0; n < 2; {
		n += len((<-w).Events)
	}
	select {
	case key := <-got:
		t.Fatalf("%s got a lock that is held", key)
	default:
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := lock(gone, 0); err == nil {
		t.Error("a canceled wait got the lock")
	}
	if err := conn.Invoke(ctx, "/v3lockpb.Lock/Unlock", &unlockRequest{Key: []byte(key)}, &headerResponse{}); err != nil {
		t.Fatal(err)
	}
	if second := <-got; second == key || second == "" {
		t.Errorf("after the unlock %q holds", second)
	}
}

// etcd's own recipe and the service see each other.
func TestElectionService(t *testing.T) {
	c, _, ctx := connect(t)
	conn := c.ActiveConnection()
	leader := func() (*leaderResponse, error) {
		out := &leaderResponse{}
		return out, conn.Invoke(ctx, "/v3electionpb.Election/Leader", &leaderRequest{Name: []byte("e")}, out)
	}
	if _, err := leader(); err == nil || !strings.Contains(err.Error(), "election: no leader") {
		t.Errorf("leader of none: %v", err)
	}
	won := &campaignResponse{}
	if err := conn.Invoke(ctx, "/v3electionpb.Election/Campaign", &campaignRequest{Name: []byte("e"), Value: []byte("a")}, won); err != nil {
		t.Fatal(err)
	}
	stream := must(conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/v3electionpb.Election/Observe"))
	if err := stream.SendMsg(&leaderRequest{Name: []byte("e")}); err != nil {
		t.Fatal(err)
	}
	next := func(want string) {
		t.Helper()
		out := &leaderResponse{}
		if err := stream.RecvMsg(out); err != nil || string(out.Kv.Value) != want {
			t.Errorf("observed %v, %v; want %s", out, err, want)
		}
	}
	next("a")
	if err := conn.Invoke(ctx, "/v3electionpb.Election/Proclaim", &proclaimRequest{Leader: won.Leader, Value: []byte("b")}, &headerResponse{}); err != nil {
		t.Fatal(err)
	}
	next("b")
	session := must(concurrency.NewSession(c))
	election := concurrency.NewElection(session, "e")
	done := make(chan error)
	go func() { done <- election.Campaign(ctx, "c") }()
	if err := conn.Invoke(ctx, "/v3electionpb.Election/Resign", &resignRequest{Leader: won.Leader}, &headerResponse{}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	next("c")
	stale := &headerResponse{}
	if err := conn.Invoke(ctx, "/v3electionpb.Election/Proclaim", &proclaimRequest{Leader: won.Leader}, stale); err == nil || !strings.Contains(err.Error(), "not leader") {
		t.Errorf("a former leader proclaims: %v", err)
	}
	if err := conn.Invoke(ctx, "/v3electionpb.Election/Resign", &resignRequest{}, stale); err == nil {
		t.Error("resigned as nobody")
	}
}

func TestAlarms(t *testing.T) {
	c, _, ctx := connect(t)
	kv, m := pb.NewKVClient(c.ActiveConnection()), pb.NewMaintenanceClient(c.ActiveConnection())
	alarm := func(action pb.AlarmRequest_AlarmAction, typ pb.AlarmType) []*pb.AlarmMember {
		return must(m.Alarm(ctx, &pb.AlarmRequest{Action: action, Alarm: typ, MemberID: 9})).Alarms
	}
	put := func() error {
		_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
		return err
	}
	alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE)
	if err := put(); err == nil || !strings.Contains(err.Error(), "etcdserver: mvcc: database space exceeded") {
		t.Errorf("put under NOSPACE: %v", err)
	}
	if _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k")}); err != nil {
		t.Errorf("delete under NOSPACE: %v", err)
	}
	if got := alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE); len(got) != 1 || got[0].MemberID != 9 {
		t.Errorf("alarms %v", got)
	}
	alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE)
	if err := put(); err != nil {
		t.Errorf("put after the alarm: %v", err)
	}
	alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT)
	if err := put(); err == nil || !strings.Contains(err.Error(), "etcdserver: corrupt cluster") {
		t.Errorf("put under CORRUPT: %v", err)
	}
	if _, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")}); err != nil {
		t.Errorf("get under CORRUPT: %v", err)
	}
}

// A full store: writes are refused and NOSPACE is raised; reads, deletions and
// compactions go on. Compaction makes room, and the alarm lasts until it is
// disarmed, over a restart of the server too.
func TestNoSpaceAlarm(t *testing.T) {
	db, err := embedded.Open(embedded.Options{QuotaBytes: 50_000})
	if err != nil {
		t.Fatal(err)
	}
	side, err := embedded.Open(embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(); side.Close() })
	ctx := t.Context()
	c := dial(t, serve(t, Config{Store: db, Side: side, MemberID: 7}).url, nil)
	for err = nil; err == nil; {
		_, err = c.Put(ctx, "k", strings.Repeat("x", 1000))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) || err.Error() != "etcdserver: mvcc: database space exceeded" {
		t.Fatalf("puts end with %v", err)
	}
	raised := func(c *clientv3.Client) bool {
		a := must(c.AlarmList(ctx)).Alarms
		return len(a) == 1 && a[0].MemberID == 7 && a[0].Alarm == pb.AlarmType_NOSPACE
	}
	if !raised(c) {
		t.Errorf("alarms: %v", must(c.AlarmList(ctx)).Alarms)
	}
	if _, err := c.Grant(ctx, 10); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("grant: %v", err)
	}
	rev := must(c.Get(ctx, "k")).Header.Revision
	if _, err := c.Delete(ctx, "nothing"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := c.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		t.Errorf("compact: %v", err)
	}
	if _, err := c.Defragment(ctx, c.Endpoints()[0]); err != nil {
		t.Errorf("defragment: %v", err)
	}
	again := dial(t, serve(t, Config{Store: db, Side: side, MemberID: 7}).url, nil)
	for name, c := range map[string]*clientv3.Client{"the server": c, "one started later": again} {
		if _, err := c.Put(ctx, "k", "v"); !errors.Is(err, rpctypes.ErrNoSpace) || !raised(c) {
			t.Errorf("%s forgets the alarm: %v", name, err)
		}
	}
	if _, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Error(err)
	}
	for err = rpctypes.ErrNoSpace; errors.Is(err, rpctypes.ErrNoSpace); { // what was compacted is freed in the background
		c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		_, err = c.Put(ctx, "k", "v")
	}
	if err != nil || raised(c) {
		t.Errorf("after the alarm: %v", err)
	}
}
