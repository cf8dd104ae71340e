//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

var storeSuite = suite{
	name: "store", limit: 10 * time.Minute, run: runStore,
	about: "`skiff etcd` and etcd, by etcd's own client library over TLS; both sync each write to the same disk before they answer. " +
		"What is in process is Skiff's store alone, the caller's CPU included.",
	budgets: map[string]string{
		"put of 256 B, 1,000 clients: server CPU": "1/2", "put of 256 B, 1,000 clients: rate": "1.5×",
		"in process, put of 256 B, 256 goroutines: CPU": "10 µs",
	},
}

// database is a running store of either kind.
type database struct {
	cmd    *os.Process
	exited chan error
	tls    *tls.Config
	log    string
}

const storeAddress = "127.0.0.1:2379"

func runStore(ctx context.Context, r *round) error {
	assets, err := bootstrap.Ensure(bootstrap.Options{DataDir: filepath.Join(r.Dir, "conf"), NodeName: "bench", NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Server: "https://127.0.0.1:6443"})
	if err != nil {
		return err
	}
	for _, part := range []struct {
		dir string
		run func(context.Context, *database, *bootstrap.Assets) error
	}{{"small", r.storeCalls}, {"large", r.largeStore}} {
		db, err := r.openDatabase(ctx, part.dir, assets)
		if err != nil {
			return err
		}
		if err := errors.Join(part.run(ctx, db, assets), db.stop()); err != nil {
			return err
		}
	}
	if r.System == skiff {
		return r.inProcess(ctx)
	}
	return nil
}

// openDatabase starts a store and waits until it answers.
func (r *round) openDatabase(ctx context.Context, dir string, a *bootstrap.Assets) (*database, error) {
	const url, peer = "https://" + storeAddress, "http://127.0.0.1:2380"
	args := []string{
		"--name=bench", "--data-dir=" + filepath.Join(r.Dir, dir), "--listen-client-urls=" + url, "--advertise-client-urls=" + url,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=bench=" + peer,
		"--client-cert-auth", "--trusted-ca-file=" + a.EtcdCA.CertFile, "--cert-file=" + a.EtcdServer.CertFile, "--key-file=" + a.EtcdServer.KeyFile,
		"--quota-backend-bytes=8589934592", "--log-level=warn",
	}
	program := r.Tools.path("etcd")
	if r.System == skiff {
		program, args = r.Skiff, append([]string{"etcd"}, args...)
	}
	db := &database{log: filepath.Join(r.Dir, "store.log"), tls: &tls.Config{
		RootCAs: a.EtcdCA.Pool(), Certificates: []tls.Certificate{a.EtcdHealthcheck.TLS()}, ServerName: "127.0.0.1",
	}}
	cmd, exited, err := spawn(db.log, program, args...)
	if err != nil {
		return nil, err
	}
	db.cmd, db.exited = cmd.Process, exited
	// The port first: a client that finds none waits a second before it looks again.
	var client *clientv3.Client
	err = within(ctx, 2*time.Minute, "the store", func(ctx context.Context) error {
		if len(exited) > 0 {
			return stop{fmt.Errorf("it ended\n%s", tail(db.log))}
		}
		if client == nil {
			conn, err := net.Dial("tcp", storeAddress)
			if err != nil {
				return err
			}
			conn.Close()
			if client, err = db.dial(); err != nil {
				return stop{err}
			}
		}
		_, err := client.Get(ctx, "none")
		return err
	})
	if client != nil {
		client.Close()
	}
	if err != nil {
		return nil, errors.Join(err, db.stop())
	}
	return db, nil
}

func (d *database) stop() error {
	_ = d.cmd.Signal(syscall.SIGTERM)
	return <-d.exited
}

// dial opens a connection of its own.
func (d *database) dial() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{storeAddress}, TLS: d.tls, DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second})},
	})
}

// pool opens a connection for each ten clients.
func (d *database) pool(clients int) (list []*clientv3.Client, done func(), err error) {
	done = func() {
		for _, c := range list {
			c.Close()
		}
	}
	for range (clients + 9) / 10 {
		c, err := d.dial()
		if err != nil {
			done()
			return nil, nil, err
		}
		list = append(list, c)
	}
	return list, done, nil
}

// timed is measure with the latencies of the operations.
func (r *round) timed(ctx context.Context, name string, l load, op func(ctx context.Context, worker, i int) error) error {
	var mu sync.Mutex
	var all []time.Duration
	err := r.measure(ctx, name, l, func(ctx context.Context, w, i int) error {
		began := time.Now()
		err := op(ctx, w, i)
		took := time.Since(began)
		mu.Lock()
		all = append(all, took)
		mu.Unlock()
		return err
	})
	if err == nil {
		r.duration(name+": p50", quantile(all, 0.5))
		r.duration(name+": p99", quantile(all, 0.99))
	}
	return err
}

func (r *round) storeCalls(ctx context.Context, db *database, _ *bootstrap.Assets) error {
	many, done, err := db.pool(1000)
	if err != nil {
		return err
	}
	defer done()
	if err := r.idleStore(ctx); err != nil {
		return err
	}
	for _, size := range []struct {
		name  string
		bytes int
	}{{"256 B", 256}, {"1 KiB", 1024}} {
		value := strings.Repeat("v", size.bytes)
		for _, n := range []int{1, 16, 256, 1000} {
			name := fmt.Sprintf("put of %s, %s clients", size.name, number(float64(n)))
			name = strings.Replace(name, " 1 clients", " 1 client", 1)
			err := r.timed(ctx, name, load{workers: n, span: 1500 * time.Millisecond}, func(ctx context.Context, w, i int) error {
				_, err := many[w/10].Put(ctx, fmt.Sprintf("/put/%05d", i%10_000), value)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return errors.Join(r.storeReads(ctx, many), r.storeWatches(ctx, many))
}

// storeReads measures the other calls of an API server; its creation is a
// transaction that puts only where nothing is.
func (r *round) storeReads(ctx context.Context, many []*clientv3.Client) error {
	value := strings.Repeat("v", 256)
	if _, _, err := (load{workers: 64, count: 10_000}).do(ctx, func(ctx context.Context, w, i int) error {
		_, err := many[w].Put(ctx, fmt.Sprintf("/range/%05d", i), value)
		return err
	}); err != nil {
		return err
	}
	span := load{workers: 256, span: 1500 * time.Millisecond}
	err := r.timed(ctx, "linearizable get, 256 clients", span, func(ctx context.Context, w, i int) error {
		_, err := many[w/10].Get(ctx, fmt.Sprintf("/range/%05d", i%10_000))
		return err
	})
	if err != nil {
		return err
	}
	err = r.timed(ctx, "create by transaction, 256 clients", span, func(ctx context.Context, w, i int) error {
		key := fmt.Sprintf("/txn/%08d", i)
		resp, err := many[w/10].Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
		if err == nil && !resp.Succeeded {
			err = fmt.Errorf("%s is there", key)
		}
		return err
	})
	if err != nil {
		return err
	}
	return r.measure(ctx, "range of 10,000 keys", load{workers: 1, count: 10}, func(ctx context.Context, _, _ int) error {
		resp, err := many[0].Get(ctx, "/range/", clientv3.WithPrefix())
		if err == nil && len(resp.Kvs) != 10_000 {
			err = fmt.Errorf("%d keys", len(resp.Kvs))
		}
		return err
	})
}

// storeWatches measures puts on their way to all who watch their prefix.
func (r *round) storeWatches(ctx context.Context, many []*clientv3.Client) error {
	const watchers, events = 1000, 100
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var seen atomic.Int64
	var ready sync.WaitGroup
	for i := range watchers {
		ready.Add(1)
		channel := many[i%10].Watch(ctx, "/watched/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		go func() {
			for resp := range channel {
				if resp.Created {
					ready.Done()
				}
				seen.Add(int64(len(resp.Events)))
			}
		}()
	}
	ready.Wait()
	list := servers()
	before, began := running(list), time.Now()
	for i := range events {
		if _, err := many[50].Put(ctx, fmt.Sprintf("/watched/%d", i), strings.Repeat("v", 256)); err != nil {
			return err
		}
	}
	err := within(ctx, time.Minute, "the events", func(context.Context) error {
		if n := seen.Load(); n < watchers*events {
			return fmt.Errorf("%d of %d have come", n, watchers*events)
		}
		return nil
	})
	r.perOperation("event to one of 1,000 watchers", running(list)-before, watchers*events, time.Since(began))
	return err
}

// idleStore measures what a store does when nothing is asked of it.
func (r *round) idleStore(ctx context.Context) error {
	if err := sleep(ctx, 2*time.Second); err != nil {
		return err
	}
	list := servers()
	before, began, bytes := running(list), time.Now(), list[0].written()
	if err := sleep(ctx, 10*time.Second); err != nil {
		return err
	}
	took := time.Since(began)
	r.figure("idle: CPU", "%", 100*(running(list)-before).Seconds()/took.Seconds())
	r.figure("idle: written", "MB/h", (list[0].written()-bytes)/1e6*float64(time.Hour)/float64(took))
	return nil
}

// largeStore fills a store, by transactions of 100 puts, and starts it again.
func (r *round) largeStore(ctx context.Context, db *database, a *bootstrap.Assets) error {
	many, done, err := db.pool(160)
	if err != nil {
		return err
	}
	defer done()
	value := strings.Repeat("v", 1024)
	list := servers()
	before := running(list)
	n, took, err := load{workers: 16, count: r.Keys / 100}.do(ctx, func(ctx context.Context, w, i int) error {
		ops := make([]clientv3.Op, 100)
		for k := range ops {
			ops[k] = clientv3.OpPut(fmt.Sprintf("/large/%09d", 100*i+k), value)
		}
		_, err := many[w].Txn(ctx).Then(ops...).Commit()
		return err
	})
	if err != nil {
		return err
	}
	name := number(float64(r.Keys)) + " keys of 1 KiB: "
	r.perOperation(name+"fill", running(list)-before, 100*n, took)
	if err := sleep(ctx, 5*time.Second); err != nil {
		return err
	}
	r.figure(name+"memory (PSS)", "MB", memory(list))
	if err := db.stop(); err != nil {
		return err
	}
	began := time.Now()
	again, err := r.openDatabase(ctx, "large", a)
	if err != nil {
		return err
	}
	*db = *again
	r.duration(name+"restart", time.Since(began))
	r.duration(name+"restart: CPU", running(servers()))
	return nil
}

// inProcess measures Skiff's store as the API server has it.
func (r *round) inProcess(ctx context.Context) error {
	s, err := embedded.Open(embedded.Options{Dir: filepath.Join(r.Dir, "embedded")})
	if err != nil {
		return err
	}
	value := []byte(strings.Repeat("v", 256))
	for _, n := range []int{1, 256} {
		runtime.GC()
		self := []process{{pid: os.Getpid()}}
		before := running(self)
		done, took, err := load{workers: n, span: 1500 * time.Millisecond}.do(ctx, func(ctx context.Context, _, i int) error {
			_, err := s.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: fmt.Sprintf("/put/%05d", i%10_000), Value: value}}})
			return err
		})
		if err != nil {
			return errors.Join(err, s.Close())
		}
		name := fmt.Sprintf("in process, put of 256 B, %d goroutines: ", n)
		name = strings.Replace(name, " 1 goroutines", " 1 goroutine", 1)
		r.figure(name+"CPU", "µs", float64((running(self)-before).Nanoseconds())/1000/float64(done))
		r.figure(name+"rate", "/s", float64(done)/took.Seconds())
	}
	return s.Close()
}
