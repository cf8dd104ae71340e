//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var sizeSuite = suite{
	name: "size", limit: 10 * time.Minute, run: runSize, together: true,
	about: "A cluster of one node without a pod of the user's, left alone and then watched. Memory is PSS: pages that processes share are counted in parts. " +
		"What is written is what a disk of the cluster's own is told to write, journal and metadata included. Both are watched at the same time. " +
		"In the first round all OpenAPI v3 documents are fetched then, as kubectl explain does for all kinds; the memory after that is the least in 130 s.",
	limits: "of the memory of skiff up half is the binary's own pages: the kernel maps 64 KB around each one that is used, and a collection of garbage reads the tables " +
		"of every function that a goroutine waits in (with 16 KB at a time it would be 16 MB less, which the page cache holds all the same). The other half is 17 MB of " +
		"heap that lives, 12 of garbage and holes between that, 5 of stacks, and what Go's runtime needs. " +
		"The node's lease is renewed each 10 s, as upstream's; what is written then is a block of the log and what ext4 journals of the file's " +
		"times, about 16 KB. 1 MB an hour is 60 such writes.",
	budgets: map[string]string{"PSS, all processes": "64 MB", "CPU, all processes": "0.2 %", "written to disk": "1 MB/h", "binaries": "80 MB"},
}

// diskSize is the size of the file system a cluster is measured on.
const diskSize = 2 << 30

func runSize(ctx context.Context, r *round) error {
	dir := filepath.Join(r.Dir, filepath.Base(r.Dir))
	device, err := mountDisk(filepath.Join(r.Dir, "disk"), dir)
	if err != nil {
		return fmt.Errorf("a disk of its own: %w", err)
	}
	defer unix.Unmount(dir, 0)
	binaries, err := r.binaries()
	if err != nil {
		return err
	}
	r.figure("binaries", "MB", binaries)
	return r.with(ctx, parts{node: true, dir: dir}, func(c *cluster) error {
		if err := sleep(ctx, r.Settle); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, "sync", "-f", dir).CombinedOutput(); err != nil { // what the start left to write
			return fmt.Errorf("sync: %w: %s", err, out)
		}
		if err := r.watchIdle(ctx, device); err != nil || r.Round > 0 {
			return err
		}
		if err := c.explainAll(); err != nil {
			return fmt.Errorf("OpenAPI: %w", err)
		}
		after, err := r.rested(ctx, 130*time.Second)
		r.figure("PSS, all processes, after kubectl explain", "MB", after)
		return err
	})
}

// explainAll fetches what kubectl explain fetches, for all groups.
func (c *cluster) explainAll() error {
	documents, err := c.client.Discovery().OpenAPIV3().Paths()
	if err == nil && len(documents) < 20 {
		err = fmt.Errorf("only %d documents", len(documents))
	}
	for _, d := range documents {
		if err == nil {
			_, err = d.Schema(jsonType)
		}
	}
	return err
}

// watchIdle gives the figures of a span of doing nothing.
func (r *round) watchIdle(ctx context.Context, device string) error {
	list := servers()
	began, sectors, woken := time.Now(), deviceBytes(device), 0.0
	before := map[int]time.Duration{}
	for _, p := range list {
		before[p.pid] = running([]process{p})
		woken -= p.wakeups()
	}
	if err := sleep(ctx, r.Span); err != nil {
		return err
	}
	took := time.Since(began)
	list = servers() // those that came meanwhile count from zero
	percent := func(list []process) float64 {
		sum := running(list)
		for _, p := range list {
			sum -= before[p.pid]
		}
		return 100 * sum.Seconds() / took.Seconds()
	}
	for _, p := range list {
		woken += p.wakeups()
	}
	r.figure("PSS, all processes", "MB", memory(list))
	r.figure("CPU, all processes", "%", percent(list))
	r.figure("wakeups, all processes", "per s", woken/took.Seconds())
	r.figure("written to disk", "MB/h", (deviceBytes(device)-sectors)/1e6*float64(time.Hour)/float64(took))
	names, groups := byName(list)
	for _, name := range names {
		r.figure("PSS, "+name, "MB", memory(groups[name]))
	}
	for _, name := range names {
		r.figure("CPU, "+name, "%", percent(groups[name]))
	}
	return nil
}

// binaries is the size of the programs of a node with its control plane, kubectl included.
func (r *round) binaries() (megabytes float64, err error) {
	files := []string{r.Skiff}
	if r.System == upstream {
		files = r.Tools.all()
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return 0, err
		}
		megabytes += float64(st.Size()) / 1e6
	}
	return megabytes, nil
}

// mountDisk puts an ext4 file system with nothing left to initialise on dir
// and names its device.
func mountDisk(image, dir string) (device string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(image, diskSize); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == dir {
			device = f[0]
		}
	}
	return device, nil
}

// deviceBytes is what a block device was told to write so far (sectors are of
// 512 bytes, whatever the disk's own).
func deviceBytes(device string) float64 {
	stat, _ := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	f := strings.Fields(string(stat))
	if len(f) < 7 {
		return 0
	}
	n, _ := strconv.ParseFloat(f[6], 64)
	return n * 512
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
