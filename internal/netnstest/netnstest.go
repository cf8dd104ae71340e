// Package netnstest makes network namespaces for tests and sends real traffic inside them.
// Nothing leaves the namespaces, and all of them are gone when the test ends.
package netnstest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace held by a bind mount.
type NS struct {
	t    testing.TB
	Path string
}

// New makes an empty namespace with loopback up; it goes when the test ends. The test is
// skipped unless it runs as root.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	ns := &NS{t, filepath.Join(t.TempDir(), "netns")}
	if err := os.WriteFile(ns.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), ns.Path, "", unix.MS_BIND, "")
	})
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(ns.Close)
	ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// Close lets go of the namespace; the kernel removes it with its last user.
func (ns *NS) Close() {
	if err := unix.Unmount(ns.Path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		ns.t.Errorf("unmount %s: %v", ns.Path, err)
	}
}

// onThread runs f on a thread that dies afterwards, so its namespace leaks nowhere.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Try runs f inside the namespace. Sockets f opens stay there; goroutines it starts don't.
func (ns *NS) Try(f func() error) error {
	return onThread(func() error {
		h, err := netns.GetFromPath(ns.Path)
		if err != nil {
			return err
		}
		if err := errors.Join(netns.Set(h), h.Close()); err != nil {
			return err
		}
		return f()
	})
}

// Do runs f inside the namespace; an error ends the test.
func (ns *NS) Do(f func() error) {
	ns.t.Helper()
	if err := ns.Try(f); err != nil {
		ns.t.Fatal(err)
	}
}

// Join makes a link between two namespaces, with an address at each end.
func Join(a *NS, aName, aAddr string, b *NS, bName, bAddr string) {
	a.t.Helper()
	a.Do(func() error {
		peer, err := netns.GetFromPath(b.Path)
		if err != nil {
			return err
		}
		defer peer.Close()
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(peer)})
	})
	a.AddAddr(aName, aAddr)
	b.AddAddr(bName, bAddr)
}

// AddAddr gives an interface an address (with prefix length) and sets it up.
func (ns *NS) AddAddr(link, addr string) {
	ns.t.Helper()
	ns.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrReplace(l, a), netlink.LinkSetUp(l))
	})
}

// Route adds a route by a gateway.
func (ns *NS) Route(dst, gw string) {
	ns.t.Helper()
	ns.Do(func() error {
		_, d, err := net.ParseCIDR(dst)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{Dst: d, Gw: net.ParseIP(gw)})
	})
}

// Serve answers every TCP connection and UDP datagram to addr with "name remote-address\n"
// until the test ends.
func (ns *NS) Serve(name, addr string) {
	ns.t.Helper()
	var l net.Listener
	var pc net.PacketConn
	ns.Do(func() (err error) {
		if l, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		pc, err = net.ListenPacket("udp", addr)
		return err
	})
	ns.t.Cleanup(func() { _ = l.Close(); _ = pc.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "%s %s\n", name, host(c.RemoteAddr()))
			_ = c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(fmt.Sprintf("%s %s\n", name, host(from))), from)
		}
	}()
}

func host(a net.Addr) string { return netip.MustParseAddrPort(a.String()).Addr().Unmap().String() }

// Ask connects from inside the namespace and returns the server's name and the source
// address it saw. The wait is bounded by a second.
func (ns *NS) Ask(network, addr string) (name, source string, err error) {
	err = ns.Try(func() error {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		var b []byte
		if network == "udp" {
			b = make([]byte, 128)
			n, err := c.Read(b)
			if err != nil {
				return err
			}
			b = b[:n]
		} else if b, err = io.ReadAll(c); err != nil {
			return err
		}
		name, source, _ = strings.Cut(strings.TrimSpace(string(b)), " ")
		return nil
	})
	return name, source, err
}
