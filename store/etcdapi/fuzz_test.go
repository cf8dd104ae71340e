package etcdapi

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
	"github.com/skiff-project/skiff/store/vfs"
)

func putRequest(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value), PrevKv: true}}}
}

// txnSeeds are transactions of every kind.
func txnSeeds() []*pb.TxnRequest {
	del := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("c"), PrevKv: true}}}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 2, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_MOD}}}
	old := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a"), Revision: 2}}}
	keep := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a"), IgnoreValue: true, IgnoreLease: true}}}
	leased := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("l"), Value: []byte("v"), Lease: 7}}}
	var compares []*pb.Compare
	for i, target := range []pb.Compare_CompareTarget{pb.Compare_MOD, pb.Compare_CREATE, pb.Compare_VERSION, pb.Compare_VALUE, pb.Compare_LEASE} {
		compares = append(compares, &pb.Compare{Key: []byte("a"), Target: target, Result: pb.Compare_CompareResult(i % 4), TargetUnion: &pb.Compare_ModRevision{ModRevision: 2}})
	}
	ranged := &pb.Compare{Key: []byte("a"), RangeEnd: []byte("z"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("1")}}
	inner := &pb.TxnRequest{Compare: compares[:2], Success: []*pb.RequestOp{putRequest("n", "1")}, Failure: []*pb.RequestOp{putRequest("n", "2"), get}}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}}
	return []*pb.TxnRequest{
		{}, {Success: []*pb.RequestOp{putRequest("a", "1")}}, {Compare: compares, Success: []*pb.RequestOp{del}, Failure: []*pb.RequestOp{get, old}},
		{Compare: []*pb.Compare{ranged}, Success: []*pb.RequestOp{keep, get}, Failure: []*pb.RequestOp{leased}},
		{Success: []*pb.RequestOp{nested, del, nested}}, {Success: []*pb.RequestOp{nested, putRequest("b", "x"), get}},
	}
}

// FuzzTxn runs arbitrary transactions on a store with a disk. The answer is
// one or a refusal; whatever it is, the store comes back from its log as it was.
func FuzzTxn(f *testing.F) {
	for _, txn := range txnSeeds() {
		b, err := proto.Marshal(txn)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var txn pb.TxnRequest
		if proto.Unmarshal(body, &txn) != nil {
			return
		}
		mem := vfs.NewMem()
		opt := embedded.Options{FS: mem, Dir: "/data", SegmentBytes: 64 << 10, ExtendBytes: 4 << 10}
		db, err := embedded.Open(opt)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		srv, err := New(Config{Store: db, NoGateway: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Leases().Grant(t.Context(), 7, 1000); err != nil {
			t.Fatal(err)
		}
		kv := &kvServer{s: srv}
		for _, r := range []*pb.TxnRequest{txnSeeds()[1], &txn, txnSeeds()[5], &txn} {
			resp, err := kv.Txn(t.Context(), proto.Clone(r).(*pb.TxnRequest))
			switch status.Code(err) {
			case codes.OK:
				if _, err := proto.Marshal(resp); err != nil {
					t.Fatal(err)
				}
			case codes.InvalidArgument, codes.OutOfRange, codes.NotFound, codes.FailedPrecondition:
			default:
				t.Fatalf("refused as a failure of the server: %v", err)
			}
		}
		want := content(t, db)
		again, err := embedded.Open(embedded.Options{FS: mem.CrashClone(rand.New(rand.NewPCG(1, 1)), 0), Dir: "/data"})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if got := content(t, again); !slices.Equal(got, want) {
			t.Fatalf("after a power cut\n%q, before\n%q", got, want)
		}
	})
}

// content is every key at every revision.
func content(t *testing.T, s store.Store) []string {
	var out []string
	for rev := int64(1); rev <= s.Status().Revision; rev++ {
		snap, err := s.Snapshot(t.Context(), rev)
		if err != nil {
			t.Fatal(err)
		}
		for kv := range snap.Range("", "\x00") {
			out = append(out, fmt.Sprint(rev, kv.Key, string(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease))
		}
	}
	return out
}
