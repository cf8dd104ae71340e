package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skiff-project/skiff/internal/innetns"
	"github.com/skiff-project/skiff/internal/nft"
)

const (
	// podInterface is the interface's name inside a pod.
	podInterface = "eth0"
	// portPrefix starts the names of the pods' interfaces on the host.
	portPrefix = "sk"
	// routeProtocol marks our routes among the host's (values above 4 are free for daemons).
	routeProtocol = 0x5b
	defaultMTU    = 1500
	// upTimeout bounds the wait for an interface to come up, upPoll is how often to look.
	upTimeout = time.Second
	upPoll    = 200 * time.Microsecond
)

// openNetlink opens a routing socket in the namespace at path; "" is the caller's own.
func openNetlink(path string) (*netlink.Handle, error) {
	ns := netns.None()
	if path != "" {
		var err error
		if ns, err = netns.GetFromPath(path); err != nil {
			return nil, fmt.Errorf("open network namespace %s: %w", path, err)
		}
		defer func() { _ = ns.Close() }()
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// setSysctls turns forwarding on.
func (n *Network) setSysctls(cidrs []netip.Prefix) error {
	return innetns.Do(n.cfg.Netns, func() error {
		for _, c := range cidrs {
			name := "net/ipv4/ip_forward"
			if c.Addr().Is6() {
				name = "net/ipv6/conf/all/forwarding"
			}
			if err := setSysctl(name, "1"); err != nil {
				return err
			}
		}
		return nil
	})
}

// setSysctl writes only what differs, so that a read-only /proc/sys with the right values
// will do.
func setSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// ensureBridge makes the bridge and gives it exactly the gateway addresses.
func (n *Network) ensureBridge(cidrs []netip.Prefix) error {
	mtu, err := n.mtu()
	if err != nil {
		return err
	}
	// A fixed address, or the bridge would take the lowest of its ports' and pods would
	// have to learn it anew whenever that port goes.
	attrs := netlink.LinkAttrs{Name: n.cfg.Bridge, MTU: mtu, HardwareAddr: macOf(gatewayOf(cidrs[0])), TxQLen: -1}
	err = n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make bridge %s: %w", n.cfg.Bridge, err)
	}
	br, err := n.nl.LinkByName(n.cfg.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.cfg.Bridge, err)
	}
	if br.Type() != "bridge" {
		return fmt.Errorf("interface %s is a %s, not a bridge: choose another bridge name or remove it", n.cfg.Bridge, br.Type())
	}
	err = errors.Join(n.nl.LinkSetMTU(br, mtu), n.nl.LinkSetHardwareAddr(br, attrs.HardwareAddr))
	if err == nil {
		err = n.setBridgeSysctls(cidrs)
	}
	if err == nil {
		err = n.nl.LinkSetUp(br)
	}
	if err != nil {
		return fmt.Errorf("set up bridge %s: %w", n.cfg.Bridge, err)
	}
	if err := n.setGateways(br, cidrs); err != nil {
		return fmt.Errorf("set the gateway address of bridge %s: %w", n.cfg.Bridge, err)
	}
	return n.routeServices(br, cidrs)
}

func (n *Network) setBridgeSysctls(cidrs []netip.Prefix) error {
	return innetns.Do(n.cfg.Netns, func() error {
		err := setSysctl("net/ipv4/conf/"+n.cfg.Bridge+"/send_redirects", "0")
		if slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Addr().Is6() }) {
			// Looking for duplicates of the bridge's link-local address would keep it from
			// finding pods for the first seconds.
			err = errors.Join(err, setSysctl("net/ipv6/conf/"+n.cfg.Bridge+"/accept_dad", "0"))
		}
		return err
	})
}

func (n *Network) setGateways(br netlink.Link, cidrs []netip.Prefix) error {
	want := map[string]bool{}
	for _, c := range cidrs {
		gw := netip.PrefixFrom(gatewayOf(c), c.Bits())
		want[gw.String()] = true
		a := &netlink.Addr{IPNet: ipNet(gw)}
		if gw.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := errors.Join(n.nl.AddrReplace(br, a), waitLocal(n.nl, gw.Addr())); err != nil {
			return fmt.Errorf("%s: %w", gw, err)
		}
	}
	have, err := n.nl.AddrList(br, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for i := range have {
		if have[i].IP.IsLinkLocalUnicast() || want[have[i].IPNet.String()] {
			continue
		}
		if err := n.nl.AddrDel(br, &have[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	return nil
}

// routeServices points the service ranges at the bridge. Nothing answers there: the proxy
// rewrites the packets, but a program on the host can only send them if there is a route.
func (n *Network) routeServices(br netlink.Link, cidrs []netip.Prefix) error {
	for _, s := range n.cfg.ServiceCIDRs {
		for _, c := range cidrs {
			if c.Addr().Is4() != s.Addr().Is4() {
				continue
			}
			r := &netlink.Route{LinkIndex: br.Attrs().Index, Dst: ipNet(s.Masked()), Src: gatewayOf(c).AsSlice(),
				Scope: netlink.SCOPE_LINK, Protocol: routeProtocol}
			if err := n.nl.RouteReplace(r); err != nil {
				return fmt.Errorf("route services %s: %w", s, err)
			}
		}
	}
	return nil
}

// links are the host's interfaces. The kernel is asked again when they changed
// while it told of them.
func (n *Network) links() (list []netlink.Link, err error) {
	for range 10 {
		if list, err = n.nl.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// mtu is that of bridge and pod interfaces, in bytes: the smallest of the host's other
// interfaces that are up, 1500 if there is none.
func (n *Network) mtu() (int, error) {
	links, err := n.links()
	if err != nil {
		return 0, fmt.Errorf("list interfaces: %w", err)
	}
	mtu := defaultMTU
	for _, l := range links {
		a := l.Attrs()
		ours := a.Name == n.cfg.Bridge || strings.HasPrefix(a.Name, portPrefix)
		if a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && !ours && a.MTU >= 1280 {
			mtu = min(mtu, a.MTU)
		}
	}
	return mtu, nil
}

// hostInterface is the name of a sandbox's interface on the host: always the same for the
// same sandbox, and never another node's on this machine.
func (n *Network) hostInterface(id string) string {
	sum := sha256.Sum256([]byte(n.cfg.Bridge + "/" + id))
	return portPrefix + hex.EncodeToString(sum[:])[:12]
}

// connect joins the sandbox's namespace to the bridge; what is in place already stays.
func (n *Network) connect(rec *record) error {
	ns, err := netns.GetFromPath(rec.NetnsPath)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", rec.NetnsPath, err)
	}
	defer func() { _ = ns.Close() }()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", rec.NetnsPath, err)
	}
	defer pod.Close()
	br, err := n.nl.LinkByName(n.cfg.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.cfg.Bridge, err)
	}
	name := n.hostInterface(rec.ID)
	_, errHost := n.nl.LinkByName(name)
	_, errPod := pod.LinkByName(podInterface)
	if errHost != nil || errPod != nil {
		if err := deleteLink(n.nl, name); err != nil {
			return err
		}
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: br.Attrs().MTU, MasterIndex: br.Attrs().Index, TxQLen: -1},
			PeerName:  podInterface, PeerHardwareAddr: macOf(rec.Addrs[0]), PeerNamespace: netlink.NsFd(ns),
		}
		if err := n.nl.LinkAdd(veth); err != nil {
			return fmt.Errorf("make interface pair %s: %w", name, err)
		}
	}
	if err := n.setUpPort(br, name); err != nil {
		return fmt.Errorf("set up interface %s: %w", name, err)
	}
	if err := setUpPod(pod, rec.Addrs, n.pool.cidrs); err != nil {
		return fmt.Errorf("set up %s in the pod: %w", podInterface, err)
	}
	return n.waitUp(name, n.cfg.Bridge)
}

// waitUp waits until interfaces pass packets. The kernel notices a link's other end in the
// background: what is sent before is lost, and one lost ARP costs the pod a second.
func (n *Network) waitUp(names ...string) error {
	for _, name := range names {
		for deadline := time.Now().Add(upTimeout); ; time.Sleep(upPoll) {
			l, err := n.nl.LinkByName(name)
			if err != nil {
				return fmt.Errorf("find interface %s: %w", name, err)
			}
			if l.Attrs().OperState == netlink.OperUp {
				break
			}
			if time.Now().After(deadline) {
				n.log.Warn("an interface is slow to come up", "interface", name, "state", l.Attrs().OperState)
				break
			}
		}
	}
	return nil
}

func (n *Network) setUpPort(br netlink.Link, name string) error {
	port, err := n.nl.LinkByName(name)
	if err != nil {
		return err
	}
	if port.Attrs().MasterIndex != br.Attrs().Index {
		if err := n.nl.LinkSetMaster(port, br); err != nil {
			return err
		}
	}
	// Where br_netfilter is on, a rewritten packet between two pods is bridged instead of
	// routed, and a pod's packet to itself must go back out of its own port.
	if err := n.nl.LinkSetHairpin(port, true); err != nil {
		return err
	}
	return n.nl.LinkSetUp(port)
}

// setUpPod configures the pod's side: loopback, addresses, and everything by the gateway.
func setUpPod(pod *netlink.Handle, addrs []netip.Addr, cidrs []netip.Prefix) error {
	lo, err := pod.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := pod.LinkByName(podInterface)
	if err != nil {
		return err
	}
	if err := errors.Join(pod.LinkSetUp(lo), pod.LinkSetUp(eth)); err != nil {
		return err
	}
	for _, a := range addrs {
		bits := a.BitLen()
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits))}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := errors.Join(pod.AddrReplace(eth, addr), waitLocal(pod, a)); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		i := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return c.Addr().Is4() == a.Is4() })
		if i < 0 {
			continue
		}
		gw := gatewayOf(cidrs[i])
		direct := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(netip.PrefixFrom(gw, bits)), Scope: netlink.SCOPE_LINK}
		all := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gw.AsSlice()}
		if err := errors.Join(pod.RouteReplace(direct), pod.RouteReplace(all)); err != nil {
			return fmt.Errorf("route by %s: %w", gw, err)
		}
	}
	return nil
}

// waitLocal waits until packets to an address are this side's own. The kernel makes the local
// route of an IPv6 address in the background: a neighbour's answer that comes before is lost,
// and the pod asks again only after a second.
func waitLocal(nl *netlink.Handle, a netip.Addr) error {
	if a.Is4() {
		return nil
	}
	for deadline := time.Now().Add(upTimeout); ; time.Sleep(upPoll) {
		routes, err := nl.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("the kernel made no local route within %s", upTimeout), err)
		}
	}
}

func deleteLink(nl *netlink.Handle, name string) error {
	l, err := nl.LinkByName(name)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// deletePorts deletes the bridge's pod interfaces that match.
func (n *Network) deletePorts(match func(name string) bool) error {
	br, err := n.nl.LinkByName(n.cfg.Bridge)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return fmt.Errorf("find bridge %s: %w", n.cfg.Bridge, err)
	}
	links, err := n.links()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		if a.MasterIndex == br.Attrs().Index && strings.HasPrefix(a.Name, portPrefix) && match(a.Name) {
			if err := deleteLink(n.nl, a.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncRoutes makes the routes to other nodes' pods exactly those listed.
func (n *Network) syncRoutes(routes []Route) error {
	want := map[string]bool{}
	var errs []error
	for _, r := range routes {
		dst := r.PodCIDR.Masked()
		want[dst.String()] = true
		if err := n.routePods(dst, r.NodeIP.Unmap()); err != nil {
			errs = append(errs, fmt.Errorf("route pods %s by node %s: %w", r.PodCIDR, r.NodeIP, err))
		}
	}
	have, err := n.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for i := range have {
		dst := have[i].Dst
		if dst == nil || len(have[i].Gw) == 0 || want[dst.String()] || !n.inCluster(dst) {
			continue
		}
		if err := n.nl.RouteDel(&have[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete route %s: %w", dst, err))
		}
	}
	return errors.Join(errs...)
}

// routePods sends a node's pods to the node, or to the router on the way to
// it, which must know the route as well.
func (n *Network) routePods(dst netip.Prefix, node netip.Addr) error {
	way, err := n.nl.RouteGet(node.AsSlice())
	if err != nil {
		return fmt.Errorf("the node's address cannot be reached: %w", err)
	}
	nr := &netlink.Route{Dst: ipNet(dst), Gw: node.AsSlice(), Protocol: routeProtocol}
	if len(way) > 0 && len(way[0].Gw) > 0 {
		nr.Gw, nr.LinkIndex = way[0].Gw, way[0].LinkIndex
	}
	return n.nl.RouteReplace(nr)
}

func (n *Network) inCluster(dst *net.IPNet) bool {
	a, ok := netip.AddrFromSlice(dst.IP)
	return ok && slices.ContainsFunc(n.cfg.ClusterCIDRs, func(c netip.Prefix) bool { return c.Contains(a.Unmap()) })
}

// forgetFlows drops what conntrack remembers of a pod's UDP host ports. A UDP flow has no
// end, so it would stay with the old pod, or with none, as long as its client sends.
func (n *Network) forgetFlows(rec *record) {
	ports := map[uint16]bool{}
	for _, m := range rec.HostPorts {
		if p, _ := protoOf(m.Protocol); p == nft.UDP {
			ports[m.HostPort] = true
		}
	}
	if len(ports) == 0 {
		return
	}
	err := innetns.Do(n.cfg.Netns, func() error {
		var errs []error
		for _, a := range rec.Addrs {
			fam := netlink.InetFamily(unix.AF_INET)
			if a.Is6() {
				fam = unix.AF_INET6
			}
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, fam, udpPorts(ports))
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		n.log.Warn("stale UDP flows may remain", "sandbox", rec.ID, "err", err)
	}
}

// udpPorts matches UDP flows that were sent to one of the ports.
type udpPorts map[uint16]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (p udpPorts) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == uint8(nft.UDP) && p[f.Forward.DstPort]
}

// macOf derives a locally administered hardware address from an IP address, so that a
// neighbour's memory of an address stays right when the address gets a new pod.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.Unmap().AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
