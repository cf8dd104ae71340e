// Package alloc hands out service addresses and node ports. Who has an address
// is kept as an IPAddress object, which ports are taken in one bitmap: both in
// the store, as upstream keeps them, so that all servers on one store agree.
// Both are repaired from time to time. Allocators are safe for concurrent use.
package alloc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// Errors of an allocation; these and the two below are upstream's texts.
var (
	ErrAllocated     = errors.New("provided IP is already allocated")
	ErrPortAllocated = errors.New("provided port is already allocated")
	ErrFull          = errors.New("range is full")
)

var (
	errOtherRange = errors.New("the provided range does not match the current range")
	errNoPorts    = fmt.Errorf("cannot allocate resources of type %s at this time", portsResource)
)

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last int }

// String writes the range as "first-last".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

func (r PortRange) holds(port int) bool { return port >= r.First && port <= r.Last }

const (
	portsKey = registry.Root + "ranges/servicenodeports"
	// attempts to change what another server changes too. Each that fails is
	// one in which another got on.
	attempts = 100
)

// portsResource is what upstream's encryption configurations call the object.
var portsResource = schema.GroupResource{Resource: "servicenodeportallocations"}

// Ports keeps which node ports are taken: upstream's RangeAllocation, under
// upstream's key. A port is one for all protocols.
type Ports struct {
	store      store.Store
	encryption *encryption.Resource
	r          PortRange
	log        *slog.Logger

	mu    sync.Mutex  // one change of this server at a time; more would only conflict
	leaks map[int]int // how many repairs found a port taken that no Service has
}

// NewPorts returns the allocator of the ports of r, which must be within 1 to
// 65535. Before the first Repair it may have none to give.
func NewPorts(s store.Store, enc *encryption.Set, r PortRange, log *slog.Logger) (*Ports, error) {
	if r.First < 1 || r.Last < r.First || r.Last > 65535 {
		return nil, fmt.Errorf("node port range %s is no port range", r)
	}
	return &Ports{store: s, encryption: enc.For(portsResource), r: r, log: log}, nil
}

// kept is what the store says.
type kept struct {
	kv     *store.KV // nil: nothing
	stale  bool      // it ought to be encrypted otherwise
	broken error     // why kv says nothing
	obj    corev1.RangeAllocation
	taken  big.Int // a bit for each port, by its number
}

func (p *Ports) read(ctx context.Context) (*kept, error) {
	snap, err := p.store.Snapshot(ctx, 0)
	if err != nil {
		return nil, err
	}
	k := &kept{kv: snap.Get(portsKey)}
	if k.kv == nil {
		return k, nil
	}
	value, stale, err := p.encryption.Now().Open(portsKey, k.kv.Value)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be decrypted: %w", portsKey, err)
	}
	k.stale = stale
	if k.broken = k.decode(value); k.broken != nil {
		k.obj = corev1.RangeAllocation{}
	}
	return k, nil
}

func (k *kept) decode(value []byte) error {
	if wire.IsProtobuf(value) {
		env, err := wire.Open(value)
		if err != nil {
			return err
		}
		if env.Kind != "RangeAllocation" {
			return fmt.Errorf("it is a %s", env.Kind)
		}
		if err := k.obj.Unmarshal(env.Raw); err != nil {
			return err
		}
	} else if err := json.Unmarshal(value, &k.obj); err != nil {
		return fmt.Errorf("neither protobuf nor JSON: %w", err)
	}
	r, err := utilnet.ParsePortRange(k.obj.Range)
	if err != nil {
		return err
	}
	k.taken.Lsh(k.taken.SetBytes(k.obj.Data), uint(r.Base))
	return nil
}

// write stores which ports are taken if k is still what the store has; done
// tells whether it was. What changes nothing is not written.
func (p *Ports) write(ctx context.Context, k *kept, taken *big.Int) (done bool, err error) {
	data, rev := new(big.Int).Rsh(taken, uint(p.r.First)).Bytes(), int64(0)
	if k.kv != nil {
		if !k.stale && k.broken == nil && k.obj.Range == p.r.String() && bytes.Equal(k.obj.Data, data) {
			return true, nil
		}
		rev = k.kv.ModRevision
	}
	k.obj.Range, k.obj.Data = p.r.String(), data
	value, err := wire.Seal("v1", "RangeAllocation", &k.obj)
	if err != nil {
		return false, err
	}
	if value, err = p.encryption.Now().Seal(portsKey, value); err != nil {
		return false, fmt.Errorf("%s cannot be encrypted: %w", portsKey, err)
	}
	res, err := p.store.Txn(ctx, store.Txn{
		If:   []store.Compare{{Key: portsKey, Target: store.TargetMod, Int: rev}},
		Then: []store.Op{{Kind: store.OpPut, Key: portsKey, Value: value}},
	})
	return res.Succeeded, err
}

// change stores what f makes of the taken ports; f is called again when
// another server was faster. A dry run stores nothing.
func (p *Ports) change(ctx context.Context, dryRun bool, f func(taken *big.Int) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range attempts {
		k, err := p.read(ctx)
		switch {
		case err != nil:
			return err
		case k.kv == nil:
			return errNoPorts
		case k.broken != nil:
			return fmt.Errorf("%w: %s is unreadable: %w", errNoPorts, portsKey, k.broken)
		case k.obj.Range != p.r.String():
			return errOtherRange
		}
		if err := f(&k.taken); err != nil || dryRun {
			return err
		}
		if done, err := p.write(ctx, k, &k.taken); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s was changed %d times by others meanwhile; try again", portsKey, attempts)
}

// claim is a port that a Service is to get.
type claim struct {
	port int32                 // 0: any
	into []*int32              // fields of the Service that show it
	fail func(err error) error // tells the client that it was not to be had
}

// take takes all the ports claimed, or none, and fills them in.
func (p *Ports) take(ctx context.Context, claims []*claim, dryRun bool) (got []int, err error) {
	at := 0
	err = p.change(ctx, dryRun, func(taken *big.Int) error {
		got = got[:0]
		var c *claim
		for at, c = range claims {
			port, err := p.pick(taken, int(c.port))
			if err != nil {
				return err
			}
			taken.SetBit(taken, port, 1)
			got = append(got, port)
		}
		at = 0
		return nil
	})
	if err != nil {
		return nil, claims[at].fail(err)
	}
	for i, c := range claims {
		for _, field := range c.into {
			*field = int32(got[i])
		}
	}
	return got, nil
}

// pick finds a port that can be had: the one asked for, or for 0 any.
func (p *Ports) pick(taken *big.Int, port int) (int, error) {
	switch {
	case port == 0:
		return p.next(taken)
	case !p.r.holds(port):
		return 0, fmt.Errorf("provided port is not in the valid range. The range of valid ports is %s", p.r)
	case taken.Bit(port) == 1:
		return 0, ErrPortAllocated
	}
	return port, nil
}

// next is a free port: the lower part of the range is left to those who ask
// for a port by its number until the upper one is full.
func (p *Ports) next(taken *big.Int) (int, error) {
	size, lower := p.r.Last-p.r.First+1, 0
	if size > 16 {
		lower = min(max(16, size/32), 128)
	}
	for _, part := range [][2]int{{lower, size}, {0, lower}} {
		n := part[1] - part[0]
		if n == 0 {
			continue
		}
		start := rand.IntN(n)
		for i := range n {
			if port := p.r.First + part[0] + (start+i)%n; taken.Bit(port) == 0 {
				return port, nil
			}
		}
	}
	return 0, ErrFull
}

// free gives ports back; those that are not taken are ignored.
func (p *Ports) free(ctx context.Context, ports []int) error {
	if len(ports) == 0 {
		return nil
	}
	return p.change(ctx, false, func(taken *big.Int) error {
		for _, port := range ports {
			if p.r.holds(port) {
				taken.SetBit(taken, port, 0)
			}
		}
		return nil
	})
}
