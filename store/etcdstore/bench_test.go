package etcdstore

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/storetest"
)

const benchKeys = 10_000

func benchStore(b *testing.B) (*Store, *clientv3.Client) {
	members := startCluster(b, 1, quick...)
	s := openStore(b, Options{Endpoints: urls(members)})
	value := make([]byte, 1024)
	for i := 0; i < benchKeys; i += 100 {
		var txn store.Txn
		for j := range 100 {
			txn.Then = append(txn.Then, storetest.Put(fmt.Sprintf("/registry/pods/default/pod-%06d", i+j), string(value)))
		}
		mustTxn(b, s, txn)
	}
	return s, stock(b, members)
}

// One object, newest: the store's read of the revision and the mirror, a
// client's read, and the store's with a hundred readers at once.
func BenchmarkGet(b *testing.B) {
	s, c := benchStore(b)
	const key = "/registry/pods/default/pod-000007"
	get := func(b *testing.B) {
		if snap, err := s.Snapshot(b.Context(), 0); err != nil || snap.Get(key) == nil {
			b.Fatal(err)
		}
	}
	client := func(b *testing.B) {
		if resp, err := c.Get(b.Context(), key); err != nil || len(resp.Kvs) != 1 {
			b.Fatal(err)
		}
	}
	b.Run("store", func(b *testing.B) {
		for b.Loop() {
			get(b)
		}
	})
	b.Run("client", func(b *testing.B) {
		for b.Loop() {
			client(b)
		}
	})
	for name, read := range map[string]func(*testing.B){"store100": get, "client100": client} {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(50)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					read(b)
				}
			})
		})
	}
}

// All objects, newest.
func BenchmarkList10000(b *testing.B) {
	s, c := benchStore(b)
	b.Run("store", func(b *testing.B) {
		for b.Loop() {
			snap, err := s.Snapshot(b.Context(), 0)
			n := 0
			for range snap.Range("/registry/pods/", "/registry/pods0") {
				n++
			}
			if err != nil || n != benchKeys {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("client", func(b *testing.B) {
		for b.Loop() {
			resp, err := c.Get(b.Context(), "/registry/pods/", clientv3.WithPrefix())
			if err != nil || len(resp.Kvs) != benchKeys {
				b.Fatal(err)
			}
		}
	})
}

// One durable write, its result seen in the mirror, against a client's.
func BenchmarkPut(b *testing.B) {
	s, c := benchStore(b)
	b.Run("store", func(b *testing.B) {
		for b.Loop() {
			mustTxn(b, s, put("/registry/pods/default/new", "v"))
		}
	})
	b.Run("client", func(b *testing.B) {
		for b.Loop() {
			stockPut(b, c, "/registry/pods/default/new", "v")
		}
	})
}
