// Package network gives pods their network: one bridge per node, an address per pod from
// the node's pod CIDRs, host ports, routes to the other nodes' pods and masquerading for
// traffic that leaves the cluster. All of it by netlink and nftables; no CNI plug-ins, no
// iptables, no default route needed.
//
// A pod's interface has a /32 (or /128) address and reaches everything, its neighbours
// included, through the gateway, the bridge's own address. So every packet between pods
// passes the host's NAT: a Service address works between two pods of one node whether the
// br_netfilter module is there or not. Isolated bridge ports were tried and rejected:
// br_netfilter bridges packets whose destination was rewritten, and isolation drops them.
//
// On disk, below Config.DataDir:
//
//	sandboxes/<id>.json   one record per sandbox that holds addresses (durable)
//	last-<family>         the address given last, so that none is reused at once (a hint)
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/skiff-project/skiff/internal/nft"
)

// Config says how a node's pod network is made.
type Config struct {
	// Bridge is the bridge's interface name, at most 15 bytes. Default "skiff0". Two nodes
	// in one network namespace need two names.
	Bridge string
	// DataDir keeps the address records. Required.
	DataDir string
	// ClusterCIDRs are the address ranges of all pods; traffic to them is not masqueraded.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are routed to the bridge, so that programs on the host reach Service
	// addresses even without a default route. Default none.
	ServiceCIDRs []netip.Prefix
	// Table is the name of the nftables tables. Default "skiff-network".
	Table string
	// Netns is the path of the network namespace to work in. Default: the process's own.
	Netns string
	// Log gets one line per unusual event. Default: none.
	Log *slog.Logger
}

// PortMapping is one host port of a pod.
type PortMapping struct {
	Protocol      string     // TCP, UDP or SCTP
	HostIP        netip.Addr // the host address to listen on; the zero value means all
	HostPort      uint16
	ContainerPort uint16
}

// PodSandbox names what Setup connects.
type PodSandbox struct {
	ID        string // unique; letters, digits, '-', '_', '.'
	Namespace string
	Name      string
	NetnsPath string // the pod's network namespace, as a bind mount or /proc/<pid>/ns/net
	HostPorts []PortMapping
}

// Route sends another node's pods to that node.
type Route struct {
	PodCIDR netip.Prefix
	NodeIP  netip.Addr
}

// Network is a node's pod network. Its methods may be called from several goroutines.
type Network struct {
	cfg Config
	log *slog.Logger
	nft *nft.Conn

	mu      sync.Mutex
	nl      *netlink.Handle
	pool    *pool
	applied map[nft.Family]*nft.Table
	local   loopback
}

// New opens the address records and the kernel interfaces; it changes nothing yet.
// It fails if the configuration is wrong or the records cannot be read.
func New(cfg Config) (*Network, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	pool, err := openPool(filepath.Clean(cfg.DataDir))
	if err != nil {
		return nil, err
	}
	return open(cfg, pool)
}

func open(cfg Config, pool *pool) (*Network, error) {
	nl, err := openNetlink(cfg.Netns)
	if err != nil {
		return nil, err
	}
	return &Network{cfg: cfg, log: cfg.Log, nft: nft.NewConn(cfg.Netns), nl: nl, pool: pool,
		applied: map[nft.Family]*nft.Table{}, local: loopback{netns: cfg.Netns, log: cfg.Log}}, nil
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Bridge == "" {
		cfg.Bridge = "skiff0"
	}
	if cfg.Table == "" {
		cfg.Table = "skiff-network"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Bridge) > 15 {
		return cfg, fmt.Errorf("network: bridge name %q is longer than 15 bytes", cfg.Bridge)
	}
	if cfg.DataDir == "" {
		return cfg, errors.New("network: DataDir is required")
	}
	return cfg, nil
}

// Purge removes everything a Network with this Config made, in the kernel and on disk,
// damaged records included. No Network may be at work.
func Purge(cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	n, err := open(cfg, newPool(filepath.Clean(cfg.DataDir)))
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Purge()
}

// Close releases the sockets; the network stays as it is, except that host ports are no
// longer served on loopback.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.local.sync(nil)
	n.nl.Close()
}

// SetPodCIDRs makes the bridge with each range's first address as the gateway, and the
// tables. It may be called again with the same ranges (nothing then changes) or with others;
// sandboxes keep the addresses they have.
func (n *Network) SetPodCIDRs(cidrs []netip.Prefix) error {
	if len(cidrs) == 0 {
		return errors.New("network: no pod CIDR given")
	}
	cidrs = slices.Clone(cidrs)
	for i, c := range cidrs {
		cidrs[i] = c.Masked()
		if c.Addr().BitLen()-c.Bits() < 2 {
			return fmt.Errorf("network: pod CIDR %s has no room for pods", c)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.setSysctls(cidrs); err != nil {
		return err
	}
	// The rules come first: no pod packet may pass before they hold.
	if err := n.applyTables(cidrs); err != nil {
		return err
	}
	if err := n.ensureBridge(cidrs); err != nil {
		return err
	}
	n.pool.cidrs = cidrs
	return nil
}

// Ready says why pods cannot be connected yet; nil once a pod CIDR is set.
func (n *Network) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.pool.cidrs) == 0 {
		return errors.New("network is not ready: the node has no pod CIDR yet")
	}
	return nil
}

// Gateway is the bridge's first address, where the node can be reached from its pods; the
// zero Addr before SetPodCIDRs.
func (n *Network) Gateway() netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.pool.cidrs) == 0 {
		return netip.Addr{}
	}
	return gatewayOf(n.pool.cidrs[0])
}

// Setup connects a sandbox and returns its addresses, one per family. Called again for the
// same ID it returns the same addresses and repairs what is missing. A failed Setup keeps
// its record; Teardown clears it.
func (n *Network) Setup(ctx context.Context, s PodSandbox) ([]netip.Addr, error) {
	if err := checkSandbox(s); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(n.pool.cidrs) == 0 {
		return nil, errors.New("network is not ready: the node has no pod CIDR yet")
	}
	rec, err := n.pool.allocate(s)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s (%s/%s): %w", s.ID, s.Namespace, s.Name, err)
	}
	if err := n.connect(rec); err != nil {
		return nil, fmt.Errorf("connect sandbox %s (%s/%s): %w", s.ID, s.Namespace, s.Name, err)
	}
	if len(rec.HostPorts) > 0 {
		if err := n.applyTables(n.pool.cidrs); err != nil {
			return nil, err
		}
		n.forgetFlows(rec)
	}
	return slices.Clone(rec.Addrs), nil
}

// Teardown disconnects a sandbox and frees its addresses. It is no error if the sandbox is
// unknown, or its network namespace gone.
func (n *Network) Teardown(_ context.Context, id string) error {
	// Deleting an interface takes the kernel some 20 ms: others need not wait, so it has a
	// socket of its own and happens before the lock.
	nl, err := openNetlink(n.cfg.Netns)
	if err != nil {
		return fmt.Errorf("disconnect sandbox %s: %w", id, err)
	}
	defer nl.Close()
	// Deleting one end of a pair deletes the other, and either may be gone with its
	// namespace already.
	if err := deleteLink(nl, n.hostInterface(id)); err != nil {
		return fmt.Errorf("disconnect sandbox %s: %w", id, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.forget(id)
}

// forget frees a sandbox's addresses and host ports.
func (n *Network) forget(id string) error {
	rec := n.pool.records[id]
	if rec == nil {
		return nil
	}
	if err := n.pool.release(id); err != nil {
		return fmt.Errorf("release addresses of sandbox %s: %w", id, err)
	}
	if len(rec.HostPorts) > 0 {
		// Before the ranges are known the tables are an earlier process's: SetPodCIDRs
		// makes them anew.
		if len(n.pool.cidrs) > 0 {
			if err := n.applyTables(n.pool.cidrs); err != nil {
				return err
			}
		}
		n.forgetFlows(rec)
	}
	return nil
}

// Reconcile frees what belongs to sandboxes that are not in live: addresses, interfaces
// and host ports left by a crash. It returns the IDs it freed. It may come before
// SetPodCIDRs.
func (n *Network) Reconcile(live []string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := map[string]bool{}
	for _, id := range live {
		keep[n.hostInterface(id)] = true
	}
	var freed []string
	// Interfaces first: no address may be given again while something still has it.
	if err := n.deletePorts(func(name string) bool { return !keep[name] }); err != nil {
		return nil, err
	}
	for _, id := range n.pool.ids() {
		if keep[n.hostInterface(id)] {
			continue
		}
		if err := n.forget(id); err != nil {
			return freed, err
		}
		freed = append(freed, id)
	}
	return freed, nil
}

// SetRoutes makes the host send the listed nodes' pods to those nodes, and removes routes
// set before that are no longer listed. A node must be on a shared link, or behind a router
// that sends its pods to it. A route that cannot be made keeps no other from being made.
func (n *Network) SetRoutes(routes []Route) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.syncRoutes(routes)
}

// Purge removes the bridge, the pods' interfaces, the routes, the tables and the records.
// The kernel's forwarding switches stay on: others may have come to need them.
func (n *Network) Purge() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.local.sync(nil)
	errs := []error{n.syncRoutes(nil), n.deletePorts(func(string) bool { return true }), deleteLink(n.nl, n.cfg.Bridge)}
	errs = append(errs, n.nft.Purge(n.cfg.Table), n.pool.purge())
	n.applied = map[nft.Family]*nft.Table{}
	return errors.Join(errs...)
}

// applyTables brings the kernel's tables to what the ranges and host ports ask for.
func (n *Network) applyTables(cidrs []netip.Prefix) error {
	ports := n.pool.hostPorts()
	n.local.sync(loopbackPorts(ports))
	want := desiredTables(n.cfg, cidrs, ports)
	var changes []nft.Changes
	for _, t := range want {
		if c := nft.Diff(n.applied[t.Family], t); !c.Empty() {
			changes = append(changes, c)
		}
	}
	if len(changes) == 0 {
		return nil
	}
	if err := n.nft.Apply(changes...); err != nil {
		// Somebody else may have changed the tables: make them anew.
		n.log.Warn("nftables tables are not as expected, making them anew", "table", n.cfg.Table, "err", err)
		changes = changes[:0]
		for _, t := range want {
			changes = append(changes, nft.Diff(nil, t))
		}
		if err := n.nft.Apply(changes...); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	for _, t := range want {
		n.applied[t.Family] = t
	}
	return nil
}

func checkSandbox(s PodSandbox) error {
	if !validID(s.ID) {
		return fmt.Errorf("network: sandbox ID %q must be 1 to 128 letters, digits, '-', '_' or '.'", s.ID)
	}
	if s.NetnsPath == "" {
		return fmt.Errorf("network: sandbox %s names no network namespace", s.ID)
	}
	for _, p := range s.HostPorts {
		if _, ok := protoOf(p.Protocol); !ok || p.HostPort == 0 || p.ContainerPort == 0 {
			return fmt.Errorf("network: sandbox %s: bad host port %d:%d/%s", s.ID, p.HostPort, p.ContainerPort, p.Protocol)
		}
	}
	return nil
}
