package robustness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// firstLease is the ID of the model's lease 1, less one.
const firstLease = 1000

// recorder collects what clients did and saw.
type recorder struct {
	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	// counts of what became of the operations
	acked, unknown, noSpace int
}

func (r *recorder) now() int64 { return int64(time.Since(r.start)) }

func (r *recorder) add(client int, call int64, in request, out response) {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.now()
	if out.unknown {
		end = never
		r.unknown++
	} else {
		r.acked++
	}
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

func newClient(url string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: 2 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}})
}

// client makes random requests, one after the other.
type client struct {
	id      int
	c       *clientv3.Client
	rng     *rand.Rand
	rec     *recorder
	padding int // bytes of each value beside its name
	n       int
	refused int         // for lack of space
	mods    [keys]int64 // last seen, for compare-and-swap
}

// run makes requests until ctx ends.
func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		if !c.do(ctx, c.choose()) {
			// Not known: the server is away. Few such at a time keep the check fast.
			c.waitForServer(ctx)
		}
	}
}

func (c *client) waitForServer(ctx context.Context) {
	for ctx.Err() == nil {
		short, cancel := context.WithTimeout(ctx, time.Second)
		_, err := c.c.Get(short, "/other")
		cancel()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *client) put(key int) op {
	c.n++
	return op{do: 'p', key: key, value: fmt.Sprintf("c%d-%d", c.id, c.n)}
}

func (c *client) choose() request {
	key := c.rng.IntN(keys)
	switch k := c.rng.IntN(100); {
	case k < 30:
		return request{then: []op{c.put(key)}}
	case k < 40:
		o := c.put(key)
		o.lease = 1 + c.rng.IntN(leases)
		return request{then: []op{o}}
	case k < 50:
		return request{then: []op{{do: 'd', key: key}}}
	case k < 65:
		other := (key + 1 + c.rng.IntN(keys-1)) % keys
		return request{compares: true, key: key, mod: c.mods[key], then: []op{c.put(key), c.put(other)},
			els: []op{{do: 'g', key: key}}}
	case k < 70: // several keys, read and written as one
		other := (key + 1 + c.rng.IntN(keys-1)) % keys
		return request{then: []op{{do: 'r'}, c.put(key), {do: 'd', key: other}, {do: 'g', key: key}}}
	case k < 74:
		return request{kind: kindGrant, lease: 1 + c.rng.IntN(leases)}
	case k < 76:
		return request{kind: kindRevoke, lease: 1 + c.rng.IntN(leases)}
	case k < 90:
		return request{then: []op{{do: 'g', key: key}}}
	}
	return request{then: []op{{do: 'r'}}}
}

// do makes one request and reports whether its outcome is known.
func (c *client) do(ctx context.Context, r request) bool {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	call := c.rec.now()
	out, err := c.call(short, r)
	switch {
	case err == nil:
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		out = response{failed: errLease}
	case errors.Is(err, rpctypes.ErrLeaseExist):
		out = response{failed: "lease exists"}
	case errors.Is(err, rpctypes.ErrNoSpace):
		c.rec.mu.Lock()
		c.rec.noSpace++
		c.refused++
		c.rec.mu.Unlock()
		time.Sleep(time.Millisecond)
		return true // refused: nothing has happened
	case r.readOnly():
		return false
	default:
		out = response{unknown: true}
	}
	c.rec.add(c.id, call, r, out)
	return !out.unknown
}

func (r request) readOnly() bool {
	return r.kind == kindTxn && !r.compares && len(r.then) == 1 && strings.ContainsRune("gr", rune(r.then[0].do))
}

func (c *client) call(ctx context.Context, r request) (response, error) {
	switch r.kind {
	case kindGrant:
		_, err := pb.NewLeaseClient(c.c.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(firstLease + r.lease), TTL: 3600})
		return response{}, rpctypes.Error(err)
	case kindRevoke:
		// Not the client's own call: it tries again, and what it did the first
		// time would pass for what others did.
		_, err := pb.NewLeaseClient(c.c.ActiveConnection()).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: int64(firstLease + r.lease)})
		return response{}, rpctypes.Error(err)
	}
	if !r.compares && len(r.then) == 1 {
		return c.single(ctx, r.then[0])
	}
	txn := c.c.Txn(ctx)
	if r.compares {
		txn = txn.If(clientv3.Compare(clientv3.ModRevision(keyName(r.key)), "=", r.mod))
	}
	resp, err := txn.Then(c.ops(r.then)...).Else(c.ops(r.els)...).Commit()
	if err != nil {
		return response{}, err
	}
	out := response{rev: resp.Header.Revision, ok: resp.Succeeded}
	ops := r.els
	if resp.Succeeded {
		ops = r.then
	}
	for i, o := range ops {
		switch o.do {
		case 'p':
			out.results = append(out.results, "")
		case 'd':
			out.results = append(out.results, fmt.Sprint(resp.Responses[i].GetResponseDeleteRange().Deleted))
		default:
			out.results = append(out.results, c.show(o, resp.Responses[i].GetResponseRange().Kvs))
		}
	}
	return out, nil
}

func (c *client) ops(ops []op) []clientv3.Op {
	var out []clientv3.Op
	for _, o := range ops {
		switch o.do {
		case 'p':
			out = append(out, clientv3.OpPut(keyName(o.key), c.pad(o.value), o.options()...))
		case 'd':
			out = append(out, clientv3.OpDelete(keyName(o.key)))
		case 'g':
			out = append(out, clientv3.OpGet(keyName(o.key)))
		case 'r':
			out = append(out, clientv3.OpGet("/r/", clientv3.WithPrefix()))
		}
	}
	return out
}

func (o op) options() []clientv3.OpOption {
	if o.lease == 0 {
		return nil
	}
	return []clientv3.OpOption{clientv3.WithLease(clientv3.LeaseID(firstLease + o.lease))}
}

// single makes a request of one operation by the call of its own.
func (c *client) single(ctx context.Context, o op) (response, error) {
	resp, err := c.c.Do(ctx, c.ops([]op{o})[0])
	if err != nil {
		return response{}, err
	}
	out := response{ok: true}
	switch o.do {
	case 'p':
		out.rev, out.results = resp.Put().Header.Revision, []string{""}
	case 'd':
		out.rev, out.results = resp.Del().Header.Revision, []string{fmt.Sprint(resp.Del().Deleted)}
	default:
		out.rev, out.results = resp.Get().Header.Revision, []string{c.show(o, resp.Get().Kvs)}
	}
	return out, nil
}

func (c *client) pad(value string) string { return value + "|" + strings.Repeat("x", c.padding) }

// unpad takes a value back to its name; damaged ones stay as they are.
func unpad(value []byte) string {
	name, rest, _ := strings.Cut(string(value), "|")
	if strings.Trim(rest, "x") != "" {
		return string(value)
	}
	return name
}

// show writes versions as the model does and remembers their mod revisions.
func (c *client) show(o op, kvs []*mvccpb.KeyValue) string {
	var s state
	for _, kv := range kvs {
		k := int(kv.Key[len(kv.Key)-1] - '0')
		s.kvs[k] = toVersion(kv)
		c.mods[k] = kv.ModRevision
	}
	if o.do == 'g' {
		return s.kvs[o.key].String()
	}
	return s.all()
}

func toVersion(kv *mvccpb.KeyValue) version {
	v := version{value: unpad(kv.Value), create: kv.CreateRevision, mod: kv.ModRevision, ver: kv.Version}
	if kv.Lease != 0 {
		v.lease = int(kv.Lease - firstLease)
	}
	return v
}
