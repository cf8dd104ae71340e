//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one of a cluster's.
type process struct {
	pid  int
	name string
}

// servers are the processes in this namespace but this one, its shell, and the
// shells and cats that hold namespaces.
func servers() []process {
	var list []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		line, err := os.ReadFile(dir + "/cmdline")
		if pid == 1 || pid == os.Getpid() || err != nil || len(line) == 0 { // ended meanwhile, or a zombie
			continue
		}
		if name := program(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")); name != "" {
			list = append(list, process{pid, name})
		}
	}
	return list
}

// program is the name of a command line; "" for those that are not a server's.
func program(words []string) string {
	name := filepath.Base(words[0])
	switch {
	case name == "cat" || name == "sh" && len(words) > 1 && words[1] == "-c":
		return ""
	case name == "skiff" && len(words) > 1:
		return "skiff " + words[1]
	}
	return name
}

// running is how long processes have run so far, in all threads, those that
// ended included. The number names the kernel's clock of a process (see
// clock_getcpuclockid(3)); it counts nanoseconds, /proc/<pid>/stat ticks of
// ten million.
func running(list []process) time.Duration {
	var sum time.Duration
	for _, p := range list {
		var t unix.Timespec
		if unix.ClockGettime(int32(^p.pid<<3|2), &t) == nil { // else it has ended
			sum += time.Duration(t.Nano())
		}
	}
	return sum
}

// memory is the resident memory of a process in MB, pages that it shares
// counted in parts, and how much of that no file holds.
func (p process) memory() (pss, anonymous float64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
	return field(text, "\nPss:") / 1024, field(text, "Pss_Anon:") / 1024
}

// memory is that of a list.
func memory(list []process) (sum float64) {
	for _, p := range list {
		pss, _ := p.memory()
		sum += pss
	}
	return sum
}

// written is how many bytes of files a process has made dirty.
func (p process) written() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.pid))
	return field(text, "\nwrite_bytes:") - field(text, "cancelled_write_bytes:")
}

// wakeups is how often a process's threads gave up the CPU to wait.
func (p process) wakeups() (sum float64) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.pid))
	for _, t := range tasks {
		text, _ := os.ReadFile(t)
		sum += field(text, "\nvoluntary_ctxt_switches:")
	}
	return sum
}

// field is the number behind a name in one of the kernel's texts; 0 if absent.
func field(text []byte, name string) float64 {
	_, rest, _ := strings.Cut(string(text), name)
	words := strings.Fields(rest)
	if len(words) == 0 {
		return 0
	}
	n, _ := strconv.ParseFloat(words[0], 64)
	return n
}

// byName groups processes, names in order.
func byName(list []process) (names []string, groups map[string][]process) {
	groups = map[string][]process{}
	for _, p := range list {
		if groups[p.name] == nil {
			names = append(names, p.name)
		}
		groups[p.name] = append(groups[p.name], p)
	}
	slices.Sort(names)
	return names, groups
}
