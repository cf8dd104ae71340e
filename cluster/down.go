package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/skiff-project/skiff/internal/innetns"
	"github.com/skiff-project/skiff/network"
	"github.com/skiff-project/skiff/proxy"
	"github.com/skiff-project/skiff/runtime"
)

// stopTimeout is how long a live process may take to end after SIGTERM
// before it is killed; its containers outlive it either way.
const stopTimeout = 15 * time.Second

// Down ends the process of the cluster in dataDir, if one is live, and then its
// pods and its traces in the kernel. With purge the folder goes too. It may be
// repeated, and cleans up after a process that was killed.
func Down(ctx context.Context, dataDir string, purge bool, progress Progress) error {
	o, err := Options{DataDir: dataDir}.resolve(nil)
	if err != nil && !purge {
		return err
	}
	if os.Geteuid() != 0 {
		return Problem{What: "skiff down needs root", Fix: "sudo skiff down"}
	}
	further, err := nodesBelow(o)
	if err != nil && !purge {
		return err
	}
	for _, s := range []struct {
		name string
		when bool
		run  func(context.Context, Options) (string, error)
	}{
		{"skiff", true, stopProcess},
		{"further nodes", len(further) > 0, stopNodes(further, purge)},
		{"pods", true, stopPods},
		{"network", true, removeNetwork},
		{"data", purge, removeData},
	} {
		if !s.when {
			continue
		}
		if err := progress.step(s.name, func() (string, error) { return s.run(ctx, o) }); err != nil {
			return err
		}
	}
	return nil
}

// stopProcess ends the live process by SIGTERM, and by SIGKILL if it must.
func stopProcess(ctx context.Context, o Options) (string, error) {
	pid := lockHolder(o)
	if pid == 0 {
		return "not running", nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return "", fmt.Errorf("end process %d: %w", pid, err)
	}
	wait, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	gone := func(context.Context) error {
		if lockHolder(o) != 0 {
			return errors.New("it has not ended")
		}
		return nil
	}
	if poll(wait, "skiff to end", gone) == nil {
		return fmt.Sprintf("process %d ended", pid), nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("kill process %d: %w", pid, err)
	}
	return fmt.Sprintf("process %d killed after %s", pid, stopTimeout), poll(ctx, "the killed process to go", gone)
}

// stopNodes ends the further nodes' processes, which end with the first's if
// they can, their pods and their networks.
func stopNodes(nodes []Options, purge bool) func(context.Context, Options) (string, error) {
	stop := func(ctx context.Context, o Options) error {
		if _, err := stopProcess(ctx, o); err != nil {
			return err
		}
		if _, err := stopPods(ctx, o); err != nil {
			return err
		}
		// With the namespace go its interfaces, routes and tables.
		err := errors.Join(innetns.Remove(o.netns()), os.RemoveAll(o.path("network")))
		if err == nil && purge {
			_, err = removeData(ctx, o)
		}
		return err
	}
	return func(ctx context.Context, _ Options) (string, error) {
		var wg sync.WaitGroup
		errs := make([]error, len(nodes))
		for i, n := range nodes {
			wg.Go(func() {
				if err := stop(ctx, n); err != nil {
					errs[i] = fmt.Errorf("node %s: %w", n.NodeName, err)
				}
			})
		}
		wg.Wait()
		return fmt.Sprintf("%d stopped", len(nodes)), errors.Join(errs...)
	}
}

// stopPods ends every container of the cluster; images stay.
func stopPods(ctx context.Context, o Options) (string, error) {
	r, err := runtime.New(runtimeConfig(o, nil, nil))
	if err != nil {
		return "", err
	}
	err = errors.Join(r.StopAll(ctx), r.Close(ctx))
	if err == nil { // volumes in memory, tokens among them
		err = unmountBelow(o.path("kubelet"))
	}
	return "stopped; images stay", err
}

// removeNetwork takes bridge, veths, routes and nftables tables away; the next
// start makes them anew.
func removeNetwork(_ context.Context, o Options) (string, error) {
	return o.Bridge() + " removed", errors.Join(network.Purge(networkConfig(o, nil)), network.Purge(wireConfig(o, nil)), proxy.Purge(o.Table("proxy"), ""))
}

// removeData deletes the folder, after unmounting what is left in it.
func removeData(ctx context.Context, o Options) (string, error) {
	r, err := runtime.New(runtimeConfig(o, nil, nil))
	if err != nil {
		return "", err
	}
	if err := errors.Join(r.Purge(ctx), r.Close(ctx)); err != nil {
		return "", err
	}
	if err := unmountBelow(o.DataDir); err != nil {
		return "", err
	}
	if err := removeCgroups(o.CgroupRoot()); err != nil {
		return "", err
	}
	err = errors.Join(os.RemoveAll(o.DataDir), forget(knownClusters, o))
	if errors.Is(err, syscall.EBUSY) {
		return o.DataDir + " emptied; it is a disk of its own", nil
	}
	return o.DataDir + " removed", err
}

func nodeIPs(o Options) []netip.Addr { return []netip.Addr{o.NodeIP} }
