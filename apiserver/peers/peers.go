// Package peers is what API servers do together that work on one store, ours
// and upstream's: they find each other, and compact once between them. Keys,
// values and timing are upstream's.
package peers

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

const (
	prefix = registry.Root + "masterleases/"
	end    = registry.Root + "masterleases0"
	ttl    = 15 // seconds: who is gone for so long is no endpoint any more
	// interval between two announcements
	interval = 10 * time.Second
)

// Servers is how API servers on one store find each other: each has a key that
// goes when it does. Upstream writes its key anew each time; here its lease is
// kept alive, which takes no revision.
type Servers struct {
	Store store.Store
	Own   netip.Addr // this server's address
	// Changed is told all servers' addresses, in upstream's order, each time
	// they were looked at.
	Changed func(ctx context.Context, all []netip.Addr) error
	Clock   clock.WithTicker
	Log     *slog.Logger
	Grace   time.Duration // to say goodbye

	mu    sync.Mutex
	lease store.LeaseID
}

// Run announces this server until ctx ends, and then that it is gone.
func (m *Servers) Run(ctx context.Context) {
	tick := m.Clock.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C():
			if err := m.Announce(ctx); err != nil && ctx.Err() == nil {
				m.Log.Error("this server cannot announce itself in the store; the kubernetes Service may lack it", "error", err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.Grace)
	defer cancel()
	if left, err := m.withdraw(ctx); err == nil && len(left) > 0 {
		m.Changed(ctx, left) //nolint:errcheck // the others do it too, within seconds
	}
}

// Announce says that this server is there, for the next 15 seconds.
func (m *Servers) Announce(ctx context.Context) error {
	all, err := m.announce(ctx)
	if err != nil {
		return err
	}
	return m.Changed(ctx, all)
}

func (m *Servers) announce(ctx context.Context) ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lease != 0 {
		if _, err := m.Store.Leases().KeepAlive(ctx, m.lease); errors.Is(err, store.ErrLeaseNotFound) {
			m.lease = 0
		} else if err != nil {
			return nil, err
		}
	}
	snap, err := m.Store.Snapshot(ctx, 0)
	if err != nil {
		return nil, err
	}
	if have := snap.Get(prefix + m.Own.String()); m.lease == 0 || have == nil || have.Lease != m.lease {
		if err := m.put(ctx); err != nil {
			return nil, err
		}
		if snap, err = m.Store.Snapshot(ctx, store.Local); err != nil {
			return nil, err
		}
	}
	return announced(snap), nil
}

func (m *Servers) put(ctx context.Context) error {
	if m.lease == 0 {
		lease, err := m.Store.Leases().Grant(ctx, 0, ttl)
		if err != nil {
			return err
		}
		m.lease = lease.ID
	}
	own := m.Own.String()
	value, err := wire.Seal("v1", "Endpoints", &corev1.Endpoints{ //nolint:staticcheck // what upstream writes
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: own}}}}, //nolint:staticcheck // as above
	})
	if err != nil {
		return err
	}
	_, err = m.Store.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: prefix + own, Value: value, Lease: m.lease}}})
	return err
}

// announced reads the keys: they say what their values do.
func announced(snap store.Snapshot) []netip.Addr {
	var out []netip.Addr
	for kv := range snap.Range(prefix, end) {
		if ip, err := netip.ParseAddr(strings.TrimPrefix(kv.Key, prefix)); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// withdraw takes this server's key away and returns who is left.
func (m *Servers) withdraw(ctx context.Context) ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lease == 0 {
		return nil, nil
	}
	if err := m.Store.Leases().Revoke(ctx, m.lease); err != nil {
		return nil, err
	}
	snap, err := m.Store.Snapshot(ctx, store.Local)
	if err != nil {
		return nil, err
	}
	return announced(snap), nil
}
