package cluster

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
)

// podRanges, nodeRanges and serviceRanges are tried in turn: a second cluster on a machine
// gets ranges of its own.
var (
	podRanges = func() []netip.Prefix {
		var list []netip.Prefix
		for n := byte(244); n >= 224; n-- {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n, 0, 0}), 16))
		}
		return list
	}()
	nodeRanges = func() []netip.Prefix {
		var list []netip.Prefix
		for n := byte(95); n >= 64; n-- {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n, 0, 0}), 24))
		}
		return list
	}()
	serviceRanges = func() []netip.Prefix {
		var list []netip.Prefix
		for n := byte(96); n < 224; n += 16 {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n, 0, 0}), 12))
		}
		return list
	}()
)

// knownClusters holds a link to the data folder of each cluster of this machine,
// running or stopped, since the machine's start.
const knownClusters = "/run/skiff/clusters"

// claims are the ranges a live cluster has taken for itself, so that another
// one starting at the same moment takes others. A claim is the name of an
// abstract socket that nobody listens to: names are per network namespace, as
// ranges are, and go with the process however it ends.
//
// A stopped cluster has no sockets but will want its ranges back; known leads
// to what it has.
type claims struct {
	sockets map[netip.Prefix]net.Listener
	known   string // folder of links; "" knows of no other cluster
}

// free returns the first range that overlaps no route of this machine and that
// no other process has taken, and takes it: one that no stopped cluster has if
// there is such a one; if nothing is free, the first.
func (c *claims) free(ranges []netip.Prefix) netip.Prefix {
	used := usedRanges()
	for _, avoid := range [][]netip.Prefix{append(c.stopped(), used...), used} {
		for _, r := range ranges {
			if !overlapsAny(r, avoid) && c.take(r) {
				return r
			}
		}
	}
	return ranges[0]
}

// take claims a range; false when another process has it. Without claims (nil)
// every range is free.
func (c *claims) take(r netip.Prefix) bool {
	if c == nil || c.sockets[r] != nil {
		return true
	}
	l, err := net.Listen("unix", "@skiff-range-"+r.String())
	if err != nil {
		return false
	}
	if c.sockets == nil {
		c.sockets = map[netip.Prefix]net.Listener{}
	}
	c.sockets[r] = l
	return true
}

// stopped lists the ranges of the clusters that are known here.
func (c *claims) stopped() (used []netip.Prefix) {
	if c == nil || c.known == "" {
		return nil
	}
	links, _ := os.ReadDir(c.known)
	for _, l := range links {
		link := filepath.Join(c.known, l.Name())
		o, err := loadOptions(filepath.Join(link, "cluster.json"))
		if err == nil { // one that is not set overlaps nothing
			used = append(used, o.PodCIDR, o.ServiceCIDR, o.NodeCIDR)
		}
		if _, err := os.Stat(link); errors.Is(err, fs.ErrNotExist) {
			os.Remove(link) // its folder was removed by hand; else the next start tries again
		}
	}
	return used
}

// remember makes a cluster known; forget undoes it. Neither can fail a
// start: what is lost is the care for a stopped cluster's ranges.
func remember(known string, o Options) error {
	if err := os.MkdirAll(known, 0o755); err != nil {
		return err
	}
	err := os.Symlink(o.DataDir, linkTo(known, o))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func forget(known string, o Options) error { return os.RemoveAll(linkTo(known, o)) }

func linkTo(known string, o Options) string {
	h := fnv.New64a()
	h.Write([]byte(o.DataDir))
	return filepath.Join(known, fmt.Sprintf("%x", h.Sum64()))
}

// check claims the ranges a cluster is to use, chosen now or kept from before.
func (c *claims) check(o Options) error {
	for _, r := range []netip.Prefix{o.PodCIDR, o.ServiceCIDR, o.NodeCIDR} {
		if r.IsValid() && !c.take(r) {
			return Problem{
				What: fmt.Sprintf("address range %s is in use by another cluster on this machine", r),
				Fix:  "stop that cluster, or choose other ranges with --pod-cidr and --service-cidr",
			}
		}
	}
	return nil
}

func (c *claims) release() {
	for _, l := range c.sockets {
		l.Close()
	}
	c.sockets = nil
}

func overlapsAny(r netip.Prefix, used []netip.Prefix) bool {
	return slices.ContainsFunc(used, func(u netip.Prefix) bool { return r.Overlaps(u) })
}

// usedRanges are the destinations of this machine's IPv4 routes, but for the default one.
func usedRanges() []netip.Prefix {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	var used []netip.Prefix
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 {
			used = append(used, p)
		}
	}
	return used
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits), ok
}
