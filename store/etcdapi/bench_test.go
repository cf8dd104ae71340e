package etcdapi

import (
	"fmt"
	"sync"
	"syscall"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// BenchmarkWatch: an op is one put of 256 B heard by 1,000 watches of its
// prefix, on ten streams of a connection each as etcd's client makes them. The
// clients, in the same process, only decode what comes.
func BenchmarkWatch(b *testing.B) {
	const streams, watches = 10, 100
	srv := serve(b, Config{})
	ctx := b.Context()
	var hearing sync.WaitGroup
	for range streams {
		stream, err := pb.NewWatchClient(dial(b, srv.url, nil).ActiveConnection()).Watch(ctx)
		if err != nil {
			b.Fatal(err)
		}
		for range watches {
			create := &pb.WatchCreateRequest{Key: []byte("/watched/"), RangeEnd: []byte("/watched0")}
			if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
				b.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil { // created
				b.Fatal(err)
			}
		}
		hearing.Go(func() {
			for n := 0; n < watches*b.N; {
				r, err := stream.Recv()
				if err != nil {
					b.Error(err)
					return
				}
				n += len(r.Events)
			}
		})
	}
	writer, value := dial(b, srv.url, nil), string(make([]byte, 256))
	before := cpuTime()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, err := writer.Put(ctx, fmt.Sprintf("/watched/%d", i), value); err != nil {
			b.Fatal(err)
		}
	}
	hearing.Wait()
	b.ReportMetric(float64(cpuTime()-before)/1000/float64(b.N*streams*watches), "cpu-µs/event")
}

// cpuTime is what this process has used so far. Nanoseconds.
func cpuTime() int64 {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		panic(err)
	}
	return use.Utime.Nano() + use.Stime.Nano()
}
