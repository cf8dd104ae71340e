package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stats is what the kubelet asks for, in bytes and nanoseconds.
type Stats struct {
	CPUUsage        uint64
	MemoryUsage     uint64
	WorkingSet      uint64 // usage without inactive file pages
	RSS             uint64
	MemoryLimit     uint64 // 0: none
	PageFaults      uint64
	MajorPageFaults uint64
	SwapUsage       uint64
	Pids            uint64
}

// Stats reads the group's counters. A group that is gone reads as zero.
func (g *Group) Stats() Stats {
	if g.tree.V2 {
		return g.stats2()
	}
	return g.stats1()
}

func (g *Group) stats2() Stats {
	d := g.dir()
	cpu, mem := readFlat(filepath.Join(d, "cpu.stat")), readFlat(filepath.Join(d, "memory.stat"))
	s := Stats{CPUUsage: cpu["usage_usec"] * 1000, MemoryUsage: readNumber(filepath.Join(d, "memory.current")),
		RSS: mem["anon"], MemoryLimit: readNumber(filepath.Join(d, "memory.max")),
		PageFaults: mem["pgfault"], MajorPageFaults: mem["pgmajfault"],
		SwapUsage: readNumber(filepath.Join(d, "memory.swap.current")), Pids: readNumber(filepath.Join(d, "pids.current"))}
	s.WorkingSet = s.MemoryUsage - min(mem["inactive_file"], s.MemoryUsage)
	return s
}

func (g *Group) stats1() Stats {
	m := g.v1Path("memory")
	mem := readFlat(filepath.Join(m, "memory.stat"))
	s := Stats{CPUUsage: readNumber(filepath.Join(g.v1Path("cpuacct"), "cpuacct.usage")),
		MemoryUsage: readNumber(filepath.Join(m, "memory.usage_in_bytes")), RSS: mem["total_rss"],
		MemoryLimit: readNumber(filepath.Join(m, "memory.limit_in_bytes")),
		PageFaults:  mem["total_pgfault"], MajorPageFaults: mem["total_pgmajfault"],
		SwapUsage: mem["total_swap"], Pids: readNumber(filepath.Join(g.v1Path("pids"), "pids.current"))}
	s.WorkingSet = s.MemoryUsage - min(mem["total_inactive_file"], s.MemoryUsage)
	if s.MemoryLimit > 1<<60 {
		s.MemoryLimit = 0
	}
	return s
}

// OOMKills counts processes the kernel killed in the group for want of memory.
func (g *Group) OOMKills() uint64 {
	if g.tree.V2 {
		return readFlat(filepath.Join(g.dir(), "memory.events"))["oom_kill"]
	}
	return readFlat(filepath.Join(g.v1Path("memory"), "memory.oom_control"))["oom_kill"]
}

func readNumber(file string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // "max" is 0: none
	return n
}

func readFlat(file string) map[string]uint64 {
	out := map[string]uint64{}
	b, err := os.ReadFile(file)
	if err != nil {
		return out
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		k, v, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			out[k] = n
		}
	}
	return out
}
