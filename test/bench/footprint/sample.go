//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// sample is what the kernel says of one process at one moment.
type sample struct {
	command   string
	pss, anon int64         // kB now
	cpu       time.Duration // run so far, all threads
	switches  int64         // times a thread gave up the CPU to wait, so far
	written   int64         // bytes of pages made dirty, so far
}

func (s *sample) add(o sample) {
	s.pss += o.pss
	s.anon += o.anon
	s.cpu += o.cpu
	s.switches += o.switches
	s.written += o.written
}

// look samples a process. A thread that ended since takes its share away,
// which does not happen in an idle Go process.
func look(pid int) (sample, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	var s sample
	rollup, err := os.ReadFile(dir + "smaps_rollup")
	if err != nil {
		return s, err
	}
	s.pss, s.anon = field(rollup, "Pss:"), field(rollup, "Pss_Anon:")
	command, _ := os.ReadFile(dir + "cmdline")
	words := strings.Fields(strings.ReplaceAll(string(command), "\x00", " "))
	s.command = strings.Join(words[:min(len(words), 3)], " ")
	io, err := os.ReadFile(dir + "io")
	if err != nil {
		return s, err
	}
	s.written = field(io, "\nwrite_bytes:") - field(io, "cancelled_write_bytes:")
	tasks, err := filepath.Glob(dir + "task/*")
	if err != nil {
		return s, err
	}
	for _, t := range tasks {
		stat, _ := os.ReadFile(t + "/schedstat") // ended: nothing to add
		if f := strings.Fields(string(stat)); len(f) > 0 {
			ns, _ := strconv.ParseInt(f[0], 10, 64)
			s.cpu += time.Duration(ns)
		}
		status, _ := os.ReadFile(t + "/status")
		s.switches += field(status, "\nvoluntary_ctxt_switches:")
	}
	return s, nil
}

// field is the number behind a name in one of the kernel's texts; 0 if absent.
func field(text []byte, name string) int64 {
	_, rest, ok := strings.Cut(string(text), name)
	if !ok {
		return 0
	}
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(f[0], 10, 64)
	return n
}

// deviceBytes is what a block device was told to write so far (sectors are of
// 512 bytes, whatever the disk's own); 0 without a device.
func deviceBytes(device string) int64 {
	if device == "" {
		return 0
	}
	stat, _ := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	f := strings.Fields(string(stat))
	if len(f) < 7 {
		return 0
	}
	n, _ := strconv.ParseInt(f[6], 10, 64)
	return n * 512
}
