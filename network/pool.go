package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skiff-project/skiff/internal/atomicfile"
	"github.com/skiff-project/skiff/internal/nft"
)

// record is what is kept of one sandbox.
type record struct {
	ID        string
	Namespace string
	Name      string
	NetnsPath string
	Addrs     []netip.Addr
	HostPorts []PortMapping `json:",omitempty"`
}

// pool hands out addresses. Its memory and its folder always agree: a record is written
// before an address is used and removed before it can be given again.
type pool struct {
	dir     string
	cidrs   []netip.Prefix
	records map[string]*record
	used    map[netip.Addr]string // address → sandbox ID
	last    map[nft.Family]netip.Addr
}

func newPool(dir string) *pool {
	return &pool{dir: dir, records: map[string]*record{}, used: map[netip.Addr]string{}, last: map[nft.Family]netip.Addr{}}
}

func openPool(dir string) (*pool, error) {
	p := newPool(dir)
	if err := os.MkdirAll(p.folder(), 0o700); err != nil {
		return nil, fmt.Errorf("network: make the address records' folder: %w", err)
	}
	entries, err := os.ReadDir(p.folder())
	if err != nil {
		return nil, fmt.Errorf("network: read the address records: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(p.folder(), e.Name())
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			// A file being written when the process was killed; nothing used it yet.
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("network: %w", err)
			}
			continue
		}
		if err := p.load(id, path); err != nil {
			return nil, err
		}
	}
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		if b, err := os.ReadFile(p.lastFile(f)); err == nil {
			if a, err := netip.ParseAddr(strings.TrimSpace(string(b))); err == nil {
				p.last[f] = a
			}
		}
	}
	return p, nil
}

func (p *pool) load(id, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("network: read the address record of sandbox %s: %w", id, err)
	}
	rec := &record{}
	if err := json.Unmarshal(b, rec); err != nil || rec.ID != id {
		return fmt.Errorf("network: address record %s is damaged (%v): remove it once its pod is gone", path, err)
	}
	for _, a := range rec.Addrs {
		if other := p.used[a]; other != "" {
			return fmt.Errorf("network: address %s is recorded for both sandbox %s and %s: remove the file of the one that is gone from %s", a, other, id, p.folder())
		}
		p.used[a] = id
	}
	p.records[id] = rec
	return nil
}

func (p *pool) folder() string { return filepath.Join(p.dir, "sandboxes") }

func (p *pool) lastFile(f nft.Family) string { return filepath.Join(p.dir, "last-"+f.String()) }

func (p *pool) ids() []string { return slices.Sorted(maps.Keys(p.records)) }

// allocate returns the sandbox's record, making and storing it if there is none.
func (p *pool) allocate(s PodSandbox) (*record, error) {
	old := p.records[s.ID]
	rec := &record{ID: s.ID, Namespace: s.Namespace, Name: s.Name, NetnsPath: s.NetnsPath, HostPorts: s.HostPorts}
	if old != nil {
		rec.Addrs = old.Addrs
		if old.NetnsPath == rec.NetnsPath && slices.Equal(old.HostPorts, rec.HostPorts) {
			return old, nil
		}
	} else {
		for _, c := range p.cidrs {
			a, err := p.next(c)
			if err != nil {
				return nil, err
			}
			rec.Addrs = append(rec.Addrs, a)
		}
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(p.folder(), s.ID+".json"), b, 0o600); err != nil {
		return nil, fmt.Errorf("record its addresses: %w", err)
	}
	p.records[s.ID] = rec
	for _, a := range rec.Addrs {
		p.used[a] = s.ID
		if old == nil {
			f := nft.FamilyOf(a)
			p.last[f] = a
			// Only a hint for the next process, so neither synced nor fatal.
			_ = os.WriteFile(p.lastFile(f), []byte(a.String()+"\n"), 0o600)
		}
	}
	return rec, nil
}

// next finds a free address, starting after the one given last, so that an address just
// freed rests for a whole round.
func (p *pool) next(c netip.Prefix) (netip.Addr, error) {
	first := gatewayOf(c).Next()
	start := p.last[nft.FamilyOf(c.Addr())]
	if !start.IsValid() || !c.Contains(start) || start.Less(first) {
		start = first.Prev()
	}
	a := start
	// One round is bounded by the used addresses: each step meets a used one or ends,
	// except for the three that are never given and the turn at the end.
	for range len(p.used) + 5 {
		a = a.Next()
		if !c.Contains(a) || (a.Is4() && !c.Contains(a.Next())) {
			// The end of the range, and in IPv4 its broadcast address.
			a = first
		}
		if p.used[a] == "" {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address left in pod CIDR %s", c)
}

func (p *pool) release(id string) error {
	rec := p.records[id]
	if rec == nil {
		return nil
	}
	if err := os.Remove(filepath.Join(p.folder(), id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, a := range rec.Addrs {
		delete(p.used, a)
	}
	delete(p.records, id)
	return nil
}

// hostPort is a host port with the address it leads to.
type hostPort struct {
	PortMapping
	pod netip.Addr
}

// hostPorts lists all host ports, in a settled order. Where two sandboxes claim one (the
// old one of a pod still going, the new one coming), the later ID by name wins.
func (p *pool) hostPorts() []hostPort {
	var out []hostPort
	for _, id := range p.ids() {
		rec := p.records[id]
		for _, m := range rec.HostPorts {
			for _, a := range rec.Addrs {
				if !m.HostIP.IsValid() || m.HostIP.IsUnspecified() || m.HostIP.Unmap().Is4() == a.Is4() {
					out = append(out, hostPort{m, a})
				}
			}
		}
	}
	return out
}

func (p *pool) purge() error {
	p.records, p.used, p.cidrs = map[string]*record{}, map[netip.Addr]string{}, nil
	errs := []error{os.RemoveAll(p.folder())}
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		if err := os.Remove(p.lastFile(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// Goes only if nothing else is in it.
	_ = os.Remove(p.dir)
	return errors.Join(errs...)
}

// gatewayOf is a range's first address after the network's own.
func gatewayOf(c netip.Prefix) netip.Addr { return c.Masked().Addr().Next() }

func validID(id string) bool {
	if id == "" || len(id) > 128 || id[0] == '.' {
		return false
	}
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.' {
			return false
		}
	}
	return true
}
