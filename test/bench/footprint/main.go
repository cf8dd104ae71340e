//go:build linux

// Command footprint measures what an idle cluster costs: the size of the
// binary, the time to Ready (fresh and resumed), and, over a span of doing
// nothing, the resident memory of every process (PSS: shared pages divided
// among those that share them), CPU, wakeups and bytes written to disk.
//
//	sudo go run ./test/bench/footprint -binary bin/skiff -for 2m
//
// It makes a cluster of its own in a temporary folder, on ports and in a
// network namespace of its own, so that other clusters and the host's network
// events do not count, and removes both. The folder is an ext4 file system on
// a loop device where the machine has mkfs.ext4: what the device was told to
// write includes the journal and metadata, which no process's own count does.
// CPU is the scheduler's run time in nanoseconds over all threads, not sampled
// ticks. With -data-dir it measures a cluster that runs already, and only
// looks.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are the command's flags.
type options struct {
	binary  string
	dataDir string
	span    time.Duration
	settle  time.Duration
	starts  int
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "bin/skiff", "the binary to measure")
	flag.StringVar(&o.dataDir, "data-dir", "", "look at the live cluster in this folder instead of making one")
	flag.DurationVar(&o.span, "for", 2*time.Minute, "how long to watch the idle cluster")
	flag.DurationVar(&o.settle, "settle", time.Minute, "how long to leave the cluster alone before")
	flag.IntVar(&o.starts, "starts", 5, "how many fresh and resumed starts to time")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "footprint:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.dataDir != "" {
		return watch(o, "")
	}
	st, err := os.Stat(o.binary)
	if err != nil {
		return err
	}
	fmt.Printf("binary           %.1f MB\n", float64(st.Size())/1e6)
	bench, err := newBench(o.binary)
	if err != nil {
		return err
	}
	defer bench.close()
	var fresh, resumed []time.Duration
	for range max(o.starts, 1) {
		f, err := bench.up()
		if err != nil {
			return err
		}
		if err := bench.down(false); err != nil {
			return err
		}
		r, err := bench.up()
		if err != nil {
			return err
		}
		if err := bench.down(true); err != nil {
			return err
		}
		fresh, resumed = append(fresh, f), append(resumed, r)
	}
	fmt.Printf("up, fresh data   %s\nup, warm data    %s\n", summary(fresh), summary(resumed))
	if _, err := bench.up(); err != nil {
		return err
	}
	o.dataDir = bench.cluster()
	time.Sleep(o.settle)
	if err := exec.Command("sync", "-f", o.dataDir).Run(); err != nil { // what the start left to write is not the idle cluster's
		return err
	}
	if err := watch(o, bench.device); err != nil {
		return err
	}
	return bench.down(true)
}

// summary is the median and the range of some durations.
func summary(d []time.Duration) string {
	slices.Sort(d)
	ms := func(d time.Duration) int64 { return d.Round(time.Millisecond).Milliseconds() }
	return fmt.Sprintf("%d ms (%d–%d, n=%d)", ms(d[len(d)/2]), ms(d[0]), ms(d[len(d)-1]), len(d))
}

// watch prints what the live cluster of o.dataDir costs over o.span.
func watch(o options, device string) error {
	pids, err := members(o.dataDir)
	if err != nil {
		return err
	}
	type both struct{ before, after sample }
	all := map[int]*both{}
	for _, pid := range pids {
		s, err := look(pid)
		if err == nil {
			all[pid] = &both{before: s}
		}
	}
	sectors := deviceBytes(device)
	begin := time.Now()
	time.Sleep(o.span)
	took := time.Since(begin)
	fmt.Printf("\n%7s %8s %8s %8s %9s %8s %9s  %s\n", "pid", "PSS kB", "anon kB", "file kB", "cpu %", "wakeups", "disk B/h", "command")
	var sum, sumBefore sample
	for _, pid := range pids {
		b := all[pid]
		if b == nil {
			continue
		}
		if b.after, err = look(pid); err != nil {
			fmt.Printf("%7d ended\n", pid)
			continue
		}
		row(strconv.Itoa(pid), b.before, b.after, took)
		sum.add(b.after)
		sumBefore.add(b.before)
	}
	sum.command = "all"
	row("", sumBefore, sum, took)
	if device != "" {
		perHour := float64(deviceBytes(device)-sectors) * float64(time.Hour) / float64(took)
		fmt.Printf("\nwritten to the device: %.0f bytes an hour (journal and metadata included)\n", perHour)
	}
	return nil
}

func row(pid string, a, b sample, took time.Duration) {
	fmt.Printf("%7s %8d %8d %8d %9.4f %8.2f %9.0f  %s\n", pid, b.pss, b.anon, b.pss-b.anon,
		100*float64(b.cpu-a.cpu)/float64(took), float64(b.switches-a.switches)/took.Seconds(),
		float64(b.written-a.written)*float64(time.Hour)/float64(took), b.command)
}

// members are the processes of a cluster: the one that holds the lock, and all
// in the cluster's control groups.
func members(dataDir string) ([]int, error) {
	lock, err := os.ReadFile(filepath.Join(dataDir, "skiff.lock"))
	if err != nil {
		return nil, err
	}
	main, err := strconv.Atoi(strings.TrimSpace(string(lock)))
	if err != nil {
		return nil, fmt.Errorf("skiff.lock: %w", err)
	}
	var kept struct{ Suffix string }
	data, err := os.ReadFile(filepath.Join(dataDir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	if err != nil {
		return nil, err
	}
	root := "/kubepods"
	if kept.Suffix != "" {
		root += "-" + kept.Suffix
	}
	pids := []int{main}
	dirs, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range dirs {
		groups, _ := os.ReadFile(path) // gone by now: not a member
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && strings.Contains(string(groups), ":"+root+"/") {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, errors.New("no process of a cluster")
	}
	return pids, nil
}
