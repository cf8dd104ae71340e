package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseKernel(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.1.0-18-amd64": {6, 1}, "5.15.0": {5, 15}, "6.18.44-fc-v669": {6, 18}, "5.4-rc1": {5, 4},
	} {
		major, minor, ok := parseKernel(release)
		if !ok || [2]int{major, minor} != want {
			t.Errorf("parseKernel(%q) = %d, %d, %v; want %v", release, major, minor, ok, want)
		}
	}
	if _, _, ok := parseKernel("linux"); ok {
		t.Error("made a version of nonsense")
	}
}

// problem fails unless err tells the user all of what.
func problem(t *testing.T, err error, what ...string) {
	t.Helper()
	var p Problem
	if !errors.As(err, &p) {
		t.Fatalf("error %v is no Problem", err)
	}
	if p.Fix == "" {
		t.Errorf("%q has no fix", p.What)
	}
	for _, w := range what {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestTakenPortNamesItsHolder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	problem(t, checkPorts(Options{EtcdPort: port}),
		fmt.Sprintf("port %d", port), "etcd's API", fmt.Sprintf("pid %d", os.Getpid()), "--etcd-port")
}

func TestSecondLockIsRefused(t *testing.T) {
	o := Options{DataDir: t.TempDir()}
	first, err := takeLock(o)
	if err != nil {
		t.Fatal(err)
	}
	_, err = takeLock(o)
	problem(t, err, "already running", o.DataDir, fmt.Sprintf("pid %d", os.Getpid()), "skiff down")
	if got := lockHolder(o); got != os.Getpid() {
		t.Errorf("holder %d, want %d", got, os.Getpid())
	}
	first.release()
	if got := lockHolder(o); got != 0 {
		t.Errorf("holder %d after release, want none", got)
	}
	again, err := takeLock(o)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again.release()
}

func TestUnwritableFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	problem(t, checkFolder(Options{DataDir: filepath.Join(file, "below")}), "data folder", "--data-dir")
}

// What a fresh cluster settled on stays, whatever is asked of the machine later.
func TestOptionsAreKept(t *testing.T) {
	dir := t.TempDir()
	first, err := Options{DataDir: dir, APIPort: 7443, NodeName: "kept"}.resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	again, err := Options{DataDir: dir}.resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.APIPort != 7443 || again.NodeName != "kept" || again.PodCIDR != first.PodCIDR || again.ServiceCIDR != first.ServiceCIDR {
		t.Errorf("resumed as %+v, was %+v", again, first)
	}
}

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		opts Options
		want string
	}{
		"node name":     {Options{NodeName: "Not_Valid"}, "--node-name"},
		"pod range":     {Options{PodCIDR: netip.MustParsePrefix("10.0.0.0/28")}, "--pod-cidr"},
		"service range": {Options{ServiceCIDR: netip.MustParsePrefix("10.0.0.0/30")}, "--service-cidr"},
		"overlap":       {Options{PodCIDR: netip.MustParsePrefix("10.96.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12")}, "overlap"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.opts.DataDir = dir
			_, err := tc.opts.resolve(nil)
			problem(t, err, tc.want)
		})
	}
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Options{DataDir: dir}.resolve(nil)
	problem(t, err, "cluster.json", "damaged")
}

func TestRangesDoNotOverlap(t *testing.T) {
	used := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("10.96.0.0/12")}
	if !overlapsAny(podRanges[0], used) || !overlapsAny(serviceRanges[0], used) {
		t.Error("a used range is taken for free")
	}
	for _, p := range podRanges {
		for _, s := range serviceRanges {
			if p.Overlaps(s) {
				t.Errorf("pods %s and services %s overlap", p, s)
			}
		}
	}
}

func TestUnmountListsOnlyBelow(t *testing.T) {
	points, err := mountsBelow("/sys") // control groups are mounted below, and it is a mount itself
	if err != nil || len(points) == 0 || slices.Contains(points, "/sys") {
		t.Errorf("mounts below /sys: %v, %v", points, err)
	}
	if got := unescapeMount(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("unescaped %q", got)
	}
}

// Two clusters that start at the same moment choose different ranges.
func TestClaimsKeepRangesApart(t *testing.T) {
	var first, second claims
	defer first.release()
	defer second.release()
	a, err := Options{DataDir: t.TempDir()}.resolve(&first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Options{DataDir: t.TempDir()}.resolve(&second)
	if err != nil {
		t.Fatal(err)
	}
	if a.PodCIDR.Overlaps(b.PodCIDR) || a.ServiceCIDR.Overlaps(b.ServiceCIDR) {
		t.Errorf("pods %s and %s, services %s and %s", a.PodCIDR, b.PodCIDR, a.ServiceCIDR, b.ServiceCIDR)
	}
	problem(t, second.check(a), a.PodCIDR.String(), "--pod-cidr")
	first.release()
	if err := second.check(a); err != nil {
		t.Errorf("after release: %v", err)
	}
}

// A stopped cluster finds its ranges free when it is resumed: one that starts
// in between takes others.
func TestStoppedClustersKeepTheirRanges(t *testing.T) {
	known := t.TempDir()
	stopped, err := Options{DataDir: t.TempDir()}.resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stopped.save(), remember(known, stopped), remember(known, stopped)); err != nil {
		t.Fatal(err)
	}
	start := func() Options {
		c := claims{known: known}
		defer c.release()
		o, err := Options{DataDir: t.TempDir()}.resolve(&c)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := start(); o.PodCIDR.Overlaps(stopped.PodCIDR) || o.ServiceCIDR.Overlaps(stopped.ServiceCIDR) {
		t.Errorf("pods %s, services %s: those of the stopped cluster", o.PodCIDR, o.ServiceCIDR)
	}
	gone := Options{DataDir: filepath.Join(known, "removed by hand")}
	if err := remember(known, gone); err != nil {
		t.Fatal(err)
	}
	start()
	if _, err := os.Lstat(linkTo(known, gone)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link to a folder that is gone: %v", err)
	}
	if err := errors.Join(forget(known, stopped), forget(known, stopped)); err != nil {
		t.Fatal(err)
	}
	if o := start(); o.PodCIDR != stopped.PodCIDR || o.ServiceCIDR != stopped.ServiceCIDR {
		t.Errorf("pods %s, services %s once it is forgotten; want %s, %s", o.PodCIDR, o.ServiceCIDR, stopped.PodCIDR, stopped.ServiceCIDR)
	}
}
